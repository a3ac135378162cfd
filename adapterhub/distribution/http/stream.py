"""Reads files on a server: as a stream that reconnects, and adapters that it offers without a manifest."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub.errors import OfflineModeIsEnabled

from adapterhub.core.digests import Digest, digest_of
from adapterhub.core.errors import DigestMismatch, RefusedAdapter, RemoteUnreachable, shown
from adapterhub.core.limits import limits
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.http.wire import PASSING, HttpAnswer, HttpError, Wire, git_sha1
from adapterhub.formats.manifest import CARD_FILE, CONFIG_FILE, MEDIA_TYPES, WEIGHTS_FILE, FileEntry
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.release import Release
from adapterhub.formats.safetensors.file import LENGTH_BYTES, TensorFile, parse_header
from adapterhub.formats.safetensors.header import adapter_limits
from adapterhub.library.directory import PlainFolder

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]  # new in Python 3.12

PAUSES_S = (0.0, 0.5, 1.0, 2.0)
"""How long to wait before each retry; after the last one, reading fails."""

PROGRESS_BYTES = 1 << 20
"""After this many bytes on one connection, the retries start over."""

_PARTIAL = 206
_CHANGED = "the file changed on the server during the download; nothing was stored, try again"


class RemoteFile(io.RawIOBase):
    """One file of `size_bytes`. The first read sends the first request; a read after `seek` requests only the rest.

    A broken connection resumes where it ended. The bytes are not hashed here; the receiver hashes them.

    Raises, when reading:
        RemoteUnreachable: the connection broke more often than `PAUSES_S` allows.
        DigestMismatch: the server's file has another size, or changed since the connection broke.
    """

    def __init__(
        self, wire: Wire, path: str, *, size_bytes: int, what: str, first: Mapping[str, str] | None = None
    ) -> None:
        """`first`: headers of the first request, which later ones lack that go on where it ended."""
        super().__init__()
        self._first = dict(first or {})
        self._wire, self._path, self._what = wire, path, what
        self._size = size_bytes
        self._at = 0
        self._answer: HttpAnswer | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._rest = memoryview(b"")
        self._failures = 0
        self._since_failure = 0
        self._etag: str | None = None

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes; a seek costs one more request."""
        return True

    def tell(self) -> int:
        """Offset of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to `offset`."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset != self._at:
            self._hang_up()
            self._at = start + offset
        return self._at

    def close(self) -> None:
        """Give the connection back."""
        self._hang_up()
        super().close()

    def readinto(self, buffer: Buffer) -> int:
        """Fill a part of `buffer`; 0 at the end."""
        view = memoryview(buffer).cast("B")
        if self._at >= self._size or not view:
            return 0
        while not self._rest:
            self._rest = memoryview(self._next())
        count = min(len(view), len(self._rest), self._size - self._at)
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._at += count
        return count

    def _next(self) -> bytes:
        """Return the next chunk, from a new connection if needed; may be empty."""
        try:
            if self._answer is None:
                self._connect()
            # the rest of a chunk that a server without ranges sent again
            chunk = bytes(self._rest) or next(self._chunks)
        except OfflineModeIsEnabled:
            with self._wire.plainly(self._what):
                raise
        except StopIteration:
            self._again(f"the connection closed {self._size - self._at} bytes early")
            return b""
        except (HttpError, OSError) as error:
            if self._answer is not None and self._answer.status not in (200, _PARTIAL, *PASSING):
                with self._wire.plainly(self._what):
                    raise
            self._again(shown(str(error) or type(error).__name__, 160))
            return b""
        self._wire.received_bytes += len(chunk)
        self._since_failure += len(chunk)
        return chunk

    def _connect(self) -> None:
        headers = {"Range": f"bytes={self._at}-"} if self._at else self._first
        self._first = {}
        self._answer = answer = self._wire.open(f"{self._wire.endpoint}/{self._path}", headers)
        if answer.status in PASSING:
            time.sleep(answer.pause_s)
        answer.raise_for_status()
        offered = _size_of(answer)
        if offered is not None and offered != self._size:
            raise DigestMismatch(self._what, expected=f"{self._size} bytes", actual=f"{offered} bytes")
        etag = answer.headers.get("x-linked-etag", answer.headers.get("etag"))
        if None not in (etag, self._etag) and etag != self._etag:
            raise DigestMismatch(self._what, expected=shown(self._etag), actual=shown(etag), hint=_CHANGED)
        self._etag = etag
        self._chunks = answer.chunks()
        begins = _begin_of(answer)
        if answer.status == _PARTIAL and begins not in (None, self._at):
            asked, got = f"the bytes from {self._at}", f"those from {begins}"
            raise DigestMismatch(
                self._what, expected=asked, actual=got, hint="the server does not honor range requests"
            )
        if self._at and answer.status != _PARTIAL:  # a server without ranges sends the whole file
            left = self._at
            while left:
                chunk = next(self._chunks)
                self._rest = memoryview(chunk[left:])
                left -= min(left, len(chunk))

    def _again(self, why: str) -> None:
        """Prepare a new connection, or raise after the last retry."""
        self._hang_up()
        if self._since_failure >= PROGRESS_BYTES:
            self._failures = 0
        self._since_failure = 0
        if self._failures >= len(PAUSES_S):
            raise RemoteUnreachable(
                f"{self._what}: {self._wire.endpoint} stopped after {self._at:,} of {self._size:,} bytes: {why}",
                hint="run the command again; it resumes where it stopped",
            )
        time.sleep(PAUSES_S[self._failures])
        self._failures += 1

    def _hang_up(self) -> None:
        if self._answer is not None:
            self._answer.close()
        self._answer, self._chunks, self._rest = None, iter(()), memoryview(b"")


def _size_of(answer: HttpAnswer) -> int | None:
    """Return the size of the whole file, from the headers."""
    if answer.status == _PARTIAL:
        total = answer.headers.get("content-range", "").rpartition("/")[2]
    else:
        total = answer.headers.get("content-length", "")
    return int(total) if total.isascii() and total.isdigit() else None


def _begin_of(answer: HttpAnswer) -> int | None:
    """Return the offset of a partial response, from the headers."""
    first = answer.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isascii() and first.isdigit() else None


FIRST_BYTES = 64 << 10
"""The first read of a weights file; most headers are shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """A file as a listing describes it; its bytes were not read. `git_sha1` is None for an LFS file."""

    path: str
    size_bytes: int
    sha256: Digest | None
    git_sha1: str | None = None


