"""Stores bytes by their digest. The rest of the server uses `BlobStore` only; `DiskBlobs` keeps blobs in a folder.

`S3Blobs` (in `s3_blobs`) keeps them in a bucket, which clients write and read directly through links that this server
signs.

blobs/sha256/ab/cd/<64 hex>   written once: temporary file, fsync, rename, fsync of the folder
uploads/<random>              an upload in progress; removed when it fails, swept at the start after a crash
uploads/parts/<upload>/<n>    parts of a multipart upload
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from adapterhub.core.disk.files import sync_folder
from adapterhub.core.errors import BlobNotFound, DigestMismatch, DiskFull, Malformed
from adapterhub_registry.names import SHA256

CHUNK_BYTES = 1 << 20
LEFTOVER_S = 24 * 3600
RESERVE_BYTES = 64 << 20
UPLOAD = re.compile(r"[A-Za-z0-9_-]{8,64}")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoreUnreachable(Exception):
    """The blob store does not answer; the text says why. Clients try again later."""


class StoredBlob(NamedTuple):
    """A stored blob: its `sha256` in hex, the git object name of the same bytes, and their number."""

    sha256: str
    git_sha1: str
    size: int


class Kept(NamedTuple):
    """A blob in the store: its `sha256`, the number of its bytes, and when they were last uploaded (s since 1970)."""

    sha256: str
    size: int
    uploaded_s: float


@dataclass(frozen=True, slots=True)
class Freed:
    """The number of things that were removed, and of their bytes."""

    number: int = 0
    bytes: int = 0


class BlobStore(Protocol):
    """Immutable bytes by the hex of their sha256. Content goes in and out as streams, never as paths."""

    def holds(self, wanted: Mapping[str, int]) -> set[str]:
        """The digests of `wanted` (sha256: size) that are stored now with exactly that size; never cached."""
        ...

    def room(self) -> int | None:
        """How many more bytes fit; None when the store cannot tell."""
        ...

    def size(self, sha256: str) -> int:
        """The size of a blob in bytes; raises `BlobNotFound`."""
        ...

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes `[start, end)` in chunks; raises `BlobNotFound` before the first chunk."""
        ...

    def put(self, chunks: Iterable[bytes], expected_sha256: str | None = None, size: int | None = None) -> StoredBlob:
        """Store `chunks`; keep nothing unless digest and size match those announced.

        The new bytes replace damaged ones that are stored under the same digest. A blob that is stored already counts
        as uploaded now.
        """
        ...

    def put_part(self, upload_id: str, number: int, chunks: Iterable[bytes], size: int) -> str:
        """Keep part `number` (from 1) of an upload, exactly `size` bytes; its ETag. A repeated part replaces it."""
        ...

    def complete(self, upload_id: str, parts: Sequence[tuple[int, str]], expected_sha256: str, size: int) -> StoredBlob:
        """Join `(number, ETag)` parts into one blob, then remove them."""
        ...

    def upload_link(self, upload_id: str, part: int | None = None, /) -> str | None:
        """A link through which a client sends an upload, or a part, directly to the store; None without such links."""
        ...

    def take(self, upload_id: str, expected_sha256: str, size: int, /) -> StoredBlob | None:
        """Check and store what a client sent through `upload_link`; None when it sent nothing. Drops wrong bytes."""
        ...

    def download_link(self, sha256: str, /) -> str | None:
        """A short-lived link through which a client reads the blob directly; None without such links."""
        ...

    def sweep(self) -> None:
        """Remove what abandoned uploads left a day ago or longer."""
        ...

    def kept(self) -> Iterator[Kept]:
        """Every blob in the store, whether the database names it or not."""
        ...

    def remove(self, digests: Sequence[str], before_s: float, /) -> set[str]:
        """Remove the blobs that were last uploaded before this time (s since 1970), and return their digests."""
        ...

    def check(self) -> None:
        """Raise `StoreUnreachable` when the store does not answer."""
        ...


