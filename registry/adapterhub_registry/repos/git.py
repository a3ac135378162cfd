"""The history of a repository as git has it: its commits, folders and tags become git objects whenever git asks.

The id of a git object follows from its content, and the content from rows that every server of a registry has alike:
the same history has the same ids everywhere, and nothing is stored for it. `KnownIds` remembers ids in memory, each by
all that decides it. A file that goes by LFS is its pointer; every file has mode 100644.

A file that LFS has and `.gitattributes` does not name would stay a pointer in a clone. So git sees lines for such files
at the end of `.gitattributes`, as the Hub adds them.

The last line of a commit's message names the commit of the registry, which is what `hf download --revision` takes.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from sqlalchemy import Row, select
from sqlalchemy.engine import Connection

from adapterhub_registry.database.db import Database, commits, refs
from adapterhub_registry.database.trees import EMPTY, FileTree, TreeFile
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.repos.commits import ATTRIBUTES_SHA256, DEFAULT_ATTRIBUTES, parents_of
from adapterhub_registry.repos.git_patterns import (
    ATTRIBUTES_FILE,
    MAX_ATTRIBUTES_BYTES,
    Attributes,
    lines_for,
    suffix_of,
)
from adapterhub_registry.settings import ServerLimits
from adapterhub_registry.storage.blobs import BlobStore

if TYPE_CHECKING:
    from dulwich.objects import Tree

FILE_MODE: Final = 0o100644
FOLDER_MODE: Final = 0o040000
TREE, BLOB = 2, 3
COMMIT, TAG = 1, 4
HEAD_REF: Final = b"refs/heads/main"
KNOWN_IDS: Final = 50_000
TOPS_AT_ONCE: Final = 100
MOST_FOLDERS: Final = 20_000
"""At one commit: as many as files. A file may be 32 folders deep, and each folder takes memory."""
_NO_ADDRESS: Final = "users.noreply.invalid"  # no server's name, which would change the ids

Key = TypeVar("Key")


class _Latest(Generic[Key]):
    """The last ids, by what decides them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: OrderedDict[Key, bytes] = OrderedDict()

    def get(self, key: Key) -> bytes | None:
        """Return the id, if it is known."""
        with self._lock:
            found = self._ids.get(key)
            if found is not None:
                self._ids.move_to_end(key)
            return found

    def put(self, key: Key, value: bytes) -> None:
        """Remember an id; the one that was used longest ago goes."""
        with self._lock:
            self._ids[key] = value
            if len(self._ids) > KNOWN_IDS:
                self._ids.popitem(last=False)


@dataclass(frozen=True)
class KnownIds:
    """The ids that one server has computed: of a tree by the digest of its files, of a commit by all that it has."""

    trees: _Latest[str] = field(default_factory=_Latest)
    commits: _Latest[tuple[int, str, bytes | None, bytes]] = field(default_factory=_Latest)


class GitCommit(NamedTuple):
    """A commit: the registry's `id` and top node, and the ids of git (40 hex digits) of its parent, tree and self."""

    id: str
    root: str
    parent: bytes | None
    tree: bytes
    git: bytes


class GitTag(NamedTuple):
    """A tag with a message, which is an object of its own."""

    target: bytes
    content: bytes


@dataclass(frozen=True)
class History:
    """What git sees of a repository: its refs by name, and by id the commits that they reach and the tags."""

    repo_id: int
    refs: Mapping[bytes, bytes]
    tags: Mapping[bytes, GitTag]
    commits: Mapping[bytes, GitCommit]

    def commit_of(self, git: bytes) -> bytes | None:
        """Return the commit that an id means, of a tag the tagged one; None for an unknown id."""
        target = self.tags[git].target if git in self.tags else git
        return target if target in self.commits else None

    def line(self, git: bytes | None) -> Iterator[bytes]:
        """Yield a commit and its ancestors, newest first."""
        while git is not None:
            yield git
            git = self.commits[git].parent


