"""Stores bytes by their digest: `BlobStore`, which the rest of the server uses.

`DiskBlobs` keeps blobs in a folder. `S3Blobs` keeps them in a bucket, which clients write and read directly through
links that this server signs.

    blobs/sha256/ab/cd/<64 hex>  written once: temporary file, fsync, rename, fsync of the folder; of many at once, each
                                 step for all of them before the next one
    uploads/<random>             an upload in progress, or a blob that goes; swept at the start after a crash
    uploads/parts/<upload>/      of one multipart upload:
        run-<random>             the parts that came in order; becomes the blob
        <number>-<etag>          another part, or a link to a part of a run: `run-<random>:<start>:<end>`, no file
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Final, NamedTuple, Protocol, cast

from adapterhub.core.disk.files import open_plain, sync_folder
from adapterhub.core.errors import BlobNotFound, Conflict, DigestMismatch, DiskFull, Malformed, shown
from adapterhub_registry.access.tokens import LONGEST_TTL_S
from adapterhub_registry.names import SHA256

CHUNK_BYTES = 1 << 20
LEFTOVER_S = 24 * 3600
RESERVE_BYTES = 64 << 20
SYNCED_AT_ONCE: Final = 16
"""How many files wait for the disk at the same time, which the file system joins into few waits."""
_UPLOAD_PART = re.compile(r"[A-Za-z0-9_-]{8,48}")
ETAG = re.compile(r"[A-Za-z0-9_-]{8,64}")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoreUnreachable(Exception):
    """The blob store does not answer; the text holds the reason. Clients try again later."""


class UploadId(NamedTuple):
    """One upload: what is sent, for whom and where (`object`), and the answer that announced it (`owner`).

    Two uploads of one object at the same time share nothing, so that neither removes the parts of the other.
    """

    object: str
    owner: str

    def checked(self) -> UploadId:
        """Return the same id; raises `Malformed` for one that could become a path."""
        if not all(_UPLOAD_PART.fullmatch(part) for part in self):
            raise Malformed("not an upload id, expected one that this server made")
        return self


def wrong_size(size: int, announced: int) -> Malformed:
    """Return the error for an upload of another number of bytes than was announced."""
    return Malformed(f"got {size} bytes, expected {announced} as announced; send the file again")


class StoredBlob(NamedTuple):
    """A stored blob: its `sha256` in hex, the git object name of the same bytes, and their number."""

    sha256: str
    git_sha1: str
    size: int


class KeptBlob(NamedTuple):
    """A blob in the store: its `sha256`, the number of its bytes, and when they were last uploaded (s since 1970)."""

    sha256: str
    size: int
    uploaded_s: float


@dataclass(frozen=True, slots=True)
class FreedBlobs:
    """The number of things that were removed, and of their bytes."""

    number: int = 0
    bytes: int = 0


PutNext = Callable[[Iterable[bytes], str | None, int], StoredBlob]
"""Stores chunks, given their sha256 if it was announced, and their bytes counted; errors as of `BlobStore.put`."""


class BlobReader(Protocol):
    """Reads the bytes of blobs, by the hex of their sha256."""

    def size(self, sha256: str) -> int:
        """Return the size of a blob in bytes; raises `BlobNotFound`."""
        ...

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Return the bytes `[start, end)` in chunks; raises `BlobNotFound` before the first chunk."""
        ...


