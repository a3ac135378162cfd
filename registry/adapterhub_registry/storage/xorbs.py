"""Keeps the xorbs of running uploads, apart for each repository and epoch, until no client can name them any more.

A Xet client remembers for weeks, per address, which xorbs a server has. The address therefore carries an epoch: a new
epoch makes every client forget, so the xorbs of an old one can go. Only uploads of the same repository see them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final, Protocol

from adapterhub_registry.storage.blobs import Freed, raising_disk_full
from adapterhub_registry.storage.xet_format import ChunkSpan, MalformedXet, XetHash, decode_chunk, scan_xorb
from adapterhub_registry.storage.xet_hash import XorbCheck, is_xorb

EPOCH_S: Final = 24 * 3600
GRACE_S: Final = 24 * 3600
"""How long an epoch's xorbs stay after its end: the longest time that an upload may take."""
_PIECE_BYTES: Final = 1 << 20


def epoch_at(now_s: float) -> int:
    """The epoch of new uploads at this time (seconds since 1970)."""
    return int(now_s // EPOCH_S)


def is_open(epoch: int, now_s: float) -> bool:
    """Whether uploads may still use this epoch: its xorbs stay for the epoch and `GRACE_S`."""
    return epoch <= epoch_at(now_s) and now_s < (epoch + 1) * EPOCH_S + GRACE_S


Wanted = Callable[[str], bool]
"""Whether uploads may still use the xorbs of a scope."""


def everything(_scope: str) -> bool:
    """Every scope is wanted."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class XorbPlace:
    """A xorb in an upload space; the server makes `scope`, one for each repository."""

    scope: str
    epoch: int
    hash: XetHash

    @property
    def path(self) -> str:
        """The relative path where a store keeps the xorb."""
        return f"{self.epoch}/{self.scope}/{self.hash}"


class XorbWriter(Protocol):
    """Receives one xorb."""

    def write(self, data: bytes) -> None:
        """Take the next bytes; raises `MalformedXet` as soon as they exceed a bound."""

    def keep(self) -> None:
        """Publish the xorb under its hash, unless an undamaged copy is stored already.

        Raises:
            MalformedXet: the bytes are not the xorb of that hash.
        """


class XorbStore(Protocol):
    """Keeps xorbs until the shard that names them arrives."""

    def writer(self, place: XorbPlace) -> AbstractContextManager[XorbWriter]:
        """A writer for one xorb. Leaving the `with` block without `keep` drops the xorb."""

    def chunks(self, place: XorbPlace) -> tuple[ChunkSpan, ...] | None:
        """The position of each chunk of a xorb; None without such a xorb."""

    def read(self, place: XorbPlace, spans: tuple[ChunkSpan, ...]) -> Iterator[bytes]:
        """The unpacked bytes of some chunks, one chunk at a time; raises `MalformedXet` for a damaged chunk."""

    def sweep(self, now_s: float, *, wanted: Wanted = everything, dry_run: bool = False) -> Freed:
        """Remove the xorbs of closed epochs, and of scopes that are not `wanted`; `dry_run` only counts them."""


class DiskXorbs:
    """Xorbs as files `<root>/<epoch>/<scope>/<hash>`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextlib.contextmanager
    def writer(self, place: XorbPlace) -> Iterator[XorbWriter]:
        """A writer for one xorb."""
        path = self._path(place)
        with raising_disk_full():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".", dir=path.parent)
        try:
            # unbuffered: closing must not write, as the disk may be full
            with os.fdopen(handle, "wb", buffering=0) as stream:
                yield _DiskWriter(stream, Path(name), path, place.hash)
        finally:
            Path(name).unlink(missing_ok=True)

    def chunks(self, place: XorbPlace) -> tuple[ChunkSpan, ...] | None:
        """The position of each chunk of a xorb; None without such a xorb."""
        try:
            with self._path(place).open("rb") as stream:
                return scan_xorb(iter(lambda: stream.read(_PIECE_BYTES), b""))
        except FileNotFoundError:
            return None

    def read(self, place: XorbPlace, spans: tuple[ChunkSpan, ...]) -> Iterator[bytes]:
        """The unpacked bytes of some chunks, one chunk at a time; raises `MalformedXet` for a damaged chunk."""
        try:
            opened = self._path(place).open("rb")
        except FileNotFoundError:
            raise MalformedXet("shard", f"names xorb {place.hash}, which has expired; start the upload again") from None
        with opened as stream:
            for span in spans:
                stream.seek(span.start)
                yield decode_chunk(stream.read(span.packed_bytes), span)

    def sweep(self, now_s: float, *, wanted: Wanted = everything, dry_run: bool = False) -> Freed:
        """Remove the xorbs of closed epochs, and of scopes that are not `wanted`; `dry_run` only counts them."""
        count = size = 0
        for folder in self._root.glob("*/*"):
            epoch = folder.parent.name
            if not epoch.isdecimal() or (is_open(int(epoch), now_s) and wanted(folder.name)):
                continue
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # another server may sweep at the same time
                    count, size = count + 1, size + path.stat().st_size
            if not dry_run:
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # other scopes are in use
                    folder.parent.rmdir()
        return Freed(count, size)

    def _path(self, place: XorbPlace) -> Path:
        return self._root / place.path


class _DiskWriter:
    def __init__(self, stream: FileIO, temporary: Path, path: Path, expected: XetHash) -> None:
        self._stream, self._temporary, self._path, self._expected = stream, temporary, path, expected
        self._check = XorbCheck()

    def write(self, data: bytes) -> None:
        self._check.feed(data)
        with raising_disk_full():
            left = memoryview(data)
            while left:
                left = left[self._stream.write(left) or 0 :]

    def keep(self) -> None:
        self._check.finish(self._expected)
        if self._is_stored():
            return
        with raising_disk_full():
            # once it knows that the server has the xorb, the client never sends it again
            os.fsync(self._stream.fileno())
            self._temporary.replace(self._path)

    def _is_stored(self) -> bool:
        try:
            with self._path.open("rb") as stream:
                return is_xorb(iter(lambda: stream.read(_PIECE_BYTES), b""), self._expected)
        except OSError:
            return False
