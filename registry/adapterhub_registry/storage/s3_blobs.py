"""A `BlobStore` in an S3 bucket, which several servers share.

<prefix>blobs/sha256/ab/cd/<64 hex>   written only with bytes whose digest was checked
<prefix>staging/<object>/<owner>      an upload that a client sent through a signed link; a part: `<owner>/<n>`
<prefix>checking/<random>             an upload that is being checked; no signed link leads here

The holder of an upload link can write its key until the link expires, even after the check. The server therefore first
copies an upload to a secret key, reads it there once, and copies it to its name from there.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Final

from adapterhub.core.errors import BlobNotFound, DigestMismatch, Malformed
from adapterhub_registry.storage.blobs import (
    LEFTOVER_S,
    Hashes,
    Kept,
    StoredBlob,
    StoreUnreachable,
    UploadId,
    digest_of,
    path_of,
)
from adapterhub_registry.storage.s3_bucket import COPY_BYTES, Bucket

SMALL_BYTES: Final = 64 * 1024
KEPT_BYTES: Final = 16 << 20
LOOKS_AT_ONCE: Final = 16


class S3Blobs:
    """A `BlobStore` in a bucket. Any number of servers can share it; each caches a few small blobs."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._small = _SmallBlobs()

    # ------------------------------------------------------------ reading
    def holds(self, wanted: Mapping[str, int]) -> set[str]:
        """The digests of `wanted` (sha256: size) that the bucket has with exactly that size; looked up in parallel."""
        if not wanted:
            return set()
        with ThreadPoolExecutor(min(len(wanted), LOOKS_AT_ONCE)) as pool:
            sizes = pool.map(lambda sha256: self._bucket.size(_key(sha256)), wanted)
            return {sha256 for sha256, size in zip(wanted, sizes, strict=True) if size == wanted[sha256]}

    def room(self) -> int | None:
        """None: a bucket does not fill up."""
        return None

    def size(self, sha256: str) -> int:
        """The size of a blob in bytes."""
        small = self._small.get(sha256)
        size = len(small) if small is not None else self._bucket.size(_key(sha256))
        if size is None:
            raise BlobNotFound(f"no blob {sha256}")
        return size

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes `[start, end)` in chunks of about a mebibyte."""
        small = self._small.get(sha256)
        if small is not None:
            return iter([small[start:end]])
        if end is not None and end <= start:
            return iter([b""]) if self.size(sha256) is not None else iter(())
        found = self._bucket.get(_key(sha256), start, end)
        if found is None:
            raise BlobNotFound(f"no blob {sha256}")
        chunks, size, _ = found
        if size > SMALL_BYTES or start != 0 or (end is not None and end < size):
            return chunks
        content = b"".join(chunks)
        # the cache would go on serving damaged bytes after someone restored the blob in the bucket
        if digest_of([content]) == sha256:
            self._small.keep(sha256, content)
        return iter([content])

    def download_link(self, sha256: str, /) -> str | None:
        """A short-lived link through which a client reads the blob from the bucket."""
        return self._bucket.link("GET", _key(sha256))

    # ------------------------------------------------------------ writing
    def file(self, _sha256: str, /) -> None:
        """None: a bucket has no files."""

    def put(self, chunks: Iterable[bytes], expected_sha256: str | None = None, size: int | None = None) -> StoredBlob:
        """Store `chunks`: a small blob at once, a large one as a stream. Nothing is kept after an error.

        Raises:
            DigestMismatch: the digest is not `expected_sha256`.
            Malformed: `chunks` holds more or fewer than `size` bytes.
        """
        hashes = Hashes(size)
        source = hashes.over(chunks)
        first = b""
        for chunk in source:
            first += chunk
            if len(first) > SMALL_BYTES:
                return self._stream(first, source, hashes, expected_sha256)
        if size is None:  # git's name begins with the length, which is known only now
            hashes = Hashes(len(first))
            first = b"".join(hashes.over([first]))
        blob = hashes.checked(expected_sha256)
        self._bucket.put(_key(blob.sha256), first)  # even over the same bytes: `remove` looks at the time of the write
        self._small.keep(blob.sha256, first)
        return blob

    def _stream(self, first: bytes, source: Iterator[bytes], hashes: Hashes, expected_sha256: str | None) -> StoredBlob:
        checking = _checking()

        def whole() -> Iterator[bytes]:
            yield first
            yield from source
            # an error here aborts the upload, so no object ever exists at this key
            hashes.checked(expected_sha256)

        self._bucket.put(checking, whole(), hashes.announced)
        try:
            if hashes.announced is None:
                hashes = self._read(checking, hashes.size)
            blob = hashes.checked(expected_sha256)
            self._publish(checking, blob)
        finally:
            self._bucket.remove(checking)
        return blob

    def _read(self, key: str, size: int) -> Hashes:
        hashes = Hashes(size)
        for _ in hashes.over(self._content(key)):
            pass
        return hashes

    def _content(self, key: str) -> Iterator[bytes]:
        found = self._bucket.get(key)
        if found is None:
            raise StoreUnreachable("an object has disappeared from the bucket")
        return found[0]

    def _publish(self, checking: str, blob: StoredBlob) -> None:
        # replaces an existing object: clients send only what the server reported as missing or damaged
        key = _key(blob.sha256)
        if blob.size <= COPY_BYTES:
            if not self._bucket.copy(checking, key):
                raise StoreUnreachable("an object has disappeared from the bucket")
            return
        again = Hashes(blob.size)

        def whole() -> Iterator[bytes]:
            yield from again.over(self._content(checking))
            again.checked(blob.sha256)

        self._bucket.put(key, whole(), blob.size)

    # ------------------------------------------------------------ uploads that bypass this server
    def upload_link(self, upload: UploadId, part: int | None = None, /) -> str | None:
        """A short-lived link through which a client writes one staging key."""
        return self._bucket.link("PUT", _staging(upload, part))

    def take(self, sent: str, expected_sha256: str, size: int, /) -> StoredBlob | None:
        """Check what a client sent of an object and store it under its digest. Reads it once; drops wrong bytes.

        Of several uploads of the object it takes one, and leaves the others to the requests that follow them.

        Raises:
            DigestMismatch: the bytes have another digest.
            Malformed: the upload has another size.
        """
        problem: DigestMismatch | Malformed | None = None
        for item in self._bucket.items(_staging(UploadId(sent, "any-owner")).rpartition("/")[0]):
            if item.key.count("/") == 2:  # noqa: PLR2004 - no part of an upload
                try:
                    blob = self._taken(item.key, item.size, expected_sha256, size)
                except (DigestMismatch, Malformed) as error:
                    problem = error  # another client of the same user may have sent the right bytes
                    continue
                if blob is not None:
                    return blob
        if problem is not None:
            raise problem
        return None

    def _taken(self, staged: str, came: int, expected_sha256: str, size: int) -> StoredBlob | None:
        """As `take`, of one upload; None for one that another request took meanwhile."""
        checking = _checking()
        if came != size:
            self._bucket.remove(staged)
            raise Malformed(f"got {came} bytes, {size} were announced")
        try:
            if not self._bucket.copy(staged, checking):
                return None
            try:
                blob = self._read(checking, size).checked(expected_sha256)
            except (DigestMismatch, Malformed):
                self._bucket.remove(staged)
                raise
            self._publish(checking, blob)
        finally:
            self._bucket.remove(checking)
        self._bucket.remove(staged)
        return blob

    def put_part(self, upload: UploadId, number: int, chunks: Iterable[bytes], size: int, _total: int) -> str:
        """Keep one part that a client sent through this server."""
        hashes = Hashes(size)

        def whole() -> Iterator[bytes]:
            yield from hashes.over(chunks)
            hashes.checked(None)

        self._bucket.put(_staging(upload, number), whole(), size)
        return self._bucket.etag(_staging(upload, number))

    def complete(
        self, upload: UploadId, parts: Sequence[tuple[int, str]], expected_sha256: str, size: int
    ) -> StoredBlob:
        """Join parts. When the result is wrong the parts stay, so that the client can send one of them again."""
        found = [(self._bucket.get(_staging(upload, number)), etag) for number, etag in parts]
        opened = [part[0] for part, etag in found if part is not None and part[2] == etag]
        if len(opened) != len(parts) or not parts:
            if (
                self._bucket.size(_key(expected_sha256)) == size
            ):  # an earlier call completed the upload, and its answer was lost
                return self._read(_key(expected_sha256), size).checked(expected_sha256)
            raise Malformed("the list of parts names a part that the server has not received")
        blob = self.put((chunk for part in opened for chunk in part), expected_sha256, size)
        self._bucket.remove(*(_staging(upload, number) for number, _ in parts))
        return blob

    # ------------------------------------------------------------ upkeep
    def sweep(self) -> None:
        """Remove staged and half-checked uploads a day after they arrived."""
        before = datetime.now(timezone.utc) - timedelta(seconds=LEFTOVER_S)
        for folder in ("staging", "checking"):
            old = [item.key for item in self._bucket.items(folder) if item.written < before]
            if old:
                self._bucket.remove(*old)

    def kept(self) -> Iterator[Kept]:
        """Every blob in the bucket."""
        for item in self._bucket.items("blobs/sha256"):
            yield Kept(item.key.rpartition("/")[2], item.size, item.written.timestamp())

    def remove(self, digests: Sequence[str], before_s: float, /) -> set[str]:
        """Remove blobs; those that were uploaded since `before_s` stay."""
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
            times = pool.map(lambda sha256: self._bucket.written(_key(sha256)), digests)
            found = list(zip(digests, times, strict=True))
        old = [sha256 for sha256, written in found if written is not None and written.timestamp() < before_s]
        if old:
            self._bucket.remove(*map(_key, old))
        return set(old)

    def check(self) -> None:
        """Raise when the bucket does not answer."""
        self._bucket.size("check")


def _key(sha256: str) -> str:
    return f"blobs/sha256/{path_of(sha256)}"


def _staging(upload: UploadId, part: int | None = None) -> str:
    return "/".join(("staging", *upload.checked(), *(() if part is None else (str(part),))))


def _checking() -> str:
    return f"checking/{secrets.token_hex(16)}"


class _SmallBlobs:
    """A cache of small blobs: configurations and cards, which every commit and many listings read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, sha256: str) -> bytes | None:
        """The bytes; None when they are not cached."""
        with self._lock:
            content = self._kept.get(sha256)
            if content is not None:
                self._kept.move_to_end(sha256)
            return content

    def keep(self, sha256: str, content: bytes) -> None:
        """Cache these bytes and drop the least recently used ones."""
        with self._lock:
            if len(content) > SMALL_BYTES or sha256 in self._kept:
                return
            self._kept[sha256] = content
            self._bytes += len(content)
            while self._bytes > KEPT_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