class BlobStore(BlobReader, Protocol):
    """Immutable bytes by the hex of their sha256. Content goes in and out as streams, never as paths."""

    def holds(self, wanted: Mapping[str, int]) -> set[str]:
        """Return the digests of `wanted` (sha256: size) that are stored now with exactly that size; never cached."""
        ...

    def room(self) -> int | None:
        """Return how many more bytes fit; None when the store cannot tell."""
        ...

    def file(self, sha256: str, /) -> BinaryIO | None:
        """Return the blob as an open file; None if the store does not keep blobs as files. Raises `BlobNotFound`."""
        ...

    def put(self, chunks: Iterable[bytes], expected_sha256: str | None = None, size: int | None = None) -> StoredBlob:
        """Store `chunks`; keep nothing unless digest and size match those announced.

        The new bytes replace damaged ones that are stored under the same digest. A blob that is stored already counts
        as uploaded now.
        """
        ...

    def together(self) -> AbstractContextManager[PutNext]:
        """Store many blobs as `put` does: all are stored when the block ends, none after an error in it."""
        ...

    def put_part(self, upload: UploadId, number: int, chunks: Iterable[bytes], size: int, total: int) -> str:
        """Keep part `number` (from 1), exactly `size` bytes, of an upload of `total`; return its ETag."""
        ...

    def complete(
        self, upload: UploadId, parts: Sequence[tuple[int, str]], expected_sha256: str, size: int
    ) -> StoredBlob:
        """Join `(number, ETag)` parts into one blob, then remove them."""
        ...

    def upload_link(self, upload: UploadId, part: int | None = None, /) -> str | None:
        """Return a link through which a client sends an upload, or a part, directly to the store.

        None without such links.
        """
        ...

    def take(self, sent: str, expected_sha256: str, size: int, /) -> StoredBlob | None:
        """Check and store what came of an object through `upload_link`; None when nothing did. Drops wrong bytes."""
        ...

    def download_link(self, sha256: str, /) -> str | None:
        """Return a short-lived link through which a client reads the blob directly; None without such links."""
        ...

    def sweep(self) -> None:
        """Remove what abandoned uploads left a day ago or longer."""
        ...

    def kept(self, after: str = "") -> Iterator[KeptBlob]:
        """Return the store's blobs past a digest, whether the database names them or not, in the order of digests."""
        ...

    def set_aside(self, blobs: Iterable[KeptBlob], /) -> None:
        """Prepare `remove`, so that what arrives while it works is found later; call it before you take a lock."""
        ...

    def remove(self, digests: Sequence[str], before_s: float, /) -> set[str]:
        """Remove the blobs that were last uploaded before this time (s since 1970), and return their digests."""
        ...

    def check(self) -> None:
        """Raise `StoreUnreachable` when the store does not answer."""
        ...


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
    """Return the sha256 of some chunks, in hex."""
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.hexdigest()


def path_of(sha256: str) -> str:
    """Return the relative path of a blob, in two levels of folders; raises `Malformed` for anything but a sha256."""
    if not SHA256.fullmatch(sha256):
        raise Malformed(f"blob `{sha256[:80]!r}`: expected 64 lower-case hex digits")
    return f"{sha256[:2]}/{sha256[2:4]}/{sha256}"