class DiskBlobs:
    """A `BlobStore` in a folder, created when absent. Several processes can share it."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs" / "sha256"
        self._uploads = root / "uploads"
        self._parts = self._uploads / "parts"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._parts.mkdir(parents=True, exist_ok=True)
        self.sweep()

    def _path(self, sha256: str) -> Path:
        return self._blobs / path_of(sha256)

    def holds(self, wanted: Mapping[str, int]) -> set[str]:
        """The digests of `wanted` (sha256: size) that are stored with exactly that size."""
        found = set()
        for sha256, size in wanted.items():
            with contextlib.suppress(BlobNotFound, OSError):
                if self.size(sha256) == size:
                    found.add(sha256)
        return found

    def room(self) -> int | None:
        """The free space of the disk, less a reserve for the database."""
        disk = shutil.disk_usage(self._uploads)
        return max(0, disk.free - min(RESERVE_BYTES, disk.total // 100))

    def size(self, sha256: str) -> int:
        """The size of a blob in bytes."""
        try:
            return self._path(sha256).stat().st_size
        except FileNotFoundError:
            raise BlobNotFound(f"no blob {sha256}") from None

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes `[start, end)` in chunks of a mebibyte."""
        try:
            stream = self._path(sha256).open("rb")
        except FileNotFoundError:
            raise BlobNotFound(f"no blob {sha256}") from None
        return _read(stream, start, end)

    def put(self, chunks: Iterable[bytes], expected_sha256: str | None = None, size: int | None = None) -> StoredBlob:
        """Store `chunks` in constant memory. Nothing is kept after an error.

        Raises:
            DigestMismatch: the digest is not `expected_sha256`.
            Malformed: `chunks` holds more or fewer than `size` bytes.
            DiskFull: the disk has no room.
        """
        check_room(self, size or 0)
        with self._temporary() as (stream, temporary):
            hashes = Hashes(size)
            for chunk in hashes.over(chunks):
                stream.write(chunk)
            blob = hashes.checked(expected_sha256)
            self._publish(stream, temporary, blob.sha256)
        return blob if size is not None else self._stored(blob.sha256, blob.size)

    def put_part(self, upload_id: str, number: int, chunks: Iterable[bytes], size: int) -> str:
        """Keep one part."""
        folder = self._part_folder(upload_id)
        with raising_disk_full():
            folder.mkdir(exist_ok=True)
        with self._temporary() as (stream, temporary):
            hasher, count = hashlib.sha256(), 0
            for chunk in chunks:
                count += len(chunk)
                if count > size:
                    break
                hasher.update(chunk)
                stream.write(chunk)
            if count != size:
                raise Malformed(f"part {number}: expected {size} bytes, got {'more' if count > size else count}")
            stream.flush()
            etag = hasher.hexdigest()[:32]
            temporary.replace(folder / f"{number}-{etag}")
        return etag

    def complete(self, upload_id: str, parts: Sequence[tuple[int, str]], expected_sha256: str, size: int) -> StoredBlob:
        """Join parts. When the result is wrong the parts stay, so that the client can send one of them again."""
        folder = self._part_folder(upload_id)
        paths = [folder / f"{number}-{etag}" for number, etag in parts if UPLOAD.fullmatch(etag)]
        if len(paths) != len(parts) or not all(path.is_file() for path in paths):
            if self._is_right(expected_sha256):  # an earlier call completed the upload, and its answer was lost
                return self._stored(expected_sha256, size)
            raise Malformed("the list of parts names a part that the server has not received")
        blob = self.put((chunk for path in paths for chunk in _read(path.open("rb"), 0, None)), expected_sha256, size)
        shutil.rmtree(folder, ignore_errors=True)
        return blob

    def _part_folder(self, upload_id: str) -> Path:
        if not UPLOAD.fullmatch(upload_id):
            raise Malformed("not an upload id")
        return self._parts / upload_id

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[IO[bytes], Path]]:
        path = self._uploads / secrets.token_hex(16)
        try:
            with raising_disk_full(), path.open("xb") as stream:
                yield stream, path
        finally:
            path.unlink(missing_ok=True)

    def _publish(self, stream: IO[bytes], temporary: Path, sha256: str) -> None:
        path = self._path(sha256)
        if self._is_right(sha256):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile; the new file takes its place
                os.utime(path)
                return
        stream.flush()
        os.fchmod(stream.fileno(), 0o444)
        # fsync before rename: a power cut must not leave a complete name on an incomplete blob
        os.fsync(stream.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)
        sync_folder(path.parent)

    def _is_right(self, sha256: str) -> bool:
        """Whether the blob is stored, readable and undamaged."""
        try:
            return digest_of(self.open(sha256)) == sha256
        except (BlobNotFound, OSError):
            return False

    def _stored(self, sha256: str, size: int) -> StoredBlob:
        """A blob that is stored already, with its git object name."""
        hashes = Hashes(size)
        for _ in hashes.over(self.open(sha256)):
            pass
        return hashes.checked(None)

    def upload_link(self, _upload_id: str, _part: int | None = None, /) -> None:
        """None: clients send bytes to this server."""

    def take(self, _upload_id: str, _expected_sha256: str, _size: int, /) -> None:
        """None: clients send bytes to this server."""

    def download_link(self, _sha256: str, /) -> None:
        """None: clients read bytes from this server."""

    def check(self) -> None:
        """Raise `StoreUnreachable` when the folder is missing."""
        if not self._blobs.is_dir():
            raise StoreUnreachable("the folder of the blobs is missing")

    def sweep(self) -> None:
        """Remove what crashed uploads left a day ago or longer."""
        before = time.time() - LEFTOVER_S
        for path in [*self._uploads.iterdir(), *self._parts.iterdir()]:
            with contextlib.suppress(FileNotFoundError):
                if path == self._parts or path.stat().st_mtime > before:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()

    def kept(self) -> Iterator[Kept]:
        """Every blob in the folder."""
        for path in self._blobs.glob("??/??/*"):
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                yield Kept(path.name, facts.st_size, facts.st_mtime)

    def remove(self, digests: Sequence[str], before_s: float, /) -> set[str]:
        """Remove blobs; those that were uploaded since `before_s` stay."""
        removed = set()
        for sha256 in digests:
            path = self._path(sha256)
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before_s:
                    path.unlink()
                    removed.add(sha256)
        return removed