class GitItem(NamedTuple):
    """A folder or a file of a commit: its id, its type, and the bytes of the folder or the file in the registry."""

    git: bytes
    kind: int
    content: bytes | TreeFile

    @property
    def size(self) -> int:
        """The number of bytes of the object."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return len(self.content.pointer) if self.content.lfs else self.content.size


def too_much(repo: str, what: str) -> HttpRefusal:
    """413: git would take more of the server than one request may."""
    return HttpRefusal(
        413, "TooLarge", f"`{repo}` has {what}, which is beyond git here: `hf download {repo}` gets its files"
    )


def history_of(
    connection: Connection, blobs: BlobStore, repo: Row[Any], limits: ServerLimits, known: KnownIds
) -> History:
    """Read the history of a repository.

    Raises:
        HttpRefusal: 413 for more commits, or more changed folders, than the limits allow.
    """
    named = connection.execute(select(refs).where(refs.c.repo_id == repo.id).order_by(refs.c.kind, refs.c.name)).all()
    heads = list(dict.fromkeys(ref.commit_id for ref in named))
    lines = _lines(connection, repo, heads, limits.git_commits)
    folders = Folders(repo.full_name, limits.git_entries, blobs)
    trees = _trees(connection, repo.id, [root for _, _, root in lines], folders, known)
    found = _commits(connection, repo.id, lines, trees, known)
    tags: dict[bytes, GitTag] = {}
    named_refs: dict[bytes, bytes] = {}
    for ref in named:
        target, name = found[ref.commit_id].git, _ref_name(ref)
        if ref.kind == "tag" and ref.message:
            target, tag = _tag(ref, target)
            tags[target] = tag
        named_refs.setdefault(name, target)  # of a branch and an alias of one name, the alias, as everywhere
    return History(repo.id, _storable(named_refs), tags, {one.git: one for one in found.values()})


def _lines(
    connection: Connection, repo: Row[Any], heads: Sequence[str], most: int
) -> list[tuple[str, str | None, str]]:
    """Return the commits that the heads reach, with parent and top node; each parent before its children."""
    mine = select(commits.c.id, commits.c.parent, commits.c.root).where(commits.c.repo_id == repo.id).limit(most + 1)
    rows = {row.id: (row.id, row.parent, row.root) for row in connection.execute(mine)}
    if len(rows) > most:
        raise too_much(repo.full_name, f"more than {most} commits")
    done: set[str] = set()
    found = []
    for head in heads:
        line, at = [], head
        while at in rows and at not in done:
            done.add(at)
            line.append(rows[at])
            at = rows[at][1] or ""
        found += line[::-1]
    return found


def _trees(
    connection: Connection, repo_id: int, roots: Sequence[str], folders: Folders, known: KnownIds
) -> dict[str, bytes]:
    """Return the id of the tree of each top node."""
    found = {root: git for root in dict.fromkeys(roots) if (git := known.trees.get(root)) is not None}
    unknown = [root for root in dict.fromkeys(roots) if root not in found]
    for tree in trees_at(connection, repo_id, unknown):
        for _ in folders.move(tree):
            pass
        found[tree.root] = folders.top
        known.trees.put(tree.root, folders.top)
    return found


def trees_at(connection: Connection, repo_id: int, roots: Sequence[str]) -> Iterator[FileTree]:
    """Yield the files below some top nodes, in order; one statement reads many top nodes."""
    tree = FileTree(connection, repo_id, EMPTY)
    for start in range(0, len(roots), TOPS_AT_ONCE):
        some = roots[start : start + TOPS_AT_ONCE]
        tree.prefetch(some)
        yield from map(tree.at, some)


def _commits(
    connection: Connection,
    repo_id: int,
    lines: Sequence[tuple[str, str | None, str]],
    trees: Mapping[str, bytes],
    known: KnownIds,
) -> dict[str, GitCommit]:
    found: dict[str, GitCommit] = {}
    texts = _Texts(connection, repo_id, [commit_id for commit_id, _, _ in lines])
    for commit_id, before, root in lines:
        parent = found[before].git if before in found else None
        key = (repo_id, commit_id, parent, trees[root])
        git = known.commits.get(key)
        if git is None:
            git, _ = commit_object(texts.row(commit_id), parent, trees[root])
            known.commits.put(key, git)
        found[commit_id] = GitCommit(commit_id, root, parent, trees[root], git)
    return found


class _Texts:
    """The rows of commits, read in slices from the one that is asked for on: messages may be long, and are not kept."""

    def __init__(self, connection: Connection, repo_id: int, order: Sequence[str]) -> None:
        self._connection, self._repo_id, self._order = connection, repo_id, order
        self._place = {commit_id: at for at, commit_id in enumerate(order)}
        self._read: dict[str, Row[Any]] = {}

    def row(self, commit_id: str) -> Row[Any]:
        """Return the row of a commit."""
        if commit_id not in self._read:
            at = self._place[commit_id]
            self._read = rows_of(self._connection, self._repo_id, self._order[at : at + TEXTS_AT_ONCE])
        return self._read[commit_id]


TEXTS_AT_ONCE: Final = 50
"""How many commits are read with their messages, which may have a mebibyte each."""


def rows_of(connection: Connection, repo_id: int, ids: Sequence[str]) -> dict[str, Row[Any]]:
    """Return the rows of some commits, by id."""
    wanted = select(commits).where(commits.c.repo_id == repo_id, commits.c.id.in_(ids))
    return {row.id: row for row in connection.execute(wanted)}


def commit_object(row: Row[Any], parent: bytes | None, tree: bytes) -> tuple[bytes, bytes]:
    """Return the id and the bytes of a commit."""
    from dulwich.objects import Commit, ObjectID

    made = Commit()
    made.tree = ObjectID(tree)
    made.parents = [] if parent is None else [ObjectID(parent)]
    made.author = made.committer = _person(row.author)
    made.author_time = made.commit_time = row.created_at // 1000
    made.author_timezone = made.commit_timezone = 0
    parts = (row.title.strip(), row.message.strip(), f"Registry-Commit: {row.id}")
    made.message = _encoded("\n\n".join(part for part in parts if part) + "\n")
    return bytes(made.id), bytes(made.as_raw_string())


def _tag(ref: Row[Any], target: bytes) -> tuple[bytes, GitTag]:
    from dulwich.objects import Commit, ObjectID, Tag

    made = Tag()
    made.name = ref.name.encode()
    made.object = (Commit, ObjectID(target))
    made.tagger = _person("registry")
    made.tag_time, made.tag_timezone = ref.created_at // 1000, 0
    made.message = _encoded(ref.message.strip() + "\n")
    return bytes(made.id), GitTag(target, bytes(made.as_raw_string()))


def _person(name: str) -> bytes:
    plain = "".join(letter for letter in name if letter.isprintable() and letter not in "<>").strip() or "unknown"
    return _encoded(f"{plain} <{plain.replace(' ', '.')}@{_NO_ADDRESS}>")


def _encoded(text: str) -> bytes:
    return text.replace("\0", "").encode("utf-8", "replace")


def _ref_name(ref: Row[Any]) -> bytes:
    return f"refs/{'tags' if ref.kind == 'tag' else 'heads'}/{ref.name}".encode()


def _storable(named: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the refs that git can store beside each other: `a` and `a/b` would be a file and a folder of one name."""
    from dulwich.refs import Ref, check_ref_format

    kept: dict[bytes, bytes] = {}
    for name in sorted(named):
        parts = name.split(b"/")
        above = (b"/".join(parts[:count]) for count in range(3, len(parts)))
        if check_ref_format(Ref(name)) and not any(folder in kept for folder in above):
            kept[name] = named[name]
    return kept