class BlobHashes:
    """The digests of a stream of bytes, `announced` of them; None when their number is not known in advance."""

    def __init__(self, announced: int | None) -> None:
        self.announced = announced
        self.size = 0
        # git names a file by the sha1 of `blob <length>\0` and its bytes; here that is a name and proves nothing
        self._git = hashlib.sha1(b"blob %d\x00" % (announced or 0), usedforsecurity=False)
        self._sha256 = hashlib.sha256()

    def over(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the same chunks, hashed on the way; raises `Malformed` when they exceed the announced size."""
        for chunk in chunks:
            self.size += len(chunk)
            if self.announced is not None and self.size > self.announced:
                raise Malformed(
                    f"more than the {self.announced} bytes that were announced",
                    hint="announce the right size, and send the file again",
                )
            self._sha256.update(chunk)
            self._git.update(chunk)
            yield chunk

    def copy(self) -> BlobHashes:
        """Return the same digests; each copy goes on for itself."""
        twin = BlobHashes(self.announced)
        twin.size, twin._git, twin._sha256 = self.size, self._git.copy(), self._sha256.copy()
        return twin

    @property
    def sha256(self) -> str:
        """The sha256 of the bytes so far, in hex."""
        return self._sha256.hexdigest()

    def checked(self, expected_sha256: str | None) -> StoredBlob:
        """Return the blob, at the end of the stream.

        Raises `Malformed` for a wrong size, `DigestMismatch` for wrong bytes.
        """
        if self.announced is not None and self.size != self.announced:
            raise wrong_size(self.size, self.announced)
        sha256 = self._sha256.hexdigest()
        if expected_sha256 is not None and sha256 != expected_sha256:
            raise DigestMismatch("upload", expected=expected_sha256, actual=sha256)
        return StoredBlob(sha256, self._git.hexdigest(), self.size)


ETAG_DIGITS = 32
MOST_RUNS = 1000
MOST_UPLOADS = 8
"""How many uploads of one object to one repository by one user may have parts here at the same time."""
_NO_SUCH_PART = "the list of parts names a part that the server has not received; send that part again"


class DiskBlobs:
    """A `BlobStore` in a folder, created when absent. Several processes can share it."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs" / "sha256"
        self._uploads = root / "uploads"
        self._parts = self._uploads / "parts"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._parts.mkdir(parents=True, exist_ok=True)
        self._runs: OrderedDict[UploadId, _PartRun] = OrderedDict()
        self.sweep()

    def _path(self, sha256: str) -> Path:
        return self._blobs / path_of(sha256)

    def holds(self, wanted: Mapping[str, int]) -> set[str]:
        """Return the digests of `wanted` (sha256: size) that are stored with exactly that size."""
        found = set()
        for sha256, size in wanted.items():
            with contextlib.suppress(BlobNotFound, OSError):
                if self.size(sha256) == size:
                    found.add(sha256)
        return found

    def room(self) -> int | None:
        """Return the free space of the disk, less a reserve for the database."""
        disk = shutil.disk_usage(self._uploads)
        return max(0, disk.free - min(RESERVE_BYTES, disk.total // 100))

    def size(self, sha256: str) -> int:
        """Return the size of a blob in bytes."""
        try:
            return self._path(sha256).stat().st_size
        except FileNotFoundError:
            raise BlobNotFound(f"no blob {sha256}") from None

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Return the bytes `[start, end)` in chunks of a mebibyte."""
        return _read(self.file(sha256), start, end)

    def file(self, sha256: str, /) -> BinaryIO:
        """Return the blob as an open file."""
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
            hashes = BlobHashes(size)
            for chunk in hashes.over(chunks):
                stream.write(chunk)
            blob = hashes.checked(expected_sha256)
            self._publish(stream, temporary, blob.sha256)
        return blob if size is not None else self._stored(blob.sha256, blob.size)

    @contextlib.contextmanager
    def together(self) -> Iterator[PutNext]:
        """Store many blobs: several files wait for the disk at once, where one after the other takes ten times as long.

        The order is that of `put`: the bytes of each file are on the disk before any of them has its name.
        """
        waiting: dict[str, Path] = {}

        def put(chunks: Iterable[bytes], expected_sha256: str | None, size: int) -> StoredBlob:
            check_room(self, size)
            with contextlib.ExitStack() as refused:
                path = self._uploads / secrets.token_hex(16)
                refused.callback(path.unlink, missing_ok=True)
                hashes = BlobHashes(size)
                with raising_disk_full(), path.open("xb") as stream:
                    for chunk in hashes.over(chunks):
                        stream.write(chunk)
                    stream.flush()
                    os.fchmod(stream.fileno(), 0o444)
                blob = hashes.checked(expected_sha256)
                if blob.sha256 not in waiting and not self._is_here(blob.sha256):
                    waiting[blob.sha256] = path
                    refused.pop_all()
            return blob

        try:
            yield put
            self._name(waiting)
        finally:
            for path in waiting.values():
                path.unlink(missing_ok=True)

    def _name(self, waiting: Mapping[str, Path]) -> None:
        """Give files their places among the blobs."""
        places = {sha256: self._path(sha256) for sha256 in waiting}
        folders = {path.parent for path in places.values()}
        with ThreadPoolExecutor(min(SYNCED_AT_ONCE, len(waiting) or 1)) as pool, raising_disk_full():
            for _ in pool.map(_sync_file, waiting.values()):
                pass
            for sha256, temporary in waiting.items():
                places[sha256].parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(places[sha256])
            for _ in pool.map(sync_folder, sorted(folders)):
                pass

    def put_part(self, upload: UploadId, number: int, chunks: Iterable[bytes], size: int, total: int) -> str:
        """Keep one part: behind the parts before it if these came in order, otherwise in a file of its own."""
        folder = self._part_folder(upload)
        if not folder.is_dir():
            self._check_others(upload)
        with raising_disk_full():
            folder.mkdir(exist_ok=True)
        if number == 1:
            self._runs[upload] = _PartRun(folder / f"run-{secrets.token_hex(8)}", total)
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
    def _held_run(self, upload: UploadId, *, waits: bool) -> Iterator[_PartRun | None]:
        """Provide the parts of an upload that came in order, held.

        None without any, and unless it `waits`, for a busy run.
        """
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

    def _is_here(self, sha256: str) -> bool:
        """Return whether the blob is stored and undamaged; it counts as uploaded now."""
        if self._is_right(sha256):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile; the new file takes its place
                os.utime(self._path(sha256))
                return True
        return False

    def _publish(self, stream: IO[bytes], temporary: Path, sha256: str) -> None:
        path = self._path(sha256)
        if self._is_here(sha256):
            return
        stream.flush()
        os.fchmod(stream.fileno(), 0o444)
        # fsync before rename: a power cut must not leave a complete name on an incomplete blob
        os.fsync(stream.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)
        sync_folder(path.parent)

    def _is_right(self, sha256: str) -> bool:
        """Return whether the blob is stored, readable and undamaged."""
        try:
            return digest_of(self.open(sha256)) == sha256
        except (BlobNotFound, OSError):
            return False

    def _stored(self, sha256: str, size: int) -> StoredBlob:
        """Return a blob that is stored already, with its git object name."""
        hashes = BlobHashes(size)
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

    def kept(self, after: str = "") -> Iterator[KeptBlob]:
        """Yield the blobs in the folder past a digest; only the names of one folder are in memory."""
        for first in _entries(self._blobs, after[:2]):
            past = after if first.name == after[:2] else ""
            for second in _entries(first.path, past[2:4]):
                for entry in _entries(second.path, past):
                    with contextlib.suppress(FileNotFoundError):
                        facts = entry.stat()
                        if entry.name > after:
                            yield KeptBlob(entry.name, facts.st_size, facts.st_mtime)

    def set_aside(self, _blobs: Iterable[KeptBlob], /) -> None:
        """Nothing: `remove` itself looks again at a file that no upload finds any more."""

    def remove(self, digests: Sequence[str], before_s: float, /) -> set[str]:
        """Remove blobs; those that were uploaded since `before_s` stay, also those that arrive at this moment.

        The time counts only of a file that no upload finds any more: an upload could make the file new again between a
        look at its time and its removal.
        """
        removed = set()
        for sha256 in digests:
            path, aside = self._path(sha256), self._uploads / secrets.token_hex(16)
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime >= before_s:
                    continue
                path.rename(aside)
                if aside.stat().st_mtime < before_s:
                    aside.unlink()
                    removed.add(sha256)
                else:
                    aside.replace(path)
                    sync_folder(path.parent)
        return removed


def _entries(folder: Path | str, least: str) -> list[os.DirEntry[str]]:
    """Return the entries of a folder by name, from `least` on; none if the folder is gone."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
        return sorted((entry for entry in found if entry.name >= least), key=lambda entry: entry.name)
    return []


def _sync_file(path: Path) -> None:
    """Wait until the bytes of a file are on the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


class _PartRun:
    """Parts from the first on that came one after the other, in one file and hashed on the way.

    Only this process appends to the file, one part at a time (`busy`). What a link names in it never changes.
    """

    def __init__(self, path: Path, total: int) -> None:
        self.path = path
        self.hashes = BlobHashes(total)
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
    """Return the file, start and end of a part; None for one that is not here."""
    if part.is_symlink():
        name, start, end = str(part.readlink()).split(":")
        return part.with_name(name), int(start), int(end)
    return (part, 0, None) if part.is_file() else None


def _exactly(chunks: Iterable[bytes], size: int, number: int) -> Iterator[bytes]:
    """Yield the chunks of a part; raises `Malformed` for more or fewer than `size` bytes."""
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