def check_room(blobs: BlobStore, more_bytes: int) -> None:
    """Raise `DiskFull` unless `more_bytes` fit."""
    room = blobs.room() if more_bytes else None
    if room is not None and more_bytes > room:
        raise DiskFull(
            f"the server has room for {room} more bytes, not for the announced {more_bytes}; nothing was stored"
        )


@contextlib.contextmanager
def raising_disk_full() -> Iterator[None]:
    """Turn the operating system's errors about a full disk into `DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull("the server has no room for this upload; nothing was stored") from error
        raise


def digest_of(chunks: Iterable[bytes]) -> str:
    """The sha256 of some chunks, in hex."""
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.hexdigest()


def path_of(sha256: str) -> str:
    """The relative path of a blob, in two levels of folders; raises `Malformed` for anything but a sha256."""
    if not SHA256.fullmatch(sha256):
        raise Malformed(f"blob `{sha256[:80]!r}`: expected 64 lower-case hex digits")
    return f"{sha256[:2]}/{sha256[2:4]}/{sha256}"


class Hashes:
    """The digests of a stream of bytes, `announced` of them; None when their number is not known in advance."""

    def __init__(self, announced: int | None) -> None:
        self.announced = announced
        self.size = 0
        # git names a file by the sha1 of `blob <length>\0` and its bytes; here that is a name and proves nothing
        self._git = hashlib.sha1(b"blob %d\x00" % (announced or 0), usedforsecurity=False)
        self._sha256 = hashlib.sha256()

    def over(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks, hashed on the way; raises `Malformed` when they exceed the announced size."""
        for chunk in chunks:
            self.size += len(chunk)
            if self.announced is not None and self.size > self.announced:
                raise Malformed(f"more than the {self.announced} bytes that were announced")
            self._sha256.update(chunk)
            self._git.update(chunk)
            yield chunk

    def checked(self, expected_sha256: str | None) -> StoredBlob:
        """The blob, at the end of the stream; raises `Malformed` for a wrong size, `DigestMismatch` for wrong bytes."""
        if self.announced is not None and self.size != self.announced:
            raise Malformed(f"got {self.size} bytes, {self.announced} were announced")
        sha256 = self._sha256.hexdigest()
        if expected_sha256 is not None and sha256 != expected_sha256:
            raise DigestMismatch("upload", expected=expected_sha256, actual=sha256)
        return StoredBlob(sha256, self._git.hexdigest(), self.size)


def _read(stream: IO[bytes], start: int, end: int | None) -> Iterator[bytes]:
    with stream:
        stream.seek(start)
        left = None if end is None else end - start
        while left is None or left > 0:
            chunk = stream.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
            if not chunk:
                return
            if left is not None:
                left -= len(chunk)
            yield chunk