# ------------------------------------------------------------ folders and files
class Folders:
    """The folders of a commit as git has them, moved from one commit to another by the nodes in which these differ."""

    def __init__(self, repo: str, most: int, blobs: BlobStore) -> None:
        from dulwich.objects import Tree

        self._repo, self._most, self._left, self._blobs = repo, most, most, blobs
        self._trees: dict[str, Tree] = {"": Tree()}
        self._leaves: frozenset[str] = frozenset()
        self._attributes: TreeFile | None = None
        self._attributes_read: str | None = None
        self._rules: Attributes | None = Attributes("")
        self._text = ""
        self._lfs: set[str] = set()
        self._unnamed: set[str] = set()
        """The files that LFS has and the rules do not name."""
        self._regular: Counter[str] = Counter()
        """How many other files have each suffix."""

    @property
    def top(self) -> bytes:
        """The id of the top folder."""
        return bytes(self._trees[""].id)

    def move(self, tree: FileTree) -> Iterator[GitItem]:
        """Move to the files of another commit; the files and folders that the commit before did not have.

        Raises:
            HttpRefusal: 413 for more entries of changed folders than one request may take, or too many folders.
        """
        listed = tree.leaf_ids()
        before, self._leaves = self._leaves, frozenset(listed)
        new = list(tree.files_in([leaf for leaf in listed if leaf not in before]))
        old = list(tree.files_in([leaf for leaf in before if leaf not in self._leaves]))
        self._take(len(new) + len(old))
        kept = {entry.path for entry in new}
        changed: set[str] = set()
        for entry in old:
            self._count(entry, -1)
            if entry.path == ATTRIBUTES_FILE:
                self._attributes = None
            elif entry.path not in kept:
                folder, _, name = entry.path.rpartition("/")
                del self._trees[folder][name.encode()]
                changed.add(folder)
        self._follow_attributes(next((one for one in new if one.path == ATTRIBUTES_FILE), self._attributes))
        for entry in new:
            self._count(entry, 1)
            if entry.path != ATTRIBUTES_FILE:
                folder, _, name = entry.path.rpartition("/")
                item = GitItem(entry.oid.encode(), BLOB, entry)
                if self._put(folder, name, FILE_MODE, item.git):
                    changed.add(folder)
                    yield item
        named = self._attributes_item()
        if named is not None and self._put("", ATTRIBUTES_FILE, FILE_MODE, named.git):
            changed.add("")
            yield named
        elif named is None and ATTRIBUTES_FILE.encode() in self._trees[""]:
            del self._trees[""][ATTRIBUTES_FILE.encode()]
            changed.add("")
        yield from self._remade(changed)

    def _count(self, entry: TreeFile, number: int) -> None:
        """Note that a file came (1) or went (-1)."""
        if not entry.lfs:
            self._regular[suffix_of(entry.path)] += number
        elif number < 0:
            self._lfs.discard(entry.path)
            self._unnamed.discard(entry.path)
        else:
            self._lfs.add(entry.path)
            self._look(entry.path)

    def _look(self, path: str) -> None:
        if self._rules is not None:
            self._take(self._rules.cost)
            if not self._rules.gives_to_lfs(path):
                self._unnamed.add(path)

    def _follow_attributes(self, entry: TreeFile | None) -> None:
        """Read the rules of a commit, if they are others; None of a file that is too large or is in LFS itself."""
        before, self._attributes = self._attributes_read, entry
        self._attributes_read = None if entry is None else entry.sha256
        if before == self._attributes_read:
            return
        self._text, self._rules = "", Attributes("")
        if entry is not None and (entry.lfs or entry.size > MAX_ATTRIBUTES_BYTES):
            self._rules = None
        elif entry is not None:
            is_default = entry.sha256 == ATTRIBUTES_SHA256
            content = DEFAULT_ATTRIBUTES if is_default else b"".join(self._blobs.open(entry.sha256))
            self._text = content.decode("utf-8", "surrogateescape")
            self._rules = Attributes(self._text)
        self._unnamed = set()
        for path in self._lfs:
            self._look(path)

    def _attributes_item(self) -> GitItem | None:
        """`.gitattributes` as git sees it."""
        from dulwich.objects import Blob

        self._take(len(self._unnamed))
        lines = "".join(lines_for(self._unnamed, {one for one, count in self._regular.items() if count}))
        if not lines:
            entry = self._attributes
            return None if entry is None else GitItem(entry.oid.encode(), BLOB, entry)
        end = "" if self._text.endswith("\n") or not self._text else "\n"
        content = f"{self._text}{end}{lines}".encode("utf-8", "surrogateescape")
        return GitItem(bytes(Blob.from_string(content).id), BLOB, content)

    def _put(self, folder: str, name: str, mode: int, git: bytes) -> bool:
        """Set an entry of a folder; whether it was another one before."""
        from dulwich.objects import ObjectID, Tree

        tree, key = self._trees.get(folder), name.encode()
        if tree is None:
            if len(self._trees) > MOST_FOLDERS:
                raise too_much(self._repo, f"more than {MOST_FOLDERS} folders")
            tree = self._trees[folder] = Tree()
        elif key in tree and tree[key] == (mode, git):
            return False
        tree[key] = (mode, ObjectID(git))
        return True

    def _remade(self, changed: set[str]) -> Iterator[GitItem]:
        """Yield the changed folders and those above them, each after what it holds. An empty one goes."""
        every = {""} if changed else set()
        for folder in changed:
            for path in (folder, *parents_of(folder)):
                if path in every:
                    break  # so are those above it
                every.add(path)
            if len(every) > 2 * MOST_FOLDERS:  # those that go and those that come
                raise too_much(self._repo, f"more than {MOST_FOLDERS} folders")
        for path in sorted(every, key=lambda path: path.count("/") + 1 if path else 0, reverse=True):
            above, _, name = path.rpartition("/")
            tree = self._trees.get(path)
            self._take(1 if tree is None else len(tree) + 1)
            if tree is not None and (len(tree) or not path):
                item = GitItem(bytes(tree.id), TREE, bytes(tree.as_raw_string()))
                yield item
                if path:
                    self._put(above, name, FOLDER_MODE, item.git)
            elif tree is not None:
                del self._trees[path]
                outer, key = self._trees[above], name.encode()
                if key in outer and outer[key][0] == FOLDER_MODE:  # a file may have its name now
                    del outer[key]

    def _take(self, entries: int) -> None:
        self._left -= entries
        if self._left < 0:
            raise too_much(self._repo, f"more than {self._most} entries of changed folders over all commits")


