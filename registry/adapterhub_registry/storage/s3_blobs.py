"""A `BlobStore` in an S3 bucket, which several servers share.

<prefix>blobs/sha256/ab/cd/<64 hex>   never written except with bytes that were hashed
<prefix>staging/<upload>              what a client sent by a signed link, or one part of it: `staging/<upload>/<n>`
<prefix>checking/<random>             what is being checked; no link to it was ever signed

The holder of an upload link can write its key for as long as the link lives, also after the bytes were checked. So an
upload is copied to a key that nobody was told first, read there once, and copied to its name from there.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Final

from adapterhub.core.errors import BlobNotFound, DigestMismatch, Malformed
from adapterhub_registry.storage.blobs import (
    HEX,
    LEFTOVER_S,
    UPLOAD,
    StoredBlob,
    StoreUnreachable,
    digest_of,
    git_hasher,
)
from adapterhub_registry.storage.s3_bucket import COPY_BYTES, Bucket

SMALL_BYTES: Final = 64 * 1024
KEPT_BYTES: Final = 16 << 20
LOOKS_AT_ONCE: Final = 16


class S3Blobs:
    """A `BlobStore` in a bucket. Only a few small blobs are kept here besides, so any number of servers share it."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._small = _SmallBlobs()

    # ------------------------------------------------------------ reading
    def holds(self, wanted: Mapping[str, int]) -> set[str]:
        """Those of `wanted` (sha256: size) of which exactly so many bytes lie in the bucket, asked side by side."""
        if not wanted:
            return set()
        with ThreadPoolExecutor(min(len(wanted), LOOKS_AT_ONCE)) as pool:
            sizes = pool.map(lambda sha256: self._bucket.size(_key(sha256)), wanted)
            return {sha256 for sha256, size in zip(wanted, sizes, strict=True) if size == wanted[sha256]}

    def room(self) -> int | None:
        """None: a bucket does not fill up."""
        return None

    def size(self, sha256: str) -> int:
        """How many bytes."""
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
        if (
            digest_of([content]) == sha256
        ):  # damaged bytes would be served from here after the bucket has the right ones
            self._small.keep(sha256, content)
        return iter([content])

    def download_link(self, sha256: str) -> str | None:
        """A link that is good for reading these bytes for a while."""
        return self._bucket.link("GET", _key(sha256))

    # ------------------------------------------------------------ writing
    def put(self, chunks: Iterable[bytes], expected_sha256: str | None = None, size: int | None = None) -> StoredBlob:
        """Store what `chunks` gives: small ones at once, others as a stream in constant memory.

        Raises:
            DigestMismatch: the digest is not `expected_sha256`.
            Malformed: more or fewer than `size` bytes came. In every case nothing is kept.
        """
        hashes = _Hashes(size)
        source = hashes.over(chunks)
        first = b""
        for chunk in source:
            first += chunk
            if len(first) > SMALL_BYTES:
                return self._stream(first, source, hashes, expected_sha256)
        if size is None:  # git's name begins with the length, which only now is known
            hashes = _Hashes(len(first))
            first = b"".join(hashes.over([first]))
        blob = hashes.checked(expected_sha256)
        stored = self._bucket.get(_key(blob.sha256))
        if stored is None or stored[1] != len(first) or b"".join(stored[0]) != first:
            self._bucket.put(_key(blob.sha256), first)
        self._small.keep(blob.sha256, first)
        return blob

    def _stream(
        self, first: bytes, source: Iterator[bytes], hashes: _Hashes, expected_sha256: str | None
    ) -> StoredBlob:
        checking = _checking()

        def whole() -> Iterator[bytes]:
            yield first
            yield from source
            # raised inside the upload: it is broken off, and no object ever stands at this key
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

    def _read(self, key: str, size: int) -> _Hashes:
        hashes = _Hashes(size)
        for _ in hashes.over(self._content(key)):
            pass
        return hashes

    def _content(self, key: str) -> Iterator[bytes]:
        found = self._bucket.get(key)
        if found is None:
            raise StoreUnreachable("an object that was there is gone from the bucket")
        return found[0]

    def _publish(self, checking: str, blob: StoredBlob) -> None:
        # over what stands there: clients send only what was missing or damaged when they asked
        key = _key(blob.sha256)
        if blob.size <= COPY_BYTES:
            if not self._bucket.copy(checking, key):
                raise StoreUnreachable("an object that was there is gone from the bucket")
            return
        again = _Hashes(blob.size)

        def whole() -> Iterator[bytes]:
            yield from again.over(self._content(checking))
            again.checked(blob.sha256)

        self._bucket.put(key, whole(), blob.size)

    # ------------------------------------------------------------ uploads that do not pass this server
    def upload_link(self, upload_id: str, part: int | None = None) -> str | None:
        """A link that is good for writing one staging key for a while."""
        return self._bucket.link("PUT", _staging(upload_id, part))

    def take(self, upload_id: str, expected_sha256: str, size: int) -> StoredBlob | None:
        """Check what was sent by the link and store it under its digest; it is read once.

        Raises:
            DigestMismatch: the digest is another.
            Malformed: the size is another. In either case what was sent is dropped.
        """
        staged, checking = _staging(upload_id), _checking()
        came = self._bucket.size(staged)
        if came is None:
            return None
        if came != size:
            self._bucket.remove(staged)
            raise Malformed(f"{came} bytes came, {size} were announced")
        try:
            if not self._bucket.copy(staged, checking):  # another request of the same user took it meanwhile
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

    def put_part(self, upload_id: str, number: int, chunks: Iterable[bytes], size: int) -> str:
        """Keep one part that came through this server after all."""
        hashes = _Hashes(size)

        def whole() -> Iterator[bytes]:
            yield from hashes.over(chunks)
            hashes.checked(None)

        self._bucket.put(_staging(upload_id, number), whole(), size)
        return self._bucket.etag(_staging(upload_id, number))

    def complete(self, upload_id: str, parts: Sequence[tuple[int, str]], expected_sha256: str, size: int) -> StoredBlob:
        """Join parts; they are kept when the result is not what was announced, so that one can be sent again."""
        found = [(self._bucket.get(_staging(upload_id, number)), etag) for number, etag in parts]
        opened = [part[0] for part, etag in found if part is not None and part[2] == etag]
        if len(opened) != len(parts) or not parts:
            if self._bucket.size(_key(expected_sha256)) == size:  # completed before, and the answer was lost
                return self._read(_key(expected_sha256), size).checked(expected_sha256)
            raise Malformed("the list of parts names one that was not received")
        blob = self.put((chunk for part in opened for chunk in part), expected_sha256, size)
        self._bucket.remove(*(_staging(upload_id, number) for number, _ in parts))
        return blob

    # ------------------------------------------------------------ upkeep
    def sweep(self) -> None:
        """Remove staged and half-checked uploads a day after they were sent."""
        before = datetime.now(timezone.utc) - timedelta(seconds=LEFTOVER_S)
        for folder in ("staging", "checking"):
            old = [key for key, written in self._bucket.keys(folder) if written < before]
            if old:
                self._bucket.remove(*old)

    def check(self) -> None:
        """Raise when the bucket does not answer."""
        self._bucket.size("check")


