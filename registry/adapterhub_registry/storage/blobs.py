"""Bytes by digest. `BlobStore` is all that the rest of the server knows of where they lie; `DiskBlobs` is a folder.

`S3Blobs` (in `s3_blobs`) is a bucket: clients send and fetch there themselves, by links that this server signs.

blobs/sha256/ab/cd/<64 hex>   written once: temporary file, fsync, rename, fsync of the folder
uploads/<random>              what is on its way; removed when it fails, swept at the start when left behind
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
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from adapterhub.core.disk.files import sync_folder
from adapterhub.core.errors import BlobNotFound, DigestMismatch, DiskFull, Malformed

CHUNK_BYTES = 1 << 20
LEFTOVER_S = 24 * 3600
RESERVE_BYTES = 64 << 20
HEX = re.compile(r"[0-9a-f]{64}")
UPLOAD = re.compile(r"[A-Za-z0-9_-]{8,64}")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoreUnreachable(Exception):
    """The bytes cannot be reached now; the text says why. Clients try again later."""


class StoredBlob(NamedTuple):
    """What was stored: `sha256` in hex, the git object name of the same bytes, their number."""

    sha256: str
    git_sha1: str
    size: int


class BlobStore(Protocol):
    """Bytes that never change, by the hex of their sha256. Everything is a stream; nothing is a path."""

    def holds(self, wanted: Mapping[str, int]) -> set[str]:
        """Those of `wanted` (sha256: size) of which exactly so many bytes lie here now; nothing is remembered."""
        ...

    def room(self) -> int | None:
        """How many more bytes fit; None where that is not known."""
        ...

    def size(self, sha256: str) -> int:
        """How many bytes; raises `BlobNotFound`."""
        ...

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes `[start, end)` in chunks; raises `BlobNotFound` before the first."""
        ...

    def put(self, chunks: Iterable[bytes], expected_sha256: str | None = None, size: int | None = None) -> StoredBlob:
        """Store what `chunks` gives; nothing is kept unless digest and size are those announced.

        It takes the place of bytes that are stored under the same digest and are damaged.
        """
        ...

    def put_part(self, upload_id: str, number: int, chunks: Iterable[bytes], size: int) -> str:
        """Keep part `number` (from 1) of an upload, exactly `size` bytes; its ETag. The same part again replaces it."""
        ...

    def complete(self, upload_id: str, parts: Sequence[tuple[int, str]], expected_sha256: str, size: int) -> StoredBlob:
        """Join `(number, ETag)` parts into one blob and drop them."""
        ...

    def upload_link(self, upload_id: str, part: int | None = None) -> str | None:
        """Where a client may send an upload, or part of it, without passing this server; None when nowhere."""
        ...

    def take(self, upload_id: str, expected_sha256: str, size: int) -> StoredBlob | None:
        """Check what came by `upload_link` and store it; None when nothing came. What is wrong is dropped."""
        ...

    def download_link(self, sha256: str) -> str | None:
        """Where a client may fetch the bytes for a while without passing this server; None when nowhere."""
        ...

    def sweep(self) -> None:
        """Remove what uploads that were given up left a day ago or longer."""
        ...

    def check(self) -> None:
        """Raise `StoreUnreachable` when the bytes cannot be reached."""
        ...


