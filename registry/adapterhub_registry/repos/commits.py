"""Reads and makes commits, computes their changes, and rewrites histories.

A commit has a parent, files, an author, a message and a time; its id is the sha1 over these, 40 hex digits, as every
hub client expects. Repeating the same change makes no commit: clients repeat a request when a response is lost.

A history may be rewritten: one commit instead of a branch's many, LFS files removed from every commit. Released
versions never change: their commits keep their ids and files, and a request that would touch one is refused. The bytes
of what no commit names any more go with the next `adapt registry gc`.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import Integer, Row, String, bindparam, delete, func, insert, literal, select, update
from sqlalchemy.engine import Connection

from adapterhub_registry.access import rights
from adapterhub_registry.access.rights import Writes, nobody
from adapterhub_registry.access.tokens import BY_DIGEST
from adapterhub_registry.database.db import adapters as adapters_table
from adapterhub_registry.database.db import (
    add_bytes,
    commits,
    insert_new,
    nodes,
    now_ms,
    places,
    refs,
    releases,
    repo_tags,
    repos,
    slices,
    uploads,
)
from adapterhub_registry.database.db import blobs as blobs_table
from adapterhub_registry.database.prepared import PreparedPair, PreparedSql
from adapterhub_registry.database.search_tables import among
from adapterhub_registry.database.trees import (
    EMPTY,
    FileDigests,
    FileTree,
    Outline,
    TreeDigests,
    TreeFile,
    changed_digest,
    key_of,
    keys_below,
    outline_of,
    read_node,
    unpack,
)
from adapterhub_registry.errors import (
    HttpRefusal,
    bad_request,
    conflict,
    entry_not_found,
    revision_not_found,
    stale_parent,
)
from adapterhub_registry.names import COMMIT, COMMIT_PREFIX, MAX_FOLDERS
from adapterhub_registry.repos import adapter_facts, adapters, aliases
from adapterhub_registry.repos.git_patterns import ATTRIBUTES_FILE, LFS_WORDS
from adapterhub_registry.repos.unnamed import drop_unnamed
from adapterhub_registry.storage.blobs import BlobStore, StoredBlob

INSERT_ROWS = 500
_BINARY = (
    "7z arrow bin bz2 ckpt ftz gz h5 joblib lfs.* mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth"
    " rar safetensors"
)
DEFAULT_ATTRIBUTES = "".join(
    f"{pattern} {LFS_WORDS}\n"
    for pattern in (
        *(f"*.{suffix}" for suffix in _BINARY.split()),
        "saved_model/**/*",
        *(f"*.{suffix}" for suffix in ["tar.*", "tar", "tflite", "tgz", "wasm", "xz", "zip", "zst"]),
        "*tfevents*",
    )
).encode()
"""What the Hub writes."""
ATTRIBUTES_SHA256 = hashlib.sha256(DEFAULT_ATTRIBUTES).hexdigest()
HISTORY_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A commit that a client requests. With `parent` (7 hex digits or more), the branch must still be there.

    `writes` are the rights of the client. `tag` is a new tag of the commit, which has to be on `main`.
    """

    branch: str
    title: str
    message: str
    author: str
    parent: str | None
    operations: tuple[Operation, ...]
    writes: Writes = nobody
    tag: adapters.NewTag | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file at a commit of a repository, and the warning about that commit."""

    repo_id: int
    commit_id: str
    entry: TreeFile
    warning: str | None


def top_at(connection: Connection, full_name: str, revision: str) -> Row[Any] | None:
    """Return the top node of a repository's files and what a reader needs to know; None if this takes a closer look.

    The row has the repository's `id`, `full_name`, `private` and `gated`, the `commit_id`, its `root` and `body`, and
    the `version` and `yanked_reason` of a yanked release.
    """
    return top_of(revision).alone.first(connection, full_name=full_name, revision=revision)


def top_of(revision: str) -> Top:
    """Return the statements of `top_at`, whose parameters are `full_name` and `revision`."""
    return _TOP_OF_COMMIT if COMMIT.fullmatch(revision) else _TOP_OF_REF


def file_in(top: Row[Any], path: str) -> FoundFile | None:
    """Return the same as `file_below`, using only the row; None if the tree has more nodes."""
    node = read_node(unpack(top.body))
    return None if node.height else _found(top, path, node.file(key_of(path)))


def file_below(connection: Connection, top: Row[Any], path: str) -> FoundFile:
    """Return a file below a row of `top_at`; raises 404 EntryNotFound, with the commit."""
    return _found(top, path, FileTree(connection, top.id, top.root, top=top.body).find(path))


def _found(top: Row[Any], path: str, entry: TreeFile | None) -> FoundFile:
    if entry is None:
        raise entry_not_found(path, top.commit_id)
    return FoundFile(repo_id=top.id, commit_id=top.commit_id, entry=entry, warning=warning_of(top))


def warning_of(top: Row[Any]) -> str | None:
    """As `adapters.warning_for`, of a row of `top_at`."""
    return None if top.version is None else adapters.yank_warning(top.version, top.yanked_reason)


class Top(NamedTuple):
    """The statement of a top node by itself, and beside that of a token."""

    alone: PreparedSql
    with_token: PreparedPair


def _tops(*, of_ref: bool) -> Top:
    at_ref = (refs.c.repo_id == repos.c.id) & (refs.c.name == bindparam("revision"))
    commit_id = refs.c.commit_id if of_ref else bindparam("revision", type_=String)
    at = (commits.c.repo_id == repos.c.id) & (commits.c.id == commit_id)
    top = (nodes.c.repo_id == repos.c.id) & (nodes.c.id == commits.c.root)
    gone = (releases.c.repo_id == repos.c.id) & (releases.c.commit_id == commits.c.id)
    about = (repos.c.id, repos.c.full_name, repos.c.private, repos.c.gated, commits.c.id.label("commit_id"))
    found = select(*about, commits.c.root, nodes.c.body, releases.c.version, releases.c.yanked_reason)
    found = found.select_from(repos)
    if of_ref:  # of a tag and a branch of one name, the tag counts
        found = found.join(refs, at_ref & refs.c.kind.in_(("alias", "branch", "tag"))).order_by(refs.c.kind.desc())
    found = found.join(commits, at).join(nodes, top)
    found = found.join(releases, gone & releases.c.yanked_at.is_not(None), isouter=True)
    found = found.where(repos.c.full_name == bindparam("full_name")).order_by(releases.c.version).limit(1)
    return Top(PreparedSql(found), PreparedPair(BY_DIGEST, found))


_TOP_OF_COMMIT: Final = _tops(of_ref=False)
_TOP_OF_REF: Final = _tops(of_ref=True)


def find_commit(
    connection: Connection, repo: Row[Any], revision: str, *, prefers: Literal["branch", "tag"] = "tag"
) -> str:
    """Return the commit of a branch, alias, tag, `refs/heads/x`, `refs/tags/x` or commit id (7 hex digits or more).

    HEAD is `main`. Hub clients see an alias as a branch.

    `prefers` decides where a branch and a tag have the same name.

    Raises:
        HttpRefusal: 404 RevisionNotFound.
    """
    revision = "main" if revision == "HEAD" else revision
    kinds, name = ["alias", "branch", "tag"], revision
    for prefix, meant in (("refs/heads/", ["alias", "branch"]), ("refs/tags/", ["tag"])):
        if revision.startswith(prefix):
            kinds, name = meant, revision.removeprefix(prefix)
    if COMMIT_PREFIX.fullmatch(revision):  # no branch or tag has such a name
        ids = select(commits.c.id).where(commits.c.repo_id == repo.id)
        # `g` sorts after every hex digit
        begins = (commits.c.id >= revision) & (commits.c.id < f"{revision}g")
        ids = ids.where(commits.c.id == revision if COMMIT.fullmatch(revision) else begins)
        found = connection.scalars(ids.limit(2)).all()
    else:
        wanted = select(refs.c.commit_id).where(refs.c.repo_id == repo.id, refs.c.kind.in_(kinds), refs.c.name == name)
        order = refs.c.kind if prefers == "branch" else refs.c.kind.desc()
        found = connection.scalars(wanted.order_by(order).limit(1)).all()
    if len(found) != 1:
        raise revision_not_found(repo.full_name, revision)
    return str(found[0])


def tree_of(connection: Connection, repo_id: int, commit_id: str) -> FileTree:
    """Return the files at a commit."""
    ((root,),) = _ROOT.tuples(connection, repo=repo_id, commit=commit_id)
    return FileTree(connection, repo_id, root)


def trees_of(connection: Connection, repo_id: int, commit_ids: Sequence[str]) -> dict[str, FileTree]:
    """Return the files at some commits, with their top nodes.

    A commit that is missing, or without files, is left out.
    """
    rows = _ROOTS.tuples(connection, repo=repo_id, commits=json.dumps(list(commit_ids)))
    return {commit: FileTree(connection, repo_id, root, top=top) for commit, root, top in rows}


_ROOT: Final = PreparedSql(
    select(commits.c.root).where(commits.c.repo_id == bindparam("repo"), commits.c.id == bindparam("commit"))
)
_ROOTS: Final = PreparedSql(
    select(commits.c.id, commits.c.root, nodes.c.body)
    .join_from(commits, nodes, (nodes.c.repo_id == commits.c.repo_id) & (nodes.c.id == commits.c.root))
    .where(commits.c.repo_id == bindparam("repo"), among(commits.c.id, "commits"))
)


def outlines_of(connection: Connection, repo_ids: Sequence[int]) -> dict[tuple[int, str], Outline]:
    """Return the files of some repositories, by their number and head; a repository without a top node is left out."""
    rows = _TOPS.tuples(connection, numbers=json.dumps(list(repo_ids)))
    return {(number, head): outline_of(body) for number, head, body in rows}


_TOPS: Final = PreparedSql(
    select(repos.c.id, repos.c.head, nodes.c.body)
    .join_from(repos, commits, (commits.c.repo_id == repos.c.id) & (commits.c.id == repos.c.head))
    .join(nodes, (nodes.c.repo_id == repos.c.id) & (nodes.c.id == commits.c.root))
    .where(among(repos.c.id, "numbers"))
)


def file_at(connection: Connection, repo_id: int, commit_id: str, path: str) -> TreeFile:
    """One file at a commit.

    Raises:
        HttpRefusal: 404 EntryNotFound, with the commit.
    """
    entry = tree_of(connection, repo_id, commit_id).find(path)
    if entry is None:
        raise entry_not_found(path, commit_id)
    return entry


def history(
    connection: Connection, repo_id: int, commit_id: str, *, limit: int
) -> tuple[Sequence[Row[Any]], str | None]:
    """`commit_id` and its ancestors, newest first, and the first commit of the next page.

    A page has at most `limit` commits, and fewer when their messages are long.
    """
    most = {"limit": limit, "characters": HISTORY_CHARACTERS}
    found = _HISTORY.rows(connection, repo=repo_id, start=commit_id, **most)
    return found, found[-1].parent


def _history() -> PreparedSql:
    mine, start = commits.c.repo_id == bindparam("repo"), commits.c.id == bindparam("start")
    characters = func.length(commits.c.title) + func.length(commits.c.message)
    first = select(commits.c.id, commits.c.parent, literal(1).label("place"), characters.label("characters"))
    line = first.where(mine, start).cte("line", recursive=True)
    older = select(commits.c.id, commits.c.parent, line.c.place + 1, line.c.characters + characters)
    most, enough = (bindparam(name, type_=Integer) for name in ("limit", "characters"))
    fits = (line.c.place < most) & (line.c.characters < enough)
    line = line.union_all(older.join(line, commits.c.id == line.c.parent).where(mine, fits))
    # outer, so that each commit of the line is looked up: SQLite would begin with all of the repository
    found = line.outerjoin(commits, mine & (commits.c.id == line.c.id))
    return PreparedSql(select(commits).select_from(found).order_by(line.c.place))


_HISTORY: Final = _history()


def count(connection: Connection, repo_id: int, commit_id: str) -> int:
    """Return the number of commits that `history` lists from `commit_id` on."""
    ((depth,),) = _DEPTH.tuples(connection, repo=repo_id, start=commit_id)
    return int(_LENGTH.tuples(connection, repo=repo_id, start=commit_id)[0][0] if depth is None else depth)


_DEPTH: Final = PreparedSql(
    select(commits.c.depth).where(commits.c.repo_id == bindparam("repo"), commits.c.id == bindparam("start"))
)


def _length() -> PreparedSql:
    mine, start = commits.c.repo_id == bindparam("repo"), commits.c.id == bindparam("start")
    line = select(commits.c.parent).where(mine, start).cte("line", recursive=True)
    line = line.union_all(select(commits.c.parent).join(line, commits.c.id == line.c.parent).where(mine))
    counted: Any = select(func.count()).select_from(line)
    return PreparedSql(counted)


_LENGTH: Final = _length()


def first_file(blobs: BlobStore) -> Put:
    """Return the file of every repository that tells git which files go by LFS."""
    return Put(path=ATTRIBUTES_FILE, blob=blobs.put([DEFAULT_ATTRIBUTES], size=len(DEFAULT_ATTRIBUTES)), lfs=False)


def first_commit(connection: Connection, blobs: BlobStore, repo_number: int, full_name: str, *, author: str) -> str:
    """Make the first commit of a repository, with the file that tells git which files go by LFS."""
    put = first_file(blobs)
    # with the name, so that two repositories of one moment do not share a commit id; a number would count hidden ones
    words = ("initial commit", full_name, author)
    return write(connection, FileTree(connection, repo_number, EMPTY), None, {put.path: put}, words)


def locked_head(connection: Connection, repo: Row[Any], branch: str) -> FileTree:
    """Return the files at the head of a branch, which no other transaction moves until this one ends.

    Raises:
        HttpRefusal: 404 for a missing branch.
    """
    mine = (refs.c.repo_id == repo.id) & (refs.c.kind == "branch") & (refs.c.name == branch)
    head = connection.scalar(select(refs.c.commit_id).where(mine).with_for_update())
    if head is None:
        raise revision_not_found(repo.full_name, branch)
    return tree_of(connection, repo.id, head)


def commit(
    connection: Connection, blobs: BlobStore, repo: Row[Any], proposal: Proposal, *, max_files: int, most_refs: int = 0
) -> str:
    """Apply a proposal to its branch and index the result; return the new head, or the old one without changes.

    Raises:
        HttpRefusal: 404 for a missing branch or a missing file to remove, 412 when the branch has moved, 400 or 413 for
            an invalid tree, 409 for a released version with other bytes.
    """
    branch = (refs.c.repo_id == repo.id) & (refs.c.kind == "branch") & (refs.c.name == proposal.branch)
    head = connection.scalar(select(refs.c.commit_id).where(branch).with_for_update())
    if head is None:
        raise revision_not_found(repo.full_name, proposal.branch)
    tree = tree_of(connection, repo.id, head)
    if proposal.parent is not None and not head.startswith(proposal.parent):
        if _is_this_already(connection, repo, proposal, head, tree):
            return str(head)
        raise stale_parent(proposal.parent, head)
    changes = changes_of(tree, proposal.operations)
    made = str(head)
    if changes:
        check_tree(tree, changes, max_files)
        made = write(connection, tree, head, changes, (proposal.title, proposal.message, proposal.author))
        moved = connection.execute(
            update(refs).where(branch, refs.c.commit_id == head).values(commit_id=made, created_at=now_ms())
        )
        if not moved.rowcount:
            raise stale_parent(head, "another commit now")
    if proposal.branch == "main" and (changes or proposal.tag):
        describe(connection, blobs, repo, made, proposal.writes, proposal.tag, most_refs)
    return made


def _is_this_already(connection: Connection, repo: Row[Any], proposal: Proposal, head: str, tree: FileTree) -> bool:
    """Return whether the head is the same change on the same parent: a request that the client repeated."""
    wanted = select(commits.c.parent).where(commits.c.repo_id == repo.id, commits.c.id == head)
    parent = connection.scalar(wanted)
    if parent is None or not parent.startswith(proposal.parent or "-"):
        return False
    before = tree_of(connection, repo.id, parent)
    try:
        changes = changes_of(before, proposal.operations)
    except HttpRefusal:
        return False
    return digest_after(before, changes) == tree.totals().digest


def write(
    connection: Connection, tree: FileTree, parent: str | None, changes: Changes, words: tuple[str, str, str]
) -> str:
    """Write a commit of `tree` with the changes; `words` are its title, message and author. Return its id."""
    title, message, author = words
    now, repo_number = now_ms(), tree.repo_id
    made = id_of_commit(parent, changes, words, now)
    after = tree.changed([(path, None if put is None else entry_of(put, made, now)) for path, put in changes.items()])
    connection.execute(
        insert(commits).values(
            repo_id=repo_number,
            id=made,
            parent=parent,
            root=after.root,
            depth=1 if parent is None else count(connection, repo_number, parent) + 1,
            title=title,
            message=message,
            author=author,
            created_at=now,
        )
    )
    new = [put for put in changes.values() if put is not None]
    for start in range(0, len(new), INSERT_ROWS):
        some = new[start : start + INSERT_ROWS]
        known = {put.blob.sha256: put.blob for put in some}.values()
        blob_rows = [{"sha256": b.sha256, "git_sha1": b.git_sha1, "size": b.size, "created_at": now} for b in known]
        insert_new(connection, blobs_table, blob_rows)
        named = {"repo_id": repo_number, "commit_id": made}
        insert_new(connection, places, [named | {"sha256": put.blob.sha256, "path": put.path} for put in some])
    add_bytes(connection, repo_number, sum(put.blob.size for put in new))
    return made


def id_of_commit(parent: str | None, changes: Changes, words: tuple[str, str, str], now: int) -> str:
    """Return the id of a commit of this moment; `words` are its title, message and author."""
    facts = json.dumps([parent, id_of_changes(changes), *words, now]).encode()
    return hashlib.sha1(facts, usedforsecurity=False).hexdigest()


def entry_of(put: Put, commit_id: str, now: int) -> TreeFile:
    """Return the file of a commit that a change makes."""
    return TreeFile(
        path=put.path,
        sha256=put.blob.sha256,
        git_sha1=put.blob.git_sha1,
        size=put.blob.size,
        lfs=put.lfs,
        changed_in=commit_id,
        changed_at=now,
    )


def describe(
    connection: Connection,
    blobs: BlobStore,
    repo: Row[Any],
    head: str,
    writes: Writes,
    tag: adapters.NewTag | None = None,
    most_refs: int = 0,
) -> None:
    """Update the facts for listings and searches to the new head of `main`, and also let a new tag name it."""
    tree = tree_of(connection, repo.id, head)
    digests = TreeDigests(tree)
    front_matter, config = adapter_facts.read_card(blobs, digests), adapter_facts.read_config(blobs, digests)
    if tag is not None:
        put = partial(aliases.create_ref, connection, repo, "tag", tag.name, head, None, most=most_refs)
        tag = replace(tag, put=put)
    earned = adapters.index_commit(connection, blobs, repo, head, digests, tag=tag, writes=writes)
    task = connection.scalar(
        select(adapters_table.c.task).where(adapters_table.c.repo_id == repo.id, adapters_table.c.commit_id == head)
    )
    names, now = rights.names_of(connection, repo.id), now_ms()
    values, tags = head_facts(front_matter, config, digests, earned, names, task)
    connection.execute(update(repos).where(repos.c.id == repo.id).values(head=head, modified_at=now, **values))
    connection.execute(repo_tags.delete().where(repo_tags.c.repo_id == repo.id))
    insert_new(connection, repo_tags, [{"repo_id": repo.id, "tag": tag, "modified_at": now} for tag in sorted(tags)])


def head_facts(
    card: Mapping[str, Any],
    config: Mapping[str, Any],
    files: FileDigests,
    earned: Sequence[str],
    names: Iterable[str],
    task: str | None,
) -> tuple[dict[str, Any], set[str]]:
    """Return the columns of a repository that describe its head, and its tags.

    `earned` are the tags of its adapter, `names` those that it may release, `task` is that of the adapter.
    """
    card_tags = adapter_facts.without_contradictions(adapter_facts.tags_of(card, config, files), earned)
    adapter_library = "peft" if adapter_facts.ADAPTER_CONFIG in files else None
    pipeline_tag = _text(card.get("pipeline_tag")) or _text(task)
    shown_tag = [pipeline_tag] if pipeline_tag and pipeline_tag.isprintable() else []
    values = {
        "used_bytes": files.totals.bytes,
        "pipeline_tag": pipeline_tag,
        "library_name": _text(card.get("library_name")) or adapter_library,
        "card": json.dumps(card),
        "config": json.dumps(config),
    }
    return values, {*card_tags, *earned, *(f"{rights.TAG}{name}" for name in names), *shown_tag}


def _text(value: object) -> str | None:
    return value[:200] if isinstance(value, str) and value else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Set a file to a stored blob."""

    path: str
    blob: StoredBlob
    lfs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Remove a file."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteFolder:
    """Remove all files below a folder."""

    path: str


