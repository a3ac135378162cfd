"""One S3 bucket through `obstore`: whole objects as streams, and short-lived links.

Only a registry with blobs in S3 imports this module (`open_registry`): `obstore` comes with the extra `scale`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from adapterhub_registry.settings import S3Place
from adapterhub_registry.storage.blobs import CHUNK_BYTES, StoreUnreachable

if TYPE_CHECKING:
    from obstore import GetResult

PART_BYTES: Final = 8 << 20
MOST_PARTS: Final = 9000
MOST_RETRIES: Final = 4
COPY_BYTES: Final = 5 << 30
"""The largest object that S3 takes in one PUT and copies in one call."""


class Item(NamedTuple):
    """An object: its key, its size in bytes, and the time of its last write."""

    key: str
    size: int
    written: datetime


class Bucket:
    """The keys below a prefix of a bucket. Every method raises `StoreUnreachable` when the bucket does not answer."""

    def __init__(self, place: S3Place) -> None:
        self._store = _open(place, place.endpoint)
        self._signing = _open(place, place.public_endpoint) if place.public_endpoint else self._store
        self._prefix = place.prefix
        self._ttl = timedelta(seconds=place.link_ttl_s)

    def size(self, key: str) -> int | None:
        """The size of an object in bytes; None without such an object."""
        with _reaching():
            try:
                return int(obstore.head(self._store, self._prefix + key)["size"])
            except FileNotFoundError:
                return None

    def get(self, key: str, start: int = 0, end: int | None = None) -> tuple[Iterator[bytes], int, str] | None:
        """The bytes `[start, end)` in chunks of about a mebibyte, the object's size and ETag; None without an object.

        `end` must be above `start`.
        """
        options: Any = {}
        if (start, end) != (0, None):
            options = {"range": {"offset": start} if end is None else (start, end)}
        with _reaching():
            try:
                found = obstore.get(self._store, self._prefix + key, options=options)
            except FileNotFoundError:
                return None
        return _chunks(found), int(found.meta["size"]), _plain(found.meta["e_tag"])

    def put(self, key: str, content: bytes | Iterable[bytes], size: int | None = None) -> None:
        """Write an object. An error that `content` raises aborts the write and leaves no object."""
        with _reaching():
            if isinstance(content, bytes):
                obstore.put(self._store, self._prefix + key, content)
                return
            part_bytes = max(PART_BYTES, (size or 0) // MOST_PARTS + 1)
            # a writer, not an iterator: an iterator that itself reads from a bucket would stop obstore's runtime
            writer = obstore.open_writer(self._store, self._prefix + key, buffer_size=part_bytes)
            for chunk in content:
                writer.write(chunk)
            writer.close()  # never after an error: closing creates the object

    def etag(self, key: str) -> str:
        """The ETag of an object; empty without such an object."""
        with _reaching():
            try:
                return _plain(obstore.head(self._store, self._prefix + key)["e_tag"])
            except FileNotFoundError:
                return ""

    def written(self, key: str) -> datetime | None:
        """The time of an object's last write; None without such an object."""
        with _reaching():
            try:
                return obstore.head(self._store, self._prefix + key)["last_modified"]
            except FileNotFoundError:
                return None

    def copy(self, source: str, target: str) -> bool:
        """Copy an object of at most `COPY_BYTES` within the bucket; False without such an object."""
        with _reaching():
            try:
                obstore.copy(self._store, self._prefix + source, self._prefix + target)
            except FileNotFoundError:
                return False
        return True

    def remove(self, *keys: str) -> None:
        """Remove those objects that exist. When the bucket does not answer, a later sweep removes them."""
        with contextlib.suppress(StoreUnreachable, FileNotFoundError), _reaching():
            obstore.delete(self._store, [self._prefix + key for key in keys])

    def items(self, folder: str) -> Iterator[Item]:
        """Every object below `folder/`."""
        with _reaching():
            for page in obstore.list(self._store, self._prefix + folder):
                for item in page:
                    yield Item(item["path"].removeprefix(self._prefix), item["size"], item["last_modified"])

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly in `folder`."""
        with _reaching():
            found = obstore.list_with_delimiter(self._store, self._prefix + folder)
        return [path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]]

    def link(self, method: Literal["GET", "PUT"], key: str) -> str:
        """A short-lived link whose holder can read or write this one key."""
        with _reaching():
            return obstore.sign(self._signing, method, self._prefix + key, self._ttl)


def _open(place: S3Place, endpoint: str | None) -> S3Store:
    options: Any = {"timeout": "3600s", "connect_timeout": "5s"}  # of a whole transfer; of its connection
    more: dict[str, Any] = {}
    if endpoint is not None:
        options["allow_http"] = endpoint.startswith("http://")
        more = {"endpoint": endpoint, "virtual_hosted_style_request": False}
    retries: Any = {"max_retries": MOST_RETRIES, "retry_timeout": timedelta(seconds=20)}
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