def described(
    wire: Wire, files: Mapping[str, ListedFile], spec: AdapterSpec, *, origin: str, version: str | None
) -> Release:
    """Return the adapter that these files are, under the name in `spec`; `files` are by their paths on the server.

    Raises:
        RefusedAdapter: the adapter is not safe to store.
    """
    with tempfile.TemporaryDirectory(prefix="adapt-look-") as name:
        folder, known = Path(name), dict[str, FileEntry]()
        for place, item in sorted(files.items()):
            with wire.plainly(f"`{item.path}` of `{origin}`"):
                known[item.path] = _place(wire, place, item, folder / item.path)
        return PlainFolder(folder, version=version, origin=origin, known=known).releases(spec)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The config and the tensor header of a build on a server, read without its weights.

    `commit` is that of the repository, or the digest of an image.
    """

    repo: str
    commit: str
    config: AdapterConfig
    weights: TensorFile


def read_contents(
    wire: Wire, release: Release, repo: str, commit: str, path_of: Callable[[FileEntry], str]
) -> Contents:
    """Config and tensors of a build, by range requests; `path_of` is the URL path of a file.

    Raises:
        DigestMismatch: the config differs from the manifest.
    """
    config, weights = (release.manifest.file(name) for name in (CONFIG_FILE, WEIGHTS_FILE))
    assert config is not None
    assert weights is not None  # a manifest names both
    with wire.plainly(f"`{repo}`"):
        raw = wire.get(path_of(config))
        head = header_of(wire, path_of(weights), weights.size_bytes)
    if digest_of(raw) != config.sha256:
        raise DigestMismatch(f"{repo}: {CONFIG_FILE}", expected=config.sha256, actual=digest_of(raw))
    where = f"{repo}: {WEIGHTS_FILE}"
    tensors = parse_header(io.BytesIO(head), path=Path(WEIGHTS_FILE), size_bytes=weights.size_bytes, where=where)
    return Contents(
        repo=repo, commit=commit, config=AdapterConfig.parse(raw, f"{repo}: {CONFIG_FILE}"), weights=tensors
    )


def header_of(wire: Wire, path: str, size_bytes: int) -> bytes:
    """Length and header of a safetensors file of `size_bytes`, by one or two range requests."""
    first = wire.get_range(path, 0, min(size_bytes, FIRST_BYTES))
    end = min(LENGTH_BYTES + int.from_bytes(first[:LENGTH_BYTES], "little"), size_bytes)
    if end <= len(first) or end > LENGTH_BYTES + adapter_limits().header_bytes:
        return first
    return first + wire.get_range(path, len(first), end)


def _place(wire: Wire, path: str, item: ListedFile, target: Path) -> FileEntry:
    """Write the part of a file that has to be read, and return its entry."""
    name, size = item.path, item.size_bytes
    most = limits().file_bytes if name == WEIGHTS_FILE else limits().text_bytes
    if size > most:
        raise RefusedAdapter(
            f"refused `{path}`. Nothing was stored", [("E_LIMIT", f"holds {size} bytes, expected at most {most}")]
        )
    told = item.sha256
    if told is None or name in (CONFIG_FILE, CARD_FILE):
        body = wire.get(path)
        digest = _checked(body, item, path)
    else:
        body, digest = header_of(wire, path, size) if name == WEIGHTS_FILE else b"", told
    with target.open("xb") as sink:
        sink.write(body)
        sink.truncate(size)
    return FileEntry(path=name, sha256=digest, size_bytes=size, media_type=MEDIA_TYPES.get(name, ""))


def _checked(body: bytes, item: ListedFile, where: str) -> Digest:
    """Return the digest of a file, checked against the listing."""
    actual = digest_of(body)
    if item.sha256 is not None and actual != item.sha256:
        raise DigestMismatch(where, expected=item.sha256, actual=actual)
    if item.git_sha1 is not None:
        name = git_sha1(body)
        if name != item.git_sha1:
            raise DigestMismatch(where, expected=item.git_sha1, actual=name)
    return actual
