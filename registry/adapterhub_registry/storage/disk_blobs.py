"""Blobs in a folder.

blobs/sha256/ab/cd/<64 hex>  written once: temporary file, fsync, rename, fsync of the folder
uploads/<random>             an upload in progress; removed when it fails, swept at the start after a crash
uploads/parts/<upload>/      of one multipart upload:
    run-<random>             the parts that came in order; becomes the blob
    <number>-<etag>          another part, or a link that names a part of a run: `run-<random>:<start>:<end>`, no file
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, BinaryIO, cast

from adapterhub.core.disk.files import open_plain, sync_folder
from adapterhub.core.errors import BlobNotFound, Conflict, Malformed, shown
from adapterhub_registry.access.signing import LONGEST_TTL_S
from adapterhub_registry.storage.blobs import (
    CHUNK_BYTES,
    ETAG,
    LEFTOVER_S,
    RESERVE_BYTES,
    Hashes,
    Kept,
    StoredBlob,
    StoreUnreachable,
    UploadId,
    check_room,
    digest_of,
    path_of,
    raising_disk_full,
)

ETAG_DIGITS = 32
MOST_RUNS = 1000
MOST_UPLOADS = 8
"""How many uploads of one object to one repository by one user may have parts here at the same time."""
_NO_SUCH_PART = "the list of parts names a part that the server has not received"


class DiskBlobs:
    """A `BlobStore` in a folder, created when absent. Several processes can share it."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs" / "sha256"
        self._uploads = root / "uploads"
        self._parts = self._uploads / "parts"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._parts.mkdir(parents=True, exist_ok=True)
        self._runs: OrderedDict[UploadId, _Run] = OrderedDict()
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
        return _read(self.file(sha256), start, end)

    def file(self, sha256: str, /) -> BinaryIO:
        """The blob as an open file."""
        path = self._path(sha256)
        try:
            return cast("BinaryIO", open_plain(path))
        except FileNotFoundError:
            raise BlobNotFound(f"no blob {sha256}") from None
        except OSError as error:
            if error.errno:
                raise
            raise BlobNotFound(f"no blob {sha256}: `{shown(str(path), 200)}` is not a regular file") from None

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

    def put_part(self, upload: UploadId, number: int, chunks: Iterable[bytes], size: int, total: int) -> str:
        """Keep one part: behind the parts before it where these came in order, else in a file of its own."""
        folder = self._part_folder(upload)
        if not folder.is_dir():
            self._check_others(upload)
        with raising_disk_full():
            folder.mkdir(exist_ok=True)
        if number == 1:
            self._runs[upload] = _Run(folder / f"run-{secrets.token_hex(8)}", total)
            while len(self._runs) > MOST_RUNS:
                self._runs.popitem(last=False)  # its parts stay, and are joined by copying them
        with self._held_run(upload, waits=False) as run:
            if run is not None and len(run.etags) == number - 1:
                return run.append(_exactly(chunks, size, number))
        with self._temporary() as (stream, temporary):
            hasher = hashlib.sha256()
            for chunk in _exactly(chunks, size, number):
                hasher.update(chunk)
                stream.write(chunk)
            stream.flush()
            etag = hasher.hexdigest()[:ETAG_DIGITS]
            temporary.replace(folder / f"{number}-{etag}")
        return etag

    def _check_others(self, upload: UploadId) -> None:
        """Remove the parts of one object whose links have ended; each upload keeps its own, so their number is bounded.

        Raises:
            Conflict: too many uploads of the object are under way.
        """
        under_way = 0
        for other in self._parts.glob(f"{upload.checked().object}-*"):
            with contextlib.suppress(FileNotFoundError):
                if other.stat().st_mtime < time.time() - LONGEST_TTL_S:
                    shutil.rmtree(other, ignore_errors=True)
                else:
                    under_way += 1
        if under_way >= MOST_UPLOADS:
            raise Conflict(f"{under_way} uploads of this file are under way; try again in an hour at the latest")

    @contextlib.contextmanager
    def _held_run(self, upload: UploadId, *, waits: bool) -> Iterator[_Run | None]:
        """The parts of an upload that came in order, held; None without any, and unless it `waits`, for a busy run."""
        run = self._runs.get(upload)
        if run is None or not run.busy.acquire(blocking=waits):
            yield None
            return
        try:
            yield run
        finally:
            run.busy.release()

    def complete(
        self, upload: UploadId, parts: Sequence[tuple[int, str]], expected_sha256: str, size: int
    ) -> StoredBlob:
        """Join parts. When the result is wrong the parts stay, so that the client can send one of them again."""
        folder = self._part_folder(upload)
        try:
            return self._joined(upload, folder, parts, expected_sha256, size)
        except FileNotFoundError:  # the client asked twice, and the other call removed the parts
            if not self._is_right(expected_sha256):
                raise Malformed(_NO_SUCH_PART) from None
            return self._stored(expected_sha256, size)

    def _joined(
        self, upload: UploadId, folder: Path, parts: Sequence[tuple[int, str]], expected_sha256: str, size: int
    ) -> StoredBlob:
        with (
            self._held_run(upload, waits=True) as run,
            contextlib.suppress(FileNotFoundError),
        ):  # another server's parts
            if run is not None and run.etags == [etag for _, etag in parts]:
                blob = run.hashes.checked(expected_sha256)
                with raising_disk_full(), run.path.open("r+b") as stream:
                    stream.truncate(size)  # a part that failed may have left bytes
                    self._publish(stream, run.path, blob.sha256)
                self._forget(upload)
                return blob
        places = [_place_of(folder / f"{number}-{etag}") for number, etag in parts if ETAG.fullmatch(etag)]
        found = [place for place in places if place is not None]
        if len(found) != len(parts):
            if self._is_right(expected_sha256):  # an earlier call completed the upload, and its answer was lost
                return self._stored(expected_sha256, size)
            raise Malformed(_NO_SUCH_PART)
        chunks = (chunk for path, start, end in found for chunk in _read(path.open("rb"), start, end))
        blob = self.put(chunks, expected_sha256, size)
        self._forget(upload)
        return blob

    def _forget(self, upload: UploadId) -> None:
        self._runs.pop(upload, None)
        shutil.rmtree(self._part_folder(upload), ignore_errors=True)

    def _part_folder(self, upload: UploadId) -> Path:
        return self._parts / "-".join(upload.checked())

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

    def upload_link(self, _upload: UploadId, _part: int | None = None, /) -> None:
        """None: clients send bytes to this server."""

    def take(self, _sent: str, _expected_sha256: str, _size: int, /) -> None:
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
        """Every blob in the folder, sorted by the first four digits."""
        for folder in sorted(self._blobs.glob("??/??")):
            with os.scandir(folder) as listed:
                entries = list(listed)
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat()
                    yield Kept(entry.name, facts.st_size, facts.st_mtime)

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


