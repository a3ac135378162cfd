"""A `XorbStore` in an S3 bucket: one server can receive a xorb, and another the shard that names it.

<prefix>xorbs/<epoch>/<scope>/<hash>
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import IO

from adapterhub_registry.storage.blobs import Freed, raising_disk_full
from adapterhub_registry.storage.s3_bucket import Bucket
from adapterhub_registry.storage.xet_format import ChunkSpan, MalformedXet, decode_chunk, scan_xorb
from adapterhub_registry.storage.xet_hash import XorbCheck, is_xorb
from adapterhub_registry.storage.xorbs import Wanted, XorbPlace, XorbWriter, everything, is_open

_IN_MEMORY_BYTES = 8 << 20
_GAP_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20


class S3Xorbs:
    """Xorbs as objects of a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    @contextlib.contextmanager
    def writer(self, place: XorbPlace) -> Iterator[XorbWriter]:
        """A writer for one xorb."""
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as stream:
            yield _S3Writer(self._bucket, place, stream)

    def chunks(self, place: XorbPlace) -> tuple[ChunkSpan, ...] | None:
        """The position of each chunk of a xorb; None without such a xorb."""
        found = self._bucket.get(_key(place))
        return None if found is None else scan_xorb(found[0])

    def read(self, place: XorbPlace, spans: tuple[ChunkSpan, ...]) -> Iterator[bytes]:
        """The unpacked bytes of some chunks, one chunk at a time; raises `MalformedXet` for a damaged chunk.

        One request fetches each run of chunks that lie close together.
        """
        for run in _runs(spans):
            found = self._bucket.get(_key(place), run[0].start, _end(run[-1]))
            if found is None:
                raise MalformedXet("shard", f"names xorb {place.hash}, which has expired; start the upload again")
            window, at = bytearray(), run[0].start
            pieces = found[0]
            for span in run:
                while at + len(window) < _end(span):
                    window += next(pieces, b"") or _cut_off(place)
                del window[: span.start - at]
                at = span.start
                yield decode_chunk(bytes(window[: span.packed_bytes]), span)

    def sweep(self, now_s: float, *, wanted: Wanted = everything, dry_run: bool = False) -> Freed:
        """Remove the xorbs of closed epochs, and of scopes that are not `wanted`; `dry_run` only counts them."""
        count = size = 0
        for epoch in filter(str.isdecimal, self._bucket.folders("xorbs")):
            for scope in self._bucket.folders(f"xorbs/{epoch}"):
                if is_open(int(epoch), now_s) and wanted(scope):
                    continue
                items = list(self._bucket.items(f"xorbs/{epoch}/{scope}"))
                count, size = count + len(items), size + sum(item.size for item in items)
                if items and not dry_run:
                    self._bucket.remove(*(item.key for item in items))
        return Freed(count, size)


class _S3Writer:
    def __init__(self, bucket: Bucket, place: XorbPlace, stream: IO[bytes]) -> None:
        self._bucket, self._place, self._stream = bucket, place, stream
        self._check = XorbCheck()

    def write(self, data: bytes) -> None:
        self._check.feed(data)
        with raising_disk_full():
            self._stream.write(data)

    def keep(self) -> None:
        self._check.finish(self._place.hash)
        key = _key(self._place)
        stored = self._bucket.get(key)
        if stored is not None and is_xorb(stored[0], self._place.hash):
            return
        self._stream.seek(0)
        self._bucket.put(key, iter(lambda: self._stream.read(_PIECE_BYTES), b""))


def _key(place: XorbPlace) -> str:
    return f"xorbs/{place.path}"


def _end(span: ChunkSpan) -> int:
    return span.start + span.packed_bytes


def _runs(spans: tuple[ChunkSpan, ...]) -> Iterator[list[ChunkSpan]]:
    run: list[ChunkSpan] = []
    for span in spans:
        if run and not 0 <= span.start - _end(run[-1]) <= _GAP_BYTES:
            yield run
            run = []
        run.append(span)
    if run:
        yield run


def _cut_off(place: XorbPlace) -> bytes:
    raise MalformedXet("shard", f"names xorb {place.hash}, which is truncated; start the upload again")
