"""The nodes of a tree of files: small immutable blocks with their sha256 as id.

A leaf holds files; an index node holds links to nodes one level below. Both are sorted by `key_of`, the order of a walk
that enters each folder at its name: `a`, `a/x`, `a-b`. The files of a folder are therefore adjacent.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final, NamedTuple

from pydantic_core import from_json

POINTER: Final = "version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
NODE_BYTES: Final = 1900
"""The largest node: packed, two fit into a page of SQLite, and PostgreSQL stores it in its row."""
FEWEST_ITEMS: Final = 4
"""Every node may hold this many items, whatever their size: with one child a node, a tree would have no top."""
SPARSE_BYTES: Final = NODE_BYTES // 4
"""A changed node below this size joins its neighbour."""
_FILE_BYTES, _LINK_BYTES = 95, 115  # packed, without the path: digests do not compress
_DIGEST_RANGE: Final = 1 << 160
END: Final = "\U0010ffff" * 1025
"""A key after the keys of all paths, which have at most 1,024 bytes."""


def key_of(path: str) -> str:
    """The sort key of a path; no path contains the character that replaces the slash."""
    return path.replace("/", "\0")


def keys_below(folder: str) -> tuple[str, str]:
    """The half-open range of the keys in a folder; for the top folder, of all keys."""
    return (f"{key_of(folder)}\0", f"{key_of(folder)}\1") if folder else ("", END)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a commit. Clients know `lfs` files by their sha256, others by their git object name."""

    path: str
    sha256: str
    git_sha1: str
    size: int
    lfs: bool
    changed_in: str  # the commit that last gave this path these bytes
    changed_at: int

    @property
    def oid(self) -> str:
        """The git object name; for an LFS file, the name of its pointer."""
        if not self.lfs:
            return self.git_sha1
        return _git_name(self.pointer)

    @property
    def etag(self) -> str:
        """The ETag of the content."""
        return self.sha256 if self.lfs else self.git_sha1

    @property
    def pointer(self) -> bytes:
        """The content of the git-lfs pointer file."""
        return POINTER.format(sha256=self.sha256, size=self.size).encode()

    @property
    def totals(self) -> Totals:
        """The share of the file in the totals of its folders."""
        holds_tensors = int(self.path.endswith(".safetensors"))
        digest = content_digest(self.path, self.sha256)
        return Totals(1, holds_tensors, self.size, digest, self.changed_at, self.changed_in)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over some files: their number, the number of tensor files, and a digest over paths and contents.

    The digest does not depend on the shape of the tree. `changed_in` is the newest commit that changed a file.
    """

    files: int = 0
    safetensors: int = 0
    bytes: int = 0
    digest: int = 0
    changed_at: int = 0
    changed_in: str = ""

    def __add__(self, other: Totals) -> Totals:
        changed_at, changed_in = max((self.changed_at, self.changed_in), (other.changed_at, other.changed_in))
        digest = (self.digest + other.digest) % _DIGEST_RANGE
        return Totals(
            self.files + other.files,
            self.safetensors + other.safetensors,
            self.bytes + other.bytes,
            digest,
            changed_at,
            changed_in,
        )


@dataclass(frozen=True, slots=True)
class Link:
    """A link to a child node: the path of its first file, its id, and the sums over its files."""

    path: str
    id: str
    totals: Totals


@dataclass(frozen=True)
class Node:
    """Files (`height` 0), or links to nodes of the height below."""

    height: int
    items: Sequence[Any]  # FileEntry or Link, by height

    @cached_property
    def keys(self) -> list[str]:
        """The key of each item."""
        return [key_of(item.path) for item in self.items]

    def file(self, key: str) -> FileEntry | None:
        """The file of a leaf with this key."""
        at = bisect_left(self.keys, key)
        return self.items[at] if at < len(self.keys) and self.keys[at] == key else None

    def place_of(self, key: str) -> int:
        """The position of the only child that can contain the key."""
        return max(bisect_right(self.keys, key) - 1, 0)

    @property
    def files(self) -> int:
        """The number of files below."""
        return sum(link.totals.files for link in self.items) if self.height else len(self.items)

    @property
    def totals(self) -> Totals:
        """The sums over all files below."""
        return sum((item.totals for item in self.items), Totals())

    @property
    def raw(self) -> bytes:
        """The unpacked content; its sha256 is the node's id."""
        rows = [_row_of(item) for item in self.items]
        return json.dumps([self.height, rows], separators=(",", ":"), ensure_ascii=False).encode()