Operation = Put | Delete | DeleteFolder
Changes = dict[str, Put | None]
"""The new content of each changed path, sorted by `key_of`; None removes the file."""


def changes_of(tree: FileTree, operations: Sequence[Operation]) -> Changes:
    """Return the changes that operations make, applied in order; empty when the tree has all of them.

    Raises:
        HttpRefusal: 404 for removing a file or folder that does not exist.
    """
    named = sorted({step.path for step in operations if not isinstance(step, DeleteFolder)}, key=key_of)
    before = {path: entry.sha256 for path in named if (entry := tree.find(path)) is not None}
    changes = _Changed(tree, before)
    for step in operations:
        if isinstance(step, Put):
            changes.put(step)
        elif isinstance(step, DeleteFolder):
            changes.delete_folder(step.path)
        else:
            changes.delete(step.path)
    return changes.sorted()


class _Changed:
    """The changes so far. `before` has the sha256 of all files that the operations name, and of others."""

    def __init__(self, tree: FileTree, before: dict[str, str]) -> None:
        self._tree, self._before = tree, before
        self._keys: list[str] = []  # of the files that `put` set
        self._emptied: set[str] = set()  # folders whose files in the tree were read
        self.found: Changes = {}

    def put(self, step: Put) -> None:
        """Set a file."""
        path, now = step.path, self._before.get(step.path)
        if path in self.found:
            put = self.found[path]
            now = put.blob.sha256 if put is not None else None
        if now != step.blob.sha256:
            self._forget(path)
            self.found[path] = step
            insort(self._keys, key_of(path))

    def delete(self, path: str) -> None:
        """Remove a file; where there is a folder of this name, all files below it."""
        if (self.found[path] if path in self.found else self._before.get(path)) is None:
            self.delete_folder(path)
            return
        self._forget(path)
        if path in self._before:
            self.found[path] = None

    def delete_folder(self, folder: str) -> None:
        """Remove all files below a folder."""
        start, end = keys_below(folder)
        gone = [
            key.replace("\0", "/") for key in self._keys[bisect_left(self._keys, start) : bisect_left(self._keys, end)]
        ]
        if not any(parent in self._emptied for parent in [folder, *parents_of(folder)]):
            for entry in self._tree.walk(folder):
                if entry.path not in self.found:
                    self._before[entry.path] = entry.sha256
                    gone.append(entry.path)
            self._emptied.add(folder)
        if not gone:
            raise _missing(folder)
        for path in gone:
            self.delete(path)

    def sorted(self) -> Changes:
        """Return the changes, without files that have their old content again."""
        found = ((path, self.found[path]) for path in sorted(self.found, key=key_of))
        return {path: put for path, put in found if put is None or put.blob.sha256 != self._before.get(path)}

    def _forget(self, path: str) -> None:
        if self.found.pop(path, None) is not None:
            del self._keys[bisect_left(self._keys, key_of(path))]


