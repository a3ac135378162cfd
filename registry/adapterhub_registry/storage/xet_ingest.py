"""Turns a shard into ordinary blobs: rebuilds each file from its xorbs and stores it under its sha256."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from adapterhub_registry.storage.blobs import BlobStore, StoredBlob
from adapterhub_registry.storage.xet_format import ChunkSpan, MalformedXet, Segment, ShardFile, XetHash, spans_of
from adapterhub_registry.storage.xorbs import XorbPlace, XorbStore

_TABLES_KEPT: Final = 16  # files name few xorbs at a time; a table of 8,192 chunks takes a megabyte


class Ingest:
    """Rebuilds files for one upload space, `scope` at `epoch`; it never reads xorbs of another space."""

    def __init__(self, *, xorbs: XorbStore, blobs: BlobStore, scope: str, epoch: int) -> None:
        self._xorbs, self._blobs = xorbs, blobs
        self._scope, self._epoch = scope, epoch
        self._tables: OrderedDict[XetHash, tuple[ChunkSpan, ...]] = OrderedDict()

    def store(self, files: Iterable[ShardFile], *, on_stored: Callable[[StoredBlob], None]) -> None:
        """Store the files in order, and call `on_stored` after each.

        Raises:
            MalformedXet: a file names a xorb or chunk that the client did not send, or that does not unpack.
            DigestMismatch: a file's bytes do not match its sha256.
        """
        for file in files:
            on_stored(self._blobs.put(self._pieces(file), file.sha256, file.size_bytes))

    def _pieces(self, file: ShardFile) -> Iterator[bytes]:
        for segment in file.segments():
            spans = spans_of(self._table(segment), segment)
            yield from self._xorbs.read(self._place(segment), spans)

    def _place(self, segment: Segment) -> XorbPlace:
        return XorbPlace(scope=self._scope, epoch=self._epoch, hash=segment.xorb)

    def _table(self, segment: Segment) -> tuple[ChunkSpan, ...]:
        chunks = self._tables.get(segment.xorb)
        if chunks is None:
            chunks = self._xorbs.chunks(self._place(segment))
            if chunks is None:
                raise MalformedXet(
                    "shard", f"names xorb {segment.xorb}, which the client did not send; start the upload again"
                )
            self._tables[segment.xorb] = chunks
            if len(self._tables) > _TABLES_KEPT:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(segment.xorb)
        return chunks