def id_of(raw: bytes) -> str:
    """The id of the node with this content."""
    return hashlib.sha256(raw).hexdigest()


def pack(raw: bytes) -> bytes:
    """Compress a node for storage."""
    return zlib.compress(raw)


def unpack(body: bytes) -> bytes:
    """The inverse of `pack`."""
    return zlib.decompress(body)


def read_node(raw: bytes) -> Node:
    """The node with this content."""
    height, rows = from_json(raw)
    return Node(height, [_link(row) if height else _file(row) for row in rows])


class Outline(NamedTuple):
    """A tree by its top node: how many files it has, and their paths where they are all in this node."""

    files: int
    paths: tuple[str, ...] | None


@lru_cache(maxsize=1024)
def outline_of(body: bytes) -> Outline:
    """What a packed top node says, in half the time of `read_node`; a node never changes, so the last ones are kept."""
    height, rows = from_json(unpack(body))
    if height:
        return Outline(sum(row[2] for row in rows), None)
    return Outline(len(rows), tuple(row[0] for row in rows))


def weight_of(items: Sequence[Any]) -> int:
    """The approximate size of the items in a node, in bytes."""
    return sum(_weight(item) for item in items)


def cut(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Split items into runs of about equal size that each fit into a node with room to grow."""
    whole = weight_of(items)
    pieces = 1
    if whole > NODE_BYTES:
        pieces = max(min(-(-whole * 4 // (NODE_BYTES * 3)), len(items) // FEWEST_ITEMS), 1)
    start = done = taken = 0
    for at, item in enumerate(items):
        # an item belongs to the run of its middle, so no run exceeds its share by more than one item
        if done + _weight(item) // 2 >= whole * (taken + 1) // pieces and at > start:
            yield items[start:at]
            start, taken = at, taken + 1
        done += _weight(item)
    if start < len(items):
        yield items[start:]


def content_digest(path: str, sha256: str) -> int:
    """The share of one file in `Totals.digest`."""
    return int.from_bytes(hashlib.sha256(f"{path}\0{sha256}".encode()).digest()[:20], "big")


def changed_digest(digest: int, path: str, before: str | None, after: str | None) -> int:
    """`Totals.digest` after a path changes its sha256; None means no file."""
    less = content_digest(path, before) if before else 0
    return (digest - less + (content_digest(path, after) if after else 0)) % _DIGEST_RANGE


def _weight(item: FileEntry | Link) -> int:
    return len(item.path.encode()) + (_FILE_BYTES if isinstance(item, FileEntry) else _LINK_BYTES)


def _row_of(item: FileEntry | Link) -> list[object]:
    if isinstance(item, FileEntry):
        facts = (item.sha256, item.git_sha1, item.size, int(item.lfs), item.changed_in, item.changed_at)
        return [item.path, *facts]
    t = item.totals
    return [item.path, item.id, t.files, t.safetensors, t.bytes, f"{t.digest:x}", t.changed_at, t.changed_in]


def _file(row: list[Any]) -> FileEntry:
    path, sha256, git_sha1, size, lfs, changed_in, changed_at = row
    return FileEntry(
        path=path,
        sha256=sha256,
        git_sha1=git_sha1,
        size=size,
        lfs=bool(lfs),
        changed_in=changed_in,
        changed_at=changed_at,
    )


def _link(row: list[Any]) -> Link:
    path, node_id, files, safetensors, size, digest, changed_at, changed_in = row
    return Link(path, node_id, Totals(files, safetensors, size, int(digest, 16), changed_at, changed_in))


def _git_name(content: bytes) -> str:
    header = b"blob %d\x00" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()