# ------------------------------------------------------------ what a client lacks
@dataclass(frozen=True)
class Wanted:
    """A client's request: ids that it wants, commits that it claims to have, its shallow ones, and how deep.

    `depth` is 0 for the whole history.
    """

    wants: Sequence[bytes]
    haves: Sequence[bytes] = ()
    shallow: AbstractSet[bytes] = frozenset()
    depth: int = 0


@dataclass(frozen=True)
class Lacking:
    """The commits that a client lacks, and the new edges of its history."""

    send: Sequence[bytes]
    had: AbstractSet[bytes]
    shallow: Sequence[bytes]
    unshallow: Sequence[bytes]
    ready: bool
    """Whether the client has an ancestor of everything that it wants."""


def lacking(history: History, wanted: Wanted) -> Lacking:
    """Compare a history with a client's commits, in time proportional to the history, whatever the client sends."""
    had: set[bytes] = set()
    for git in wanted.haves:
        for older in history.line(history.commit_of(git)):
            if older in had:
                break
            had.add(older)
            if older in wanted.shallow:
                break
    tips = list(dict.fromkeys(tip for git in wanted.wants if (tip := history.commit_of(git)) is not None))
    found, edges = _down_from(history, tips, had | wanted.shallow, wanted.depth)
    send = [git for git in found if git not in had and (wanted.depth or git not in wanted.shallow)]
    ends = (git for git in sorted(wanted.shallow) if git in found and git not in edges)
    unshallow = list(ends) if wanted.depth else []
    return Lacking(send, had, sorted(edges - wanted.shallow), unshallow, _all_reach(history, tips, had))