def check_tree(tree: FileTree, changes: Changes, max_files: int) -> None:
    """Raise when the changed tree is too large or too deep, or has a path that is both file and folder.

    Raises:
        HttpRefusal: 400 or 413.
    """
    new = [path for path, put in changes.items() if put is not None and tree.find(path) is None]
    gone = [path for path, put in changes.items() if put is None]
    count = tree.totals().files + len(new) - len(gone)
    if count > max_files:
        raise HttpRefusal(
            413, "TooLarge", f"a repository holds at most {max_files} files; this commit would make {count}"
        )
    gone_keys = [key_of(path) for path in gone]
    last = ""
    for path in new:
        if path.count("/") > MAX_FOLDERS:
            raise bad_request(
                f"expected a path of at most {MAX_FOLDERS} folders; nothing was committed because of `{path}`"
            )
        if last and path.startswith(f"{last}/"):  # in sorted order, what is below a new path follows it directly
            raise _file_and_folder(last)
        last = path
        _check_kind(tree, path, changes, gone_keys)


def _check_kind(tree: FileTree, path: str, changes: Changes, gone_keys: list[str]) -> None:
    """Raise when a new file's path is a folder, or one of its folders is a file."""
    parents = parents_of(path)
    # when a folder exists, so do all folders above it
    at = bisect_left(range(len(parents)), True, key=lambda at: tree.first_below(parents[at]) is not None)
    folder = parents[at] if at < len(parents) else None
    if folder is not None and changes.get(folder, tree.find(folder)) is not None:
        raise _file_and_folder(folder)
    start, end = keys_below(path)
    gone = bisect_left(gone_keys, end) - bisect_left(gone_keys, start)
    if tree.first_below(path) is not None and tree.totals(path).files > gone:
        raise _file_and_folder(path)


