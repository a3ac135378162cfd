"""Stores bytes by their digest: `BlobStore`, which the rest of the server uses.

`DiskBlobs` keeps blobs in a folder. `S3Blobs` keeps them in a bucket, which clients write and read directly through
links that this server signs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, Protocol

from adapterhub.core.errors import DigestMismatch, DiskFull, Malformed
from adapterhub_registry.names import SHA256

CHUNK_BYTES = 1 << 20
LEFTOVER_S = 24 * 3600
RESERVE_BYTES = 64 << 20
_UPLOAD_PART = re.compile(r"[A-Za-z0-9_-]{8,48}")
ETAG = re.compile(r"[A-Za-z0-9_-]{8,64}")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoreUnreachable(Exception):
    """The blob store does not answer; the text says why. Clients try again later."""


class UploadId(NamedTuple):
    """One upload: what is sent, for whom and where (`object`), and the answer that announced it (`owner`).

    Two uploads of one object at the same time share nothing, so that neither removes what the other still needs.
    """

    object: str
    owner: str

    def checked(self) -> UploadId:
        """The same id; raises `Malformed` for one that could become a path."""
        if not all(_UPLOAD_PART.fullmatch(part) for part in self):
            raise Malformed("not an upload id")
        return self


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

    def file(self, sha256: str, /) -> BinaryIO | None:
        """The blob as an open file; None where blobs are no files. Raises `BlobNotFound`."""
        ...

    def put(self, chunks: Iterable[bytes], expected_sha256: str | None = None, size: int | None = None) -> StoredBlob:
        """Store `chunks`; keep nothing unless digest and size match those announced.

        The new bytes replace damaged ones that are stored under the same digest. A blob that is stored already counts
        as uploaded now.
        """
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
        """A link through which a client sends an upload, or a part, directly to the store; None without such links."""
        ...

    def take(self, sent: str, expected_sha256: str, size: int, /) -> StoredBlob | None:
        """Check and store what came of an object through `upload_link`; None when nothing did. Drops wrong bytes."""
        ...

    def download_link(self, sha256: str, /) -> str | None:
        """A short-lived link through which a client reads the blob directly; None without such links."""
        ...

    def sweep(self) -> None:
        """Remove what abandoned uploads left a day ago or longer."""
        ...

    def kept(self) -> Iterator[Kept]:
        """Every blob in the store, whether the database names it or not; those with one first digit come together."""
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

    def copy(self) -> Hashes:
        """The same digests; each copy goes on for itself."""
        twin = Hashes(self.announced)
        twin.size, twin._git, twin._sha256 = self.size, self._git.copy(), self._sha256.copy()
        return twin

    @property
    def sha256(self) -> str:
        """The sha256 of the bytes so far, in hex."""
        return self._sha256.hexdigest()

    def checked(self, expected_sha256: str | None) -> StoredBlob:
        """The blob, at the end of the stream; raises `Malformed` for a wrong size, `DigestMismatch` for wrong bytes."""
        if self.announced is not None and self.size != self.announced:
            raise Malformed(f"got {self.size} bytes, {self.announced} were announced")
        sha256 = self._sha256.hexdigest()
        if expected_sha256 is not None and sha256 != expected_sha256:
            raise DigestMismatch("upload", expected=expected_sha256, actual=sha256)
        return StoredBlob(sha256, self._git.hexdigest(), self.size)