def _down_from(
    history: History, tips: Sequence[bytes], ends: AbstractSet[bytes], depth: int
) -> tuple[Sequence[bytes], AbstractSet[bytes]]:
    """Return the commits below some tips, one generation after the other: `depth` of them, or all down to the `ends`.

    The second part has those of the last generation that have a parent.
    """
    found: dict[bytes, None] = {}
    generation, left = list(tips), depth
    while generation:
        found.update(dict.fromkeys(generation))
        parents = [history.commits[git].parent for git in generation if depth or git not in ends]
        left -= 1
        if left == 0:
            return list(found), {git for git in generation if history.commits[git].parent is not None}
        generation = [git for git in dict.fromkeys(parents) if git is not None and git not in found]
    return list(found), frozenset()


def _all_reach(history: History, tips: Sequence[bytes], had: AbstractSet[bytes]) -> bool:
    """Return whether each tip is or has an ancestor that a client has."""
    passed: set[bytes] = set()
    for tip in tips:
        line = []
        for git in history.line(tip):
            if git in had or git in passed:
                break
            line.append(git)
        else:
            return False
        passed.update(line)
    return bool(had)


class Pack:
    """The objects that a client gets: counted first, as a pack begins with their number, then made one by one.

    Memory has the ids of all and the content of one. `tags` are the objects of tags among them.
    """

    def __init__(
        self,
        blobs: BlobStore,
        repo: str,
        history: History,
        found: Lacking,
        tags: Sequence[bytes],
        limits: ServerLimits,
    ) -> None:
        self._blobs, self._repo, self._history, self._limits, self._tags = blobs, repo, history, limits, tags
        self._send = [history.commits[git] for git in found.send]
        sent = set(found.send)
        edges = (one.parent for one in self._send if one.parent in found.had and one.parent not in sent)
        self._edges = [history.commits[git].root for git in dict.fromkeys(edges) if git is not None]
        self.number = 0

    def count(self, connection: Connection) -> None:
        """Count the objects; no byte of a file is read.

        Raises:
            HttpRefusal: 413 for more objects or bytes than one request may have.
        """
        folders, seen = self._start(connection)
        size, most = 0, self._limits.git_pack_bytes
        for item in self._new(connection, [one.root for one in self._send], seen, folders):
            size += item.size
            if size > most:
                raise too_much(self._repo, f"more than {most} bytes that git would get; `git clone --depth 1` is less")
        self.number = len(self._tags) + len(self._send) + len(seen) - self._known

    def chunks(self, database: Database) -> Iterator[bytes]:
        """Yield the bytes of the pack. No transaction is open while they are sent."""
        from dulwich.pack import pack_header_chunks

        sha1 = hashlib.sha1(usedforsecurity=False)
        for chunk in chain(pack_header_chunks(self.number), self._objects(database)):
            sha1.update(chunk)
            yield chunk
        yield sha1.digest()

    def _objects(self, database: Database) -> Iterator[bytes]:
        for git in self._tags:
            yield from _packed(TAG, self._history.tags[git].content)
        for start in range(0, len(self._send), TEXTS_AT_ONCE):
            some = self._send[start : start + TEXTS_AT_ONCE]
            with database.read() as connection:
                rows = rows_of(connection, self._history.repo_id, [one.id for one in some])
            for one in some:
                yield from _packed(COMMIT, commit_object(rows[one.id], one.parent, one.tree)[1])
        with database.read() as connection:
            folders, seen = self._start(connection)
        for start in range(0, len(self._send), TEXTS_AT_ONCE):
            roots = [one.root for one in self._send[start : start + TEXTS_AT_ONCE]]
            with database.read() as connection:
                items = list(self._new(connection, roots, seen, folders))
            for item in items:
                yield from _packed(item.kind, _content(item, self._blobs))

    def _start(self, connection: Connection) -> tuple[Folders, set[bytes]]:
        """Return the folders and files that the client has: those of the commits below which it lacks something."""
        folders, seen = Folders(self._repo, self._limits.git_entries, self._blobs), set[bytes]()
        for _ in self._new(connection, self._edges, seen, folders):
            pass
        self._known = len(seen)
        return folders, seen

    def _new(
        self, connection: Connection, roots: Sequence[str], seen: set[bytes], folders: Folders
    ) -> Iterator[GitItem]:
        """Yield the folders and files below some top nodes that are not in `seen`, which they join."""
        for tree in trees_at(connection, self._history.repo_id, roots):
            for item in folders.move(tree):
                if item.git not in seen:
                    seen.add(item.git)
                    yield item


def _content(item: GitItem, blobs: BlobStore) -> bytes:
    if isinstance(item.content, bytes):
        return item.content
    return item.content.pointer if item.content.lfs else b"".join(blobs.open(item.content.sha256))


def _packed(kind: int, content: bytes) -> Iterator[bytes]:
    from dulwich.object_format import DEFAULT_OBJECT_FORMAT
    from dulwich.pack import pack_object_chunks

    yield from pack_object_chunks(kind, [content], object_format=DEFAULT_OBJECT_FORMAT)
