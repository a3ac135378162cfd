"""Blobs and xorbs in a bucket of S3.

Only a registry with blobs in S3 imports this module (`open_registry`): `obstore` comes with the extra `scale`.

    <prefix>blobs/sha256/ab/cd/<64 hex>   written only with bytes whose digest was checked
    <prefix>staging/<object>/<owner>      an upload that a client sent through a signed link; a part: `<owner>/<n>`
    <prefix>checking/<random>             an upload that is being checked; no signed link leads here
    <prefix>leaving/<64 hex>              a blob that `gc` removed less than a day ago
    <prefix>xorbs/<epoch>/<scope>/<hash>

The holder of an upload link can write its key until the link expires, even after the check. The server therefore first
copies an upload to a secret key, reads it there once, and copies it to its name from there.

A bucket can look at the time of an object and can delete it, but not both in one step, and its conditions compare the
content, which is the same when the same bytes come again. What is removed therefore stays a day under another name, and
who looks for a blob that came in between gets it back from there.

Questions (HEAD, reads, small writes) wait seconds for the bucket, as another server or a client's repeat may do better.
Writes of many bytes wait minutes: what was sent would have to be sent again.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import IO, TYPE_CHECKING, Any, Final, Literal, NamedTuple

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from adapterhub.core.errors import BlobNotFound, DigestMismatch, Malformed
from adapterhub_registry.database.steps import batches
from adapterhub_registry.fuse import Fuse
from adapterhub_registry.settings import S3Place
from adapterhub_registry.storage.blobs import (
    CHUNK_BYTES,
    LEFTOVER_S,
    BlobHashes,
    FreedBlobs,
    KeptBlob,
    PutNext,
    StoredBlob,
    StoreUnreachable,
    UploadId,
    digest_of,
    path_of,
    raising_disk_full,
    wrong_size,
)
from adapterhub_registry.storage.xet import (
    ChunkSpan,
    MalformedXet,
    WantedXorbs,
    XorbCheck,
    XorbPlace,
    XorbWriter,
    decode_chunk,
    everything,
    is_open,
    is_xorb,
    scan_xorb,
)

if TYPE_CHECKING:
    from obstore import GetResult

PART_BYTES: Final = 8 << 20
MOST_PARTS: Final = 9000
MOST_RETRIES: Final = 4
RETRY_S: Final = 2.0
"""After so many seconds of an attempt, no further one follows."""
ANSWER_S: Final = 3
"""How long the bucket may be silent before it begins to answer a question, and between two bytes of an answer."""
STORING_S: Final = 300
"""How long it may take until it has stored one part, or copied one object."""
SLOW_S: Final = 1.0
"""A question that fails after so long trips the fuse; an error that comes sooner may be of this one object."""
LISTED_AT_ONCE: Final = 1000
"""How many objects S3 lists in one answer."""
COPY_BYTES: Final = 5 << 30
"""The largest object that S3 takes in one PUT and copies in one call."""


class Item(NamedTuple):
    """An object: its key, its size in bytes, the time of its last write, and its ETag."""

    key: str
    size: int
    written: datetime
    etag: str


class Bucket:
    """The keys below a prefix of a bucket. Every method raises `StoreUnreachable` when the bucket does not answer."""

    def __init__(self, place: S3Place) -> None:
        self._store = _open(place, place.endpoint, ANSWER_S)
        self._storing = _open(place, place.endpoint, STORING_S)
        self._signing = _open(place, place.public_endpoint, ANSWER_S) if place.public_endpoint else self._store
        self._fuse = Fuse()
        self._prefix = place.prefix
        self._ttl = timedelta(seconds=place.link_ttl_s)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """As `_reaching`, of a question: it fails at once when the bucket has been silent a moment ago."""
        self._check()
        began = time.monotonic()
        try:
            with _reaching():
                yield
        except StoreUnreachable:
            if time.monotonic() - began >= SLOW_S:
                self._fuse.trip()
            raise
        except FileNotFoundError:
            self._fuse.mend()
            raise
        self._fuse.mend()

    def _check(self) -> None:
        if not self._fuse.passes():
            raise StoreUnreachable("the bucket did not answer a moment ago")

    def look(self, key: str) -> Item | None:
        """Return the bucket's object at a key; None without one."""
        with self._asking():
            try:
                found = obstore.head(self._store, self._prefix + key)
            except FileNotFoundError:
                return None
        return Item(key, int(found["size"]), found["last_modified"], _plain(found["e_tag"]))

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes; None without such an object."""
        found = self.look(key)
        return None if found is None else found.size

    def get(
        self, key: str, start: int = 0, end: int | None = None, *, patient: bool = False
    ) -> tuple[Iterator[bytes], int, str] | None:
        """Return the bytes `[start, end)` in chunks of about a mebibyte, the object's size and ETag.

        None without an object.

        `end` must be above `start`. A `patient` reader has much to lose, and waits for the bucket as writes do.
        """
        options: Any = {}
        if (start, end) != (0, None):
            options = {"range": {"offset": start} if end is None else (start, end)}
        with self._asking():
            try:
                found = obstore.get(self._storing if patient else self._store, self._prefix + key, options=options)
            except FileNotFoundError:
                return None
        return _chunks(found), int(found.meta["size"]), _plain(found.meta["e_tag"])

    def put(self, key: str, content: bytes | Iterable[bytes], size: int | None = None) -> None:
        """Write an object. An error that `content` raises aborts the write and leaves no object."""
        if isinstance(content, bytes):
            with self._asking():
                obstore.put(self._store, self._prefix + key, content)
            return
        self._check()
        with _reaching():
            part_bytes = max(PART_BYTES, (size or 0) // MOST_PARTS + 1)
            # a writer, not an iterator: an iterator that itself reads from a bucket would stop obstore's runtime
            writer = obstore.open_writer(self._storing, self._prefix + key, buffer_size=part_bytes)
            for chunk in content:
                writer.write(chunk)
            writer.close()  # never after an error: closing creates the object

    def copy(self, source: str, target: str) -> bool:
        """Copy an object of at most `COPY_BYTES` within the bucket; False without such an object."""
        self._check()
        with _reaching():
            try:
                obstore.copy(self._storing, self._prefix + source, self._prefix + target)
            except FileNotFoundError:
                return False
        return True

    def remove(self, *keys: str) -> None:
        """Remove those objects that exist."""
        self._check()
        with contextlib.suppress(FileNotFoundError), _reaching():
            obstore.delete(self._storing, [self._prefix + key for key in keys])

    def drop(self, *keys: str) -> None:
        """Remove like `remove`, but leave keys to a later sweep if the bucket does not answer now."""
        with contextlib.suppress(StoreUnreachable):
            self.remove(*keys)

    def items(self, folder: str, after: str | None = None) -> Iterator[Item]:
        """Yield the objects below `folder/`, in the order of their keys, past the key `after`."""
        self._check()
        offset = None if after is None else self._prefix + after
        with _reaching():
            for page in obstore.list(self._storing, self._prefix + folder, offset=offset, chunk_size=LISTED_AT_ONCE):
                for item in page:
                    key = item["path"].removeprefix(self._prefix)
                    yield Item(key, item["size"], item["last_modified"], _plain(item["e_tag"]))

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders directly in `folder`."""
        self._check()
        with _reaching():
            found = obstore.list_with_delimiter(self._storing, self._prefix + folder)
        return [path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]]

    def link(self, method: Literal["GET", "PUT"], key: str) -> str:
        """Return a short-lived link whose holder can read or write this one key."""
        with _reaching():
            return obstore.sign(self._signing, method, self._prefix + key, self._ttl)