def parents_of(path: str) -> list[str]:
    """Return the folders above a path, innermost first."""
    parents = []
    while "/" in path:
        path = path.rpartition("/")[0]
        parents.append(path)
    return parents


def digest_after(tree: FileTree, changes: Changes) -> int:
    """Return the digest of all files of `tree` after the changes."""
    digest = tree.totals().digest
    for path, put in changes.items():
        before, after = tree.find(path), put.blob.sha256 if put is not None else None
        digest = changed_digest(digest, path, before.sha256 if before is not None else None, after)
    return digest


def id_of_changes(changes: Changes) -> str:
    """Return a sha256 over the changes; with the parent, it determines the content of a commit."""
    hasher = hashlib.sha256()
    for path, put in changes.items():
        hasher.update(json.dumps([path, put and put.blob.sha256]).encode())
    return hasher.hexdigest()


def _missing(path: str) -> HttpRefusal:
    return HttpRefusal(
        404, "EntryNotFound", f"A file with this name doesn't exist: {path}; list the files of the revision"
    )


def _file_and_folder(path: str) -> HttpRefusal:
    return bad_request(f"`{path}` cannot be both a file and a folder; rename one of the two")


def squash(connection: Connection, blobs: BlobStore, repo: Row[Any], branch: str, *, title: str, author: str) -> str:
    """Replace the commits of a branch by one with the same files, and return its id.

    Commits that no other branch, tag or release needs are removed.

    Raises:
        HttpRefusal: 404 for a missing branch.
    """
    ref = (refs.c.repo_id == repo.id) & (refs.c.kind == "branch") & (refs.c.name == branch)
    head = connection.scalar(select(refs.c.commit_id).where(ref).with_for_update())
    if head is None:
        raise revision_not_found(repo.full_name, branch)
    files = {
        entry.path: Put(path=entry.path, blob=StoredBlob(entry.sha256, entry.git_sha1, entry.size), lfs=entry.lfs)
        for entry in tree_of(connection, repo.id, head).walk()
    }
    made = write(connection, FileTree(connection, repo.id, EMPTY), None, dict(files), (title, "", author))
    connection.execute(update(refs).where(ref).values(commit_id=made))
    if branch == "main":
        describe(connection, blobs, repo, made, rights.anyone)
    _drop_line(connection, repo.id, head)
    return made