class _Run:
    """Parts from the first on that came one after the other, in one file and hashed on the way.

    Only this process appends to the file, one part at a time (`busy`). What a link names in it never changes.
    """

    def __init__(self, path: Path, total: int) -> None:
        self.path = path
        self.hashes = Hashes(total)
        self.etags: list[str] = []
        self.busy = threading.Lock()

    def append(self, chunks: Iterable[bytes]) -> str:
        """Append a part; its ETag begins the digest of all bytes so far. After an error, the run is as before."""
        start, hashes = self.hashes.size, self.hashes.copy()
        with raising_disk_full(), self.path.open("r+b" if start else "w+b") as stream:
            stream.seek(start)
            for chunk in hashes.over(chunks):
                stream.write(chunk)
        etag = hashes.sha256[:ETAG_DIGITS]
        link = self.path.with_name(f"{len(self.etags) + 1}-{etag}")
        link.unlink(missing_ok=True)  # the same part of an earlier run
        link.symlink_to(f"{self.path.name}:{start}:{hashes.size}")
        self.hashes = hashes
        self.etags.append(etag)
        return etag


def _place_of(part: Path) -> tuple[Path, int, int | None] | None:
    """The file, start and end of a part; None for one that is not here."""
    if part.is_symlink():
        name, start, end = str(part.readlink()).split(":")
        return part.with_name(name), int(start), int(end)
    return (part, 0, None) if part.is_file() else None


def _exactly(chunks: Iterable[bytes], size: int, number: int) -> Iterator[bytes]:
    """The chunks of a part; raises `Malformed` for more or fewer than `size` bytes."""
    count = 0
    for chunk in chunks:
        count += len(chunk)
        if count > size:
            break
        yield chunk
    if count != size:
        raise Malformed(f"part {number}: expected {size} bytes, got {'more' if count > size else count}")


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
