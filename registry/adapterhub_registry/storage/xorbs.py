"""Xorbs while an upload runs: kept apart for each repository and epoch, and swept when no client can name them.

A Xet client remembers for weeks, per address, which xorbs a server has. The address therefore carries an epoch: a new
one makes every client forget, so the xorbs of an old one can go. Nobody but uploads of the same repository sees them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

from adapterhub_registry.storage.blobs import full_disk_told
from adapterhub_registry.storage.xet_format import ChunkSpan, MalformedXet, XetHash, decode_chunk, scan_xorb
from adapterhub_registry.storage.xet_hash import XorbCheck, is_xorb

EPOCH_S: Final = 24 * 3600
GRACE_S: Final = 24 * 3600
"""How long an epoch's xorbs stay after its end: an upload that began in it may take that long."""
_PIECE_BYTES: Final = 1 << 20


def epoch_at(now_s: float) -> int:
    """The epoch that new uploads get at this time (seconds since 1970)."""
    return int(now_s // EPOCH_S)


def is_open(epoch: int, now_s: float) -> bool:
    """Whether uploads may still use this epoch: its xorbs are kept one epoch and a grace."""
    return epoch <= epoch_at(now_s) and now_s < (epoch + 1) * EPOCH_S + GRACE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class XorbPlace:
    """Which xorb of which upload space; `scope` stands for one repository and is made by the server."""

    scope: str
    epoch: int
    hash: XetHash


class XorbWriter(Protocol):
    """One xorb that arrives. Leaving the `with` block without `keep` drops it."""

    def __enter__(self) -> XorbWriter:  # noqa: PYI034 - `Self` is in typing from 3.11 on
        """The writer, open."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop what was not kept."""

    def write(self, data: bytes) -> None:
        """Take the next bytes; raises `MalformedXet` as soon as they break a bound."""

    def keep(self) -> None:
        """Make the xorb readable under its hash, unless it is there and right already.

        Raises `MalformedXet` when the bytes are not the xorb of that hash.
        """


class XorbStore(Protocol):
    """Where xorbs wait for the shard that names them."""

    def writer(self, place: XorbPlace) -> XorbWriter:
        """A writer for one xorb."""

    def chunks(self, place: XorbPlace) -> tuple[ChunkSpan, ...] | None:
        """Where the chunks of a xorb lie; None when it is not here."""

    def read(self, place: XorbPlace, spans: tuple[ChunkSpan, ...]) -> Iterator[bytes]:
        """The unpacked bytes of some chunks, chunk by chunk; raises `MalformedXet` for chunks that do not unpack."""

    def sweep(self, now_s: float) -> None:
        """Remove the xorbs of epochs that are closed."""


class DiskXorbs:
    """Xorbs as files `<root>/<epoch>/<scope>/<hash>`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def writer(self, place: XorbPlace) -> XorbWriter:
        """A writer for one xorb."""
        return _DiskWriter(self._path(place), place.hash)

    def chunks(self, place: XorbPlace) -> tuple[ChunkSpan, ...] | None:
        """Where the chunks of a xorb lie; None when it is not here."""
        try:
            with self._path(place).open("rb") as stream:
                return scan_xorb(iter(lambda: stream.read(_PIECE_BYTES), b""))
        except FileNotFoundError:
            return None

    def read(self, place: XorbPlace, spans: tuple[ChunkSpan, ...]) -> Iterator[bytes]:
        """The unpacked bytes of some chunks, chunk by chunk; raises `MalformedXet` for chunks that do not unpack."""
        try:
            opened = self._path(place).open("rb")
        except FileNotFoundError:
            raise MalformedXet("shard", f"names xorb {place.hash}, which is gone; start the upload again") from None
        with opened as stream:
            for span in spans:
                stream.seek(span.start)
                yield decode_chunk(stream.read(span.packed_bytes), span)

    def sweep(self, now_s: float) -> None:
        """Remove the xorbs of epochs that are closed."""
        if not self._root.is_dir():
            return
        for folder in self._root.iterdir():
            if folder.name.isdecimal() and not is_open(int(folder.name), now_s):
                shutil.rmtree(folder, ignore_errors=True)  # another replica may sweep at the same time

    def _path(self, place: XorbPlace) -> Path:
        return self._root / str(place.epoch) / place.scope / place.hash


class _DiskWriter:
    def __init__(self, path: Path, expected: XetHash) -> None:
        self._path, self._expected = path, expected
        self._check = XorbCheck()

    def __enter__(self) -> XorbWriter:
        with full_disk_told():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".", dir=self._path.parent)
        # unbuffered: closing must not write, for there may be no room
        self._stream, self._made = os.fdopen(handle, "wb", buffering=0), Path(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        with contextlib.suppress(FileNotFoundError):
            self._made.unlink()

    def write(self, data: bytes) -> None:
        self._check.feed(data)
        with full_disk_told():
            left = memoryview(data)
            while left:
                left = left[self._stream.write(left) or 0 :]

    def keep(self) -> None:
        self._check.finish(self._expected)
        if self._is_here():
            return
        with full_disk_told():
            # The client is told once that the xorb is here and never sends it again.
            os.fsync(self._stream.fileno())
            self._made.replace(self._path)

    def _is_here(self) -> bool:
        try:
            with self._path.open("rb") as stream:
                return is_xorb(iter(lambda: stream.read(_PIECE_BYTES), b""), self._expected)
        except OSError:
            return False