# ------------------------------------------------------------ LFS files
def forget_files(connection: Connection, blobs: BlobStore, repo: Row[Any], doomed: AbstractSet[str]) -> None:
    """Remove the LFS files with these sha256 from every commit. A commit that had one gets a new id.

    Raises:
        HttpRefusal: 409 when a released version has one of them; nothing was removed.
    """
    connection.execute(select(refs.c.name).where(refs.c.repo_id == repo.id).with_for_update()).all()
    _check_unreleased(connection, repo, doomed)
    rows = connection.execute(select(commits).where(commits.c.repo_id == repo.id)).all()
    new_ids: dict[str, str] = {}
    for row in _parents_first(rows):
        entries = list(FileTree(connection, repo.id, row.root).walk())
        parent = new_ids.get(row.parent, row.parent)
        mine = (commits.c.repo_id == repo.id) & (commits.c.id == row.id)
        if not any(entry.sha256 in doomed for entry in entries):
            connection.execute(update(commits).where(mine).values(parent=parent))
            continue
        facts = json.dumps([row.id, parent, sorted(doomed)]).encode()
        new_ids[row.id] = made = hashlib.sha1(facts, usedforsecurity=False).hexdigest()
        edits: list[tuple[str, TreeFile | None]] = []
        for entry in entries:
            if entry.sha256 in doomed:
                edits.append((entry.path, None))
            elif entry.changed_in in new_ids:
                edits.append((entry.path, replace(entry, changed_in=new_ids[entry.changed_in])))
        after = FileTree(connection, repo.id, row.root).changed(sorted(edits, key=lambda edit: key_of(edit[0])))
        connection.execute(update(commits).where(mine).values(id=made, parent=parent, root=after.root))
    for table in (places, uploads):
        for some in slices(sorted(doomed)):
            connection.execute(delete(table).where(table.c.repo_id == repo.id, table.c.sha256.in_(some)))
    _move_refs(connection, blobs, repo, new_ids)
    drop_unnamed(connection, repo.id)