def _key(sha256: str) -> str:
    if not HEX.fullmatch(sha256):
        raise Malformed(f"blob `{sha256[:80]!r}`: expected 64 lower-case hex digits")
    return f"blobs/sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def _staging(upload_id: str, part: int | None = None) -> str:
    if not UPLOAD.fullmatch(upload_id):
        raise Malformed("not an upload")
    return f"staging/{upload_id}" + ("" if part is None else f"/{part}")


def _checking() -> str:
    return f"checking/{secrets.token_hex(16)}"


class _Hashes:
    """The digests of bytes that pass, of which `announced` are to come."""

    def __init__(self, announced: int | None) -> None:
        self.announced = announced
        self.size = 0
        self._sha256, self._git = hashlib.sha256(), git_hasher(announced)

    def over(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks; raises `Malformed` when more come than were announced."""
        for chunk in chunks:
            self.size += len(chunk)
            if self.announced is not None and self.size > self.announced:
                raise Malformed(f"more than the {self.announced} bytes that were announced")
            self._sha256.update(chunk)
            self._git.update(chunk)
            yield chunk

    def checked(self, expected_sha256: str | None) -> StoredBlob:
        """What passed, once all of it has; raises `Malformed` or `DigestMismatch` when it is something else."""
        if self.announced is not None and self.size != self.announced:
            raise Malformed(f"{self.size} bytes came, {self.announced} were announced")
        sha256 = self._sha256.hexdigest()
        if expected_sha256 is not None and sha256 != expected_sha256:
            raise DigestMismatch("upload", expected=expected_sha256, actual=sha256)
        return StoredBlob(sha256, self._git.hexdigest(), self.size)


class _SmallBlobs:
    """The small blobs that were read last: configurations and cards, which every commit and many listings look at."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, sha256: str) -> bytes | None:
        """The bytes; None when they are not kept."""
        with self._lock:
            content = self._kept.get(sha256)
            if content is not None:
                self._kept.move_to_end(sha256)
            return content

    def keep(self, sha256: str, content: bytes) -> None:
        """Keep these bytes in place of those that were not asked for longest."""
        with self._lock:
            if len(content) > SMALL_BYTES or sha256 in self._kept:
                return
            self._kept[sha256] = content
            self._bytes += len(content)
            while self._bytes > KEPT_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