def _open(place: S3Place, endpoint: str | None, silent_s: int) -> S3Store:
    # of a whole transfer; of its connection; of each wait for an answer or for more of it
    options: Any = {"timeout": "3600s", "connect_timeout": "2s", "read_timeout": f"{silent_s}s"}
    more: dict[str, Any] = {}
    if endpoint is not None:
        options["allow_http"] = endpoint.startswith("http://")
        more = {"endpoint": endpoint, "virtual_hosted_style_request": False}
    pauses = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2}
    retries: Any = {"max_retries": MOST_RETRIES, "retry_timeout": timedelta(seconds=RETRY_S), "backoff": pauses}
    return S3Store(place.bucket, region=place.region, client_options=options, retry_config=retries, **more)


def _plain(etag: str | None) -> str:
    return (etag or "").strip('"')


def _chunks(found: GetResult) -> Iterator[bytes]:
    with _reaching():
        for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
            yield bytes(chunk)


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """Turn the bucket's errors into `StoreUnreachable`, whose text leaves out the links and keys that theirs hold."""
    try:
        yield
    except BaseError as error:
        raise StoreUnreachable(f"the bucket does not answer as expected ({type(error).__name__})") from error


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
        """Return the digests of `wanted` (sha256: size) that the bucket has with exactly that size.

        Looked up in parallel.
        """
        if not wanted:
            return set()
        with ThreadPoolExecutor(min(len(wanted), LOOKS_AT_ONCE)) as pool:
            sizes = pool.map(self._size_again, wanted)
            return {sha256 for sha256, size in zip(wanted, sizes, strict=True) if size == wanted[sha256]}

    def _size_again(self, sha256: str) -> int | None:
        """Return the size of a blob, which comes back to its place when `remove` took it away at this moment."""
        size = self._bucket.size(_key(sha256))
        if size is None and self._bucket.copy(_leaving(sha256), _key(sha256)):
            size = self._bucket.size(_key(sha256))
        return size

    def room(self) -> int | None:
        """None: a bucket does not fill up."""
        return None

    def size(self, sha256: str) -> int:
        """Return the size of a blob in bytes."""
        small = self._small.get(sha256)
        size = len(small) if small is not None else self._bucket.size(_key(sha256))
        if size is None:
            raise BlobNotFound(f"no blob {sha256}")
        return size

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Return the bytes `[start, end)` in chunks of about a mebibyte."""
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
        """Return a short-lived link through which a client reads the blob from the bucket."""
        return self._bucket.link("GET", _key(sha256))

    # ------------------------------------------------------------ writing
    def file(self, _sha256: str, /) -> None:
        """None: a bucket has no files."""

    @contextlib.contextmanager
    def together(self) -> Iterator[PutNext]:
        """Store many blobs, each at once: a bucket keeps each blob once it has answered."""
        yield self.put

    def put(self, chunks: Iterable[bytes], expected_sha256: str | None = None, size: int | None = None) -> StoredBlob:
        """Store `chunks`: a small blob at once, a large one as a stream. Nothing is kept after an error.

        Raises:
            DigestMismatch: the digest is not `expected_sha256`.
            Malformed: `chunks` holds more or fewer than `size` bytes.
        """
        hashes = BlobHashes(size)
        source = hashes.over(chunks)
        first = b""
        for chunk in source:
            first += chunk
            if len(first) > SMALL_BYTES:
                return self._stream(first, source, hashes, expected_sha256)
        if size is None:  # git's name begins with the length, which is known only now
            hashes = BlobHashes(len(first))
            first = b"".join(hashes.over([first]))
        blob = hashes.checked(expected_sha256)
        self._bucket.put(_key(blob.sha256), first)  # even over the same bytes: `remove` looks at the time of the write
        self._small.keep(blob.sha256, first)
        return blob

    def _stream(
        self, first: bytes, source: Iterator[bytes], hashes: BlobHashes, expected_sha256: str | None
    ) -> StoredBlob:
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
            self._bucket.drop(checking)
        return blob

    def _read(self, key: str, size: int) -> BlobHashes:
        hashes = BlobHashes(size)
        for _ in hashes.over(self._content(key)):
            pass
        return hashes

    def _content(self, key: str) -> Iterator[bytes]:
        found = self._bucket.get(key, patient=True)
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
        again = BlobHashes(blob.size)

        def whole() -> Iterator[bytes]:
            yield from again.over(self._content(checking))
            again.checked(blob.sha256)

        self._bucket.put(key, whole(), blob.size)

    # ------------------------------------------------------------ uploads that bypass this server
    def upload_link(self, upload: UploadId, part: int | None = None, /) -> str | None:
        """Return a short-lived link through which a client writes one staging key."""
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
            if item.key.count("/") == 2:
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
            self._bucket.drop(staged)
            raise wrong_size(came, size)
        try:
            if not self._bucket.copy(staged, checking):
                return None
            try:
                blob = self._read(checking, size).checked(expected_sha256)
            except (DigestMismatch, Malformed):
                self._bucket.drop(staged)
                raise
            self._publish(checking, blob)
        finally:
            self._bucket.drop(checking)
        self._bucket.drop(staged)
        return blob

    def put_part(self, upload: UploadId, number: int, chunks: Iterable[bytes], size: int, _total: int) -> str:
        """Keep one part that a client sent through this server."""
        hashes = BlobHashes(size)

        def whole() -> Iterator[bytes]:
            yield from hashes.over(chunks)
            hashes.checked(None)

        self._bucket.put(_staging(upload, number), whole(), size)
        kept = self._bucket.look(_staging(upload, number))
        return "" if kept is None else kept.etag

    def complete(
        self, upload: UploadId, parts: Sequence[tuple[int, str]], expected_sha256: str, size: int
    ) -> StoredBlob:
        """Join parts. When the result is wrong the parts stay, so that the client can send one of them again."""
        found = [(self._bucket.get(_staging(upload, number), patient=True), etag) for number, etag in parts]
        opened = [part[0] for part, etag in found if part is not None and part[2] == etag]
        if len(opened) != len(parts) or not parts:
            if (
                self._bucket.size(_key(expected_sha256)) == size
            ):  # an earlier call completed the upload, and its answer was lost
                return self._read(_key(expected_sha256), size).checked(expected_sha256)
            raise Malformed(
                "the list of parts names a part that the server has not received",
                hint="send the missing part, then complete the upload again",
            )
        blob = self.put((chunk for part in opened for chunk in part), expected_sha256, size)
        self._bucket.drop(*(_staging(upload, number) for number, _ in parts))
        return blob

    # ------------------------------------------------------------ upkeep
    def sweep(self) -> None:
        """Remove staged and half-checked uploads a day after they arrived, and blobs a day after they were removed."""
        before = datetime.now(timezone.utc) - timedelta(seconds=LEFTOVER_S)
        for folder in ("staging", "checking", "leaving"):
            old = (item.key for item in self._bucket.items(folder) if item.written < before)
            for some in batches(old, LISTED_AT_ONCE):
                self._bucket.drop(*some)

    def kept(self, after: str = "") -> Iterator[KeptBlob]:
        """Yield the blobs in the bucket past a digest, a thousand with each request."""
        for item in self._bucket.items("blobs/sha256", _key(after) if after else None):
            yield KeptBlob(item.key.rpartition("/")[2], item.size, item.written.timestamp())

    def set_aside(self, blobs: Iterable[KeptBlob], /) -> None:
        """Copy blobs that `remove` is about to take to where `holds` finds them for a day.

        A larger one than a bucket copies in one call is not copied: its push is refused, and has to be repeated.
        """
        small = [blob.sha256 for blob in blobs if blob.size <= COPY_BYTES]
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
            list(pool.map(lambda sha256: self._bucket.copy(_key(sha256), _leaving(sha256)), small))

    def remove(self, digests: Sequence[str], before_s: float, /) -> set[str]:
        """Remove blobs; those that were uploaded since `before_s` stay.

        One that arrives at this moment is also removed, but `holds` brings it back when it was set aside.
        """
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
            found = list(pool.map(lambda sha256: self._bucket.look(_key(sha256)), digests))
        pairs = zip(digests, found, strict=True)
        old = [sha256 for sha256, item in pairs if item is not None and item.written.timestamp() < before_s]
        if old:
            self._bucket.remove(*map(_key, old))
        return set(old)

    def check(self) -> None:
        """Raise when the bucket does not answer."""
        self._bucket.size("check")


def _key(sha256: str) -> str:
    return f"blobs/sha256/{path_of(sha256)}"


def _leaving(sha256: str) -> str:
    return f"leaving/{sha256}"


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
        """Return the bytes; None when they are not cached."""
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


_IN_MEMORY_BYTES = 8 << 20
_GAP_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20


class S3Xorbs:
    """Xorbs as objects of a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    @contextlib.contextmanager
    def writer(self, place: XorbPlace) -> Iterator[XorbWriter]:
        """Provide a writer for one xorb."""
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as stream:
            yield _S3Writer(self._bucket, place, stream)

    def chunks(self, place: XorbPlace) -> tuple[ChunkSpan, ...] | None:
        """Return the position of each chunk of a xorb; None without such a xorb."""
        found = self._bucket.get(_xorb_key(place))
        return None if found is None else scan_xorb(found[0])

    def read(self, place: XorbPlace, spans: tuple[ChunkSpan, ...]) -> Iterator[bytes]:
        """Yield the unpacked bytes of some chunks, one chunk at a time; raises `MalformedXet` for a damaged chunk.

        One request fetches each run of chunks that lie close together.
        """
        for run in _runs(spans):
            found = self._bucket.get(_xorb_key(place), run[0].start, _end(run[-1]))
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

    def sweep(self, now_s: float, *, wanted: WantedXorbs = everything, dry_run: bool = False) -> FreedBlobs:
        """Remove the xorbs of closed epochs, and of scopes that are not `wanted`; `dry_run` only counts them."""
        count = size = 0
        for epoch in filter(str.isdecimal, self._bucket.folders("xorbs")):
            for scope in self._bucket.folders(f"xorbs/{epoch}"):
                if is_open(int(epoch), now_s) and wanted(scope):
                    continue
                for items in batches(self._bucket.items(f"xorbs/{epoch}/{scope}"), LISTED_AT_ONCE):
                    count, size = count + len(items), size + sum(item.size for item in items)
                    if not dry_run:
                        self._bucket.drop(*(item.key for item in items))
        return FreedBlobs(count, size)


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
        key = _xorb_key(self._place)
        stored = self._bucket.get(key)
        if stored is not None and is_xorb(stored[0], self._place.hash):
            return
        self._stream.seek(0)
        self._bucket.put(key, iter(lambda: self._stream.read(_PIECE_BYTES), b""))


def _xorb_key(place: XorbPlace) -> str:
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