def _check_unreleased(connection: Connection, repo: Row[Any], doomed: AbstractSet[str]) -> None:
    released = select(releases.c.version, releases.c.commit_id).where(releases.c.repo_id == repo.id)
    for version, commit_id in connection.execute(released.order_by(releases.c.version)):
        for entry in tree_of(connection, repo.id, commit_id).walk():
            if entry.sha256 in doomed:
                raise conflict(
                    f"`{entry.path}` belongs to the released version {version} of `{repo.full_name}`, and releases"
                    " never change; nothing was removed. Yank the version, or delete the repository"
                )


def _parents_first(rows: Sequence[Row[Any]]) -> Iterator[Row[Any]]:
    by_id = {row.id: row for row in rows}
    done: set[str] = set()
    for row in rows:
        line = []
        at: Row[Any] | None = row
        while at is not None and at.id not in done:
            done.add(at.id)
            line.append(at)
            at = by_id.get(at.parent)
        yield from reversed(line)


def _move_refs(connection: Connection, blobs: BlobStore, repo: Row[Any], new_ids: dict[str, str]) -> None:
    """Let refs and places name the new commits, and describe these where the old ones were described."""
    for table, column in ((refs, refs.c.commit_id), (places, places.c.commit_id)):
        for old, new in new_ids.items():
            connection.execute(update(table).where(table.c.repo_id == repo.id, column == old).values(commit_id=new))
    for some in slices(sorted(new_ids)):
        old = (adapters_table.c.repo_id == repo.id) & adapters_table.c.commit_id.in_(some)
        connection.execute(delete(adapters_table).where(old))
    for ref in connection.execute(select(refs).where(refs.c.repo_id == repo.id)).all():
        if ref.commit_id in new_ids.values() and ref.kind == "tag":
            digests = TreeDigests(tree_of(connection, repo.id, ref.commit_id))
            adapters.index_commit(connection, blobs, repo, ref.commit_id, digests, tag=adapters.NewTag(name=ref.name))
        elif ref.commit_id in new_ids.values() and ref.name == "main":
            describe(connection, blobs, repo, ref.commit_id, rights.anyone)


# ------------------------------------------------------------ what no ref reaches
def _drop_line(connection: Connection, repo_id: int, head: str) -> None:
    """Remove a commit and its ancestors, except those that a branch, tag or release reaches."""
    rows = connection.execute(select(commits.c.id, commits.c.parent).where(commits.c.repo_id == repo_id)).all()
    parent_of = {row.id: row.parent for row in rows}

    def line(commit_id: str | None) -> Iterator[str]:
        while commit_id is not None:
            yield commit_id
            commit_id = parent_of.get(commit_id)

    reached: set[str] = set()
    for table in (refs, releases):
        for named in connection.scalars(select(table.c.commit_id).where(table.c.repo_id == repo_id)):
            reached.update(takewhile(lambda commit_id: commit_id not in reached, line(named)))
    for some in slices(sorted(set(line(head)) - reached)):
        for table, column in ((commits, commits.c.id), (adapters_table, adapters_table.c.commit_id)):
            connection.execute(delete(table).where(table.c.repo_id == repo_id, column.in_(some)))
    drop_unnamed(connection, repo_id)