class DiskBlobs:
    """A `BlobStore` in a folder, which is made when absent. Safe for several processes."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs" / "sha256"
        self._uploads = root / "uploads"
        self._parts = self._uploads / "parts"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._parts.mkdir(parents=True, exist_ok=True)
        self.sweep()

    def _path(self, sha256: str) -> Path:
        if not HEX.fullmatch(sha256):
            raise Malformed(f"blob `{sha256[:80]!r}`: expected 64 lower-case hex digits")
        return self._blobs / sha256[:2] / sha256[2:4] / sha256

    def holds(self, wanted: Mapping[str, int]) -> set[str]:
        """Those of `wanted` (sha256: size) of which exactly so many bytes lie here."""
        found = set()
        for sha256, size in wanted.items():
            with contextlib.suppress(BlobNotFound, OSError):
                if self.size(sha256) == size:
                    found.add(sha256)
        return found

    def room(self) -> int | None:
        """What is free on the disk, but for a reserve with which the database can go on."""
        disk = shutil.disk_usage(self._uploads)
        return max(0, disk.free - min(RESERVE_BYTES, disk.total // 100))

    def size(self, sha256: str) -> int:
        """How many bytes."""
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
        """Store what `chunks` gives, in constant memory.

        Raises:
            DigestMismatch: the digest is not `expected_sha256`.
            Malformed: more or fewer than `size` bytes came.
            DiskFull: no room. In every case nothing is kept.
        """
        refuse_no_room(self, size or 0)
        with self._temporary() as (stream, temporary):
            hasher, git, count = hashlib.sha256(), git_hasher(size), 0
            for chunk in chunks:
                count += len(chunk)
                if size is not None and count > size:
                    raise Malformed(f"more than the {size} bytes that were announced")
                hasher.update(chunk)
                git.update(chunk)
                stream.write(chunk)
            if size is not None and count != size:
                raise Malformed(f"{count} bytes came, {size} were announced")
            sha256 = hasher.hexdigest()
            if expected_sha256 is not None and sha256 != expected_sha256:
                raise DigestMismatch("upload", expected=expected_sha256, actual=sha256)
            self._publish(stream, temporary, sha256)
            git_sha1 = git.hexdigest() if size is not None else self._git_sha1(sha256, count)
        return StoredBlob(sha256, git_sha1, count)

    def put_part(self, upload_id: str, number: int, chunks: Iterable[bytes], size: int) -> str:
        """Keep one part."""
        folder = self._part_folder(upload_id)
        with full_disk_told():
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
        """Join parts; the parts are kept when the result is not what was announced, so that one can be sent again."""
        folder = self._part_folder(upload_id)
        paths = [folder / f"{number}-{etag}" for number, etag in parts if UPLOAD.fullmatch(etag)]
        if len(paths) != len(parts) or not all(path.is_file() for path in paths):
            if self._is_right(expected_sha256):  # completed before, and the answer was lost
                return StoredBlob(expected_sha256, self._git_sha1(expected_sha256, size), size)
            raise Malformed("the list of parts names one that was not received")
        blob = self.put((chunk for path in paths for chunk in _read(path.open("rb"), 0, None)), expected_sha256, size)
        shutil.rmtree(folder, ignore_errors=True)
        return blob

    def _part_folder(self, upload_id: str) -> Path:
        if not UPLOAD.fullmatch(upload_id):
            raise Malformed("not an upload")
        return self._parts / upload_id

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[IO[bytes], Path]]:
        path = self._uploads / secrets.token_hex(16)
        try:
            with full_disk_told(), path.open("xb") as stream:
                yield stream, path
        finally:
            path.unlink(missing_ok=True)

    def _publish(self, stream: IO[bytes], temporary: Path, sha256: str) -> None:
        if self._is_right(sha256):
            return
        path = self._path(sha256)
        stream.flush()
        os.fchmod(stream.fileno(), 0o444)
        # fsync before rename: a power cut must not leave a complete name on an incomplete blob
        os.fsync(stream.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)
        sync_folder(path.parent)

    def _is_right(self, sha256: str) -> bool:
        """Whether the bytes lie here, can be read, and are what their name says."""
        try:
            return digest_of(self.open(sha256)) == sha256
        except (BlobNotFound, OSError):
            return False

    def _git_sha1(self, sha256: str, size: int) -> str:
        hasher = git_hasher(size)
        for chunk in self.open(sha256):
            hasher.update(chunk)
        return hasher.hexdigest()

    def upload_link(self, upload_id: str, part: int | None = None) -> str | None:  # noqa: ARG002 - of the protocol
        """None: bytes come through this server."""
        return None

    def take(self, upload_id: str, expected_sha256: str, size: int) -> StoredBlob | None:  # noqa: ARG002 - as above
        """None: there is no other way in."""
        return None

    def download_link(self, sha256: str) -> str | None:  # noqa: ARG002 - as above
        """None: bytes go through this server."""
        return None

    def check(self) -> None:
        """Raise when the folder is gone."""
        if not self._blobs.is_dir():
            raise StoreUnreachable("the folder of the blobs is gone")

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


def refuse_no_room(blobs: BlobStore, more_bytes: int) -> None:
    """Raise `DiskFull` when so many bytes do not fit."""
    room = blobs.room() if more_bytes else None
    if room is not None and more_bytes > room:
        raise DiskFull(f"the server has room for {room} bytes more, {more_bytes} were announced; nothing was kept")


@contextlib.contextmanager
def full_disk_told() -> Iterator[None]:
    """Turn the errors of a disk without room into `DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull("the server has no room for this upload; nothing was kept") from error
        raise


def digest_of(chunks: Iterable[bytes]) -> str:
    """The hex of the sha256 of bytes that come in chunks."""
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.hexdigest()


def git_hasher(size: int | None) -> hashlib._Hash:
    """The hasher that makes the git object name of a file of `size` bytes, once it got the bytes."""
    # git names a blob by the sha1 of `blob <length>\0` and its bytes; it is a name here, no proof
    return hashlib.sha1(b"blob %d\x00" % (size or 0), usedforsecurity=False)


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
