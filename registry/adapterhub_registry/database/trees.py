"""The files of each commit as trees that share nodes: a commit writes only the nodes above its changes.

A leaf holds files; an index node holds links to nodes one level below. Both are sorted by `key_of`, the order of a walk
that enters each folder at its name: `a`, `a/x`, `a-b`. The files of a folder are therefore adjacent.

A tree is a B+ tree of immutable nodes (`TreeNode`). Reading loads only the nodes on the way, so a page of a listing
needs little memory. Nodes belong to a repository and are removed with it; two commits that write the same node share a
row. The commit stores the id of the top node.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final, NamedTuple, Protocol

from pydantic_core import from_json
from sqlalchemy import bindparam, select
from sqlalchemy.engine import Connection

from adapterhub_registry.database.db import insert_new, nodes
from adapterhub_registry.database.prepared import PreparedSql
from adapterhub_registry.database.search_tables import among
from adapterhub_registry.errors import HttpRefusal

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
    """Return the sort key of a path; no path contains the character that replaces the slash."""
    return path.replace("/", "\0")


def keys_below(folder: str) -> tuple[str, str]:
    """Return the half-open range of the keys in a folder; for the top folder, of all keys."""
    return (f"{key_of(folder)}\0", f"{key_of(folder)}\1") if folder else ("", END)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeFile:
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
class NodeLink:
    """A link to a child node: the path of its first file, its id, and the sums over its files."""

    path: str
    id: str
    totals: Totals


@dataclass(frozen=True)
class TreeNode:
    """Files (`height` 0), or links to nodes of the height below."""

    height: int
    items: Sequence[Any]  # FileEntry or Link, by height

    @cached_property
    def keys(self) -> list[str]:
        """The key of each item."""
        return [key_of(item.path) for item in self.items]

    def file(self, key: str) -> TreeFile | None:
        """Return the file of a leaf with this key."""
        at = bisect_left(self.keys, key)
        return self.items[at] if at < len(self.keys) and self.keys[at] == key else None

    def place_of(self, key: str) -> int:
        """Return the position of the only child that can contain the key."""
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


def fits_leaf(paths: Sequence[str]) -> bool:
    """Return whether one node holds the files of these paths."""
    return len(paths) <= FEWEST_ITEMS or sum(len(path.encode()) + _FILE_BYTES for path in paths) <= NODE_BYTES


def leaf_of(files: Sequence[TreeFile]) -> tuple[str, bytes, Totals]:
    """Return the id, the packed body and the totals of the tree of some sorted files, which fit into one node."""
    node = TreeNode(0, files)
    raw = node.raw
    return id_of(raw), pack(raw), node.totals


def id_of(raw: bytes) -> str:
    """Return the id of the node with this content."""
    return hashlib.sha256(raw).hexdigest()


_SMALLEST_WINDOW: Final = 10
"""As a power of two, in bytes."""


def pack(raw: bytes) -> bytes:
    """Compress a node for storage."""
    # with no larger window than there is content, as zlib would fill 256 kB with zeros for each
    window = min(max(len(raw).bit_length(), _SMALLEST_WINDOW), zlib.MAX_WBITS)
    packer = zlib.compressobj(wbits=window, memLevel=max(window - 7, 1), strategy=zlib.Z_FILTERED)
    return packer.compress(raw) + packer.flush()


def unpack(body: bytes) -> bytes:
    """Return the inverse of `pack`."""
    return zlib.decompress(body)


def read_node(raw: bytes) -> TreeNode:
    """Return the node with this content."""
    height, rows = from_json(raw)
    return TreeNode(height, [_link(row) if height else _file(row) for row in rows])


class Outline(NamedTuple):
    """A tree by its top node: how many files it has, and their paths where they are all in this node."""

    files: int
    paths: tuple[str, ...] | None


@lru_cache(maxsize=1024)
def outline_of(body: bytes) -> Outline:
    """Read a packed top node in half the time of `read_node`; a node never changes, so the last ones are kept."""
    height, rows = from_json(unpack(body))
    if height:
        return Outline(sum(row[2] for row in rows), None)
    return Outline(len(rows), tuple(row[0] for row in rows))


def weight_of(items: Sequence[Any]) -> int:
    """Return the approximate size of the items in a node, in bytes."""
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
    """Return the share of one file in `Totals.digest`."""
    return int.from_bytes(hashlib.sha256(f"{path}\0{sha256}".encode()).digest()[:20], "big")


def changed_digest(digest: int, path: str, before: str | None, after: str | None) -> int:
    """`Totals.digest` after a path changes its sha256; None means no file."""
    less = content_digest(path, before) if before else 0
    return (digest - less + (content_digest(path, after) if after else 0)) % _DIGEST_RANGE


def _weight(item: TreeFile | NodeLink) -> int:
    return len(item.path.encode()) + (_FILE_BYTES if isinstance(item, TreeFile) else _LINK_BYTES)


def _row_of(item: TreeFile | NodeLink) -> list[object]:
    if isinstance(item, TreeFile):
        facts = (item.sha256, item.git_sha1, item.size, int(item.lfs), item.changed_in, item.changed_at)
        return [item.path, *facts]
    t = item.totals
    return [item.path, item.id, t.files, t.safetensors, t.bytes, f"{t.digest:x}", t.changed_at, t.changed_in]


def _file(row: list[Any]) -> TreeFile:
    path, sha256, git_sha1, size, lfs, changed_in, changed_at = row
    return TreeFile(
        path=path,
        sha256=sha256,
        git_sha1=git_sha1,
        size=size,
        lfs=bool(lfs),
        changed_in=changed_in,
        changed_at=changed_at,
    )


def _link(row: list[Any]) -> NodeLink:
    path, node_id, files, safetensors, size, digest, changed_at, changed_in = row
    return NodeLink(path, node_id, Totals(files, safetensors, size, int(digest, 16), changed_at, changed_in))


def _git_name(content: bytes) -> str:
    header = b"blob %d\x00" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


KEPT_NODES: Final = 128
LOADED_AT_ONCE: Final = 16
WRITTEN_AT_ONCE: Final = 100
EMPTY: Final = id_of(TreeNode(0, ()).raw)
"""The id of the empty tree, which has no row."""

Edit = tuple[str, TreeFile | None]
"""A path and its new file; None removes it."""


_NODES: Final = PreparedSql(
    select(nodes.c.id, nodes.c.body).where(nodes.c.repo_id == bindparam("repo"), among(nodes.c.id, "ids"))
)


class FileTree:
    """The files of one commit, read through one connection; it caches the last nodes. `top` is that of `root`."""

    def __init__(self, connection: Connection, repo_id: int, root: str, *, top: bytes | None = None) -> None:
        self._connection = connection
        self.repo_id = repo_id
        self._kept: OrderedDict[str, TreeNode] = OrderedDict()
        self._unwritten: dict[str, bytes] = {}
        self.root = root
        if top is not None:
            self._kept[root] = read_node(unpack(top))

    # ------------------------------------------------------------ reading
    def find(self, path: str) -> TreeFile | None:
        """Return the file with this path."""
        key, node = key_of(path), self._node(self.root)
        while node.height:
            node = self._node(node.items[node.place_of(key)].id)
        return node.file(key)

    def walk(self, folder: str = "", *, after: str = "", past: str = "") -> Iterator[TreeFile]:
        """Yield the files below a folder, in order: from `after` a path on, or `past` a path and all below it."""
        start, end = keys_below(folder)
        if after:
            start = max(start, f"{key_of(after)}\0")
        if past:
            start = max(start, f"{key_of(past)}\1")
        for entry in self._walk(self._node(self.root), start):
            if key_of(entry.path) >= end:
                return
            yield entry

    def _walk(self, node: TreeNode, start: str) -> Iterator[TreeFile]:
        if not node.height:
            yield from (entry for key, entry in zip(node.keys, node.items, strict=True) if key >= start)
            return
        at, count = node.place_of(start), 1
        while at < len(node.items):
            for child in self._load([link.id for link in node.items[at : at + count]]):
                yield from self._walk(child, start)
            at, count = at + count, LOADED_AT_ONCE

    def first_below(self, path: str) -> TreeFile | None:
        """Return the file with this path, or the first file below it."""
        start = key_of(path)
        found = next(self._walk(self._node(self.root), start), None)
        below = found is not None and (found.path == path or found.path.startswith(f"{path}/"))
        return found if below else None

    def totals(self, folder: str = "") -> Totals:
        """Return the sums over all files below a folder."""
        start, end = keys_below(folder)
        return self._totals(self._node(self.root), start, end, END) if folder else self._node(self.root).totals

    def unseen(self, seen: set[str]) -> Iterator[TreeNode]:
        """Yield the nodes whose ids are not in `seen`; their ids join it."""
        waiting = [self.root]
        while waiting:
            ids = [node_id for node_id in dict.fromkeys(waiting[:LOADED_AT_ONCE]) if node_id not in seen]
            waiting = waiting[LOADED_AT_ONCE:]
            seen.update(ids)
            for node in self._load(ids):
                yield node
                waiting += [link.id for link in node.items] if node.height else []

    def at(self, root: str) -> FileTree:
        """Return the files below another top node of the repository; the trees share the nodes that they cache."""
        other = FileTree(self._connection, self.repo_id, root)
        other._kept = self._kept
        return other

    def prefetch(self, ids: Sequence[str]) -> None:
        """Read the first `KEPT_NODES` of some nodes, in one way to the database and back."""
        self._load(ids[:KEPT_NODES])

    def leaf_ids(self) -> list[str]:
        """Return the ids of the nodes that hold the files, in order.

        Those that are equal in two trees have equal files.
        """
        ids, height = [self.root], self._node(self.root).height
        for _ in range(height):
            below = (self._load(ids[at : at + LOADED_AT_ONCE]) for at in range(0, len(ids), LOADED_AT_ONCE))
            ids = [link.id for some in below for node in some for link in node.items]
        return ids

    def files_in(self, leaf_ids: Sequence[str]) -> Iterator[TreeFile]:
        """Yield the files in some of the nodes of `leaf_ids`, of this tree or of another one of the repository."""
        for at in range(0, len(leaf_ids), LOADED_AT_ONCE):
            for node in self._load(leaf_ids[at : at + LOADED_AT_ONCE]):
                yield from node.items

    def _totals(self, node: TreeNode, start: str, end: str, bound: str) -> Totals:
        """Return the sums over the files in `[start, end)`; `bound` is after all files of the node."""
        found, ends = Totals(), [*node.keys[1:], bound]
        for key, item, item_end in zip(node.keys, node.items, ends, strict=True):
            if key >= end:
                break
            if not node.height:
                found = found + item.totals if key >= start else found
            elif item_end > start:
                whole = start <= key and item_end <= end
                found += item.totals if whole else self._totals(self._node(item.id), start, end, item_end)
        return found

    def _node(self, node_id: str) -> TreeNode:
        return self._load([node_id])[0]

    def _load(self, ids: Sequence[str]) -> list[TreeNode]:
        missing = [node_id for node_id in ids if node_id not in self._kept and node_id != EMPTY]
        fresh = {node_id: read_node(self._unwritten[node_id]) for node_id in missing if node_id in self._unwritten}
        wanted = [node_id for node_id in missing if node_id not in fresh]
        if wanted:
            rows = _NODES.tuples(self._connection, repo=self.repo_id, ids=json.dumps(wanted))
            fresh |= {node_id: read_node(unpack(body)) for node_id, body in rows}
            if len(fresh) < len(set(missing)):
                raise HttpRefusal(
                    500, "Incomplete", "a part of this commit is missing; run `adapt registry check` on the server"
                )
        found = [TreeNode(0, ()) if i == EMPTY else fresh[i] if i in fresh else self._kept[i] for i in ids]
        for node_id, node in zip(ids, found, strict=True):
            self._kept[node_id] = node
            self._kept.move_to_end(node_id)
        while len(self._kept) > KEPT_NODES:
            self._kept.popitem(last=False)
        return found

    # ------------------------------------------------------------ writing
    def changed(self, edits: Sequence[Edit]) -> FileTree:
        """Apply edits of distinct paths, sorted by `key_of`; write the new nodes and return the new tree."""
        top = self._node(self.root)
        links, height = self._seal(top.height, [self._changed(top, edits)]), top.height
        while len(links) > 1:
            height += 1
            links = self._seal(height, [links])
        root = links[0].id if links else EMPTY
        while (node := self._node(root)).height and len(node.items) == 1:
            root = node.items[0].id
        self._flush()
        return FileTree(self._connection, self.repo_id, root)

    def _changed(self, node: TreeNode, edits: Sequence[Edit]) -> Sequence[Any]:
        """Return the new items of a node. It makes the nodes below, but the caller may still split or join this one."""
        if not node.height:
            return _merged(node, edits)
        parts: list[NodeLink | Sequence[Any]] = []  # links to unchanged nodes, and the items of changed ones
        at = 0
        for place, link in enumerate(node.items):
            end = at
            limit = node.keys[place + 1] if place + 1 < len(node.items) else None
            while end < len(edits) and (limit is None or key_of(edits[end][0]) < limit):
                end += 1
            if end == at:
                parts.append(link)
            else:
                items = self._changed(self._node(link.id), edits[at:end])
                parts += [items] if items else []
            at = end
        links: list[NodeLink] = []
        for run in self._joined(parts):
            links += [run] if isinstance(run, NodeLink) else self._seal(node.height - 1, [run])
        return links

    def _joined(self, parts: Sequence[NodeLink | Sequence[Any]]) -> Iterator[NodeLink | Sequence[Any]]:
        """Yield the parts, with every sparse part joined to a neighbour."""
        waiting: NodeLink | Sequence[Any] | None = None
        for part in parts:
            if waiting is None:
                waiting = part
            elif _is_sparse(part) or _is_sparse(waiting):
                waiting = [*self._items(waiting), *self._items(part)]
            else:
                yield waiting
                waiting = part
        if waiting is not None:
            yield waiting

    def _items(self, part: NodeLink | Sequence[Any]) -> Sequence[Any]:
        return self._node(part.id).items if isinstance(part, NodeLink) else part

    def _seal(self, height: int, runs: Iterable[Sequence[Any]]) -> list[NodeLink]:
        """Make nodes of runs of items, and return the links to them; `_flush` writes the nodes."""
        made = []
        for items in (piece for run in runs for piece in cut(run)):
            node = TreeNode(height, items)
            raw = node.raw
            node_id = id_of(raw)
            self._unwritten[node_id] = raw
            made.append(NodeLink(items[0].path, node_id, node.totals))
            if len(self._unwritten) >= WRITTEN_AT_ONCE:
                self._flush()
        return made

    def _flush(self) -> None:
        rows = [{"repo_id": self.repo_id, "id": i, "body": pack(raw)} for i, raw in self._unwritten.items()]
        insert_new(self._connection, nodes, rows)
        self._unwritten.clear()


def stored_node(node_id: str, body: bytes) -> TreeNode | None:
    """Return the node of a row; None when the content does not match the id."""
    try:
        raw = unpack(body)
    except zlib.error:
        return None
    return read_node(raw) if id_of(raw) == node_id else None


class FileDigests(Protocol):
    """The files of a commit as far as tags are derived from them: whether a path is there, and the sums over all."""

    def __contains__(self, path: object, /) -> bool:
        """Return whether there is a file with this path."""

    @property
    def totals(self) -> Totals:
        """The sums over all files."""


class TreeDigests(Mapping[str, str]):
    """A mapping from the paths of a tree to sha256; it looks up each path on demand."""

    def __init__(self, tree: FileTree) -> None:
        self._tree = tree

    def __getitem__(self, path: str) -> str:
        entry = self._tree.find(path)
        if entry is None:
            raise KeyError(path)
        return entry.sha256

    def __iter__(self) -> Iterator[str]:
        return (entry.path for entry in self._tree.walk())

    def __len__(self) -> int:
        return self.totals.files

    @property
    def totals(self) -> Totals:
        """The sums over all files."""
        return self._tree.totals()


def _merged(leaf: TreeNode, edits: Sequence[Edit]) -> Sequence[TreeFile]:
    after = dict(zip(leaf.keys, leaf.items, strict=True))
    for path, entry in edits:
        if entry is None:
            after.pop(key_of(path), None)
        else:
            after[key_of(path)] = entry
    return [after[key] for key in sorted(after)]


def _is_sparse(part: NodeLink | Sequence[Any]) -> bool:
    return not isinstance(part, NodeLink) and weight_of(part) < SPARSE_BYTES
