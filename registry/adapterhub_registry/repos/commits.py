"""Reads and makes commits.

A commit has a parent, files, an author, a message and a time; its id is the sha1 over these, 40 hex digits, as every
hub client expects. Repeating the same change makes no commit: clients repeat a request when a response is lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import Integer, Row, String, bindparam, func, insert, literal, select, update
from sqlalchemy.engine import Connection

from adapterhub_registry.access import adapter_names
from adapterhub_registry.access.adapter_names import Writes, nobody
from adapterhub_registry.access.tokens import BY_DIGEST
from adapterhub_registry.database.db import adapters as adapters_table
from adapterhub_registry.database.db import blobs as blobs_table
from adapterhub_registry.database.db import commits, insert_new, nodes, now_ms, places, refs, releases, repo_tags, repos
from adapterhub_registry.database.prepared import Pair, Prepared
from adapterhub_registry.database.search_tables import among
from adapterhub_registry.database.trees.nodes import FileEntry, Outline, key_of, outline_of, read_node, unpack
from adapterhub_registry.database.trees.trees import EMPTY, Digests, Tree
from adapterhub_registry.errors import Refusal, entry_not_found, revision_not_found, stale_parent
from adapterhub_registry.names import COMMIT, COMMIT_PREFIX
from adapterhub_registry.repos import adapter_facts, adapters, card
from adapterhub_registry.repos.changes import (
    Changes,
    Operation,
    Put,
    changes_of,
    check_tree,
    digest_after,
    id_of_changes,
)
from adapterhub_registry.storage.blobs import BlobStore

INSERT_ROWS = 500
GIT_ATTRIBUTES = ".gitattributes"
_BINARY = (
    "7z arrow bin bz2 ckpt ftz gz h5 joblib lfs.* mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth"
    " rar safetensors"
)
_ATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in (
        *(f"*.{suffix}" for suffix in _BINARY.split()),
        "saved_model/**/*",
        *(f"*.{suffix}" for suffix in ["tar.*", "tar", "tflite", "tgz", "wasm", "xz", "zip", "zst"]),
        "*tfevents*",
    )
).encode()
"""What the Hub writes."""
ATTRIBUTES_SHA256 = hashlib.sha256(_ATTRIBUTES).hexdigest()
HISTORY_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A commit that a client requests. With `parent` (7 hex digits or more), the branch must still be there.

    `writes` are the rights of the client.
    """

    branch: str
    title: str
    message: str
    author: str
    parent: str | None
    operations: tuple[Operation, ...]
    writes: Writes = nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file at a commit of a repository, and the warning about that commit."""

    repo_id: int
    commit_id: str
    entry: FileEntry
    warning: str | None


def top_at(connection: Connection, full_name: str, revision: str) -> Row[Any] | None:
    """The top node of a repository's files and what a reader needs to know; None where this takes a closer look.

    The row has the repository's `id`, `full_name`, `private` and `gated`, the `commit_id`, its `root` and `body`, and
    the `version` and `yanked_reason` of a yanked release.
    """
    return top_of(revision).alone.first(connection, full_name=full_name, revision=revision)


def top_of(revision: str) -> Top:
    """The statements of `top_at`, whose parameters are `full_name` and `revision`."""
    return _TOP_OF_COMMIT if COMMIT.fullmatch(revision) else _TOP_OF_REF


def file_in(top: Row[Any], path: str) -> FoundFile | None:
    """As `file_below`, from the row alone; None where the tree has more nodes."""
    node = read_node(unpack(top.body))
    return None if node.height else _found(top, path, node.file(key_of(path)))


def file_below(connection: Connection, top: Row[Any], path: str) -> FoundFile:
    """A file below a row of `top_at`; raises 404 EntryNotFound, with the commit."""
    return _found(top, path, Tree(connection, top.id, top.root, top=top.body).find(path))


def _found(top: Row[Any], path: str, entry: FileEntry | None) -> FoundFile:
    if entry is None:
        raise entry_not_found(path, top.commit_id)
    return FoundFile(repo_id=top.id, commit_id=top.commit_id, entry=entry, warning=warning_of(top))


def warning_of(top: Row[Any]) -> str | None:
    """As `adapters.warning_for`, of a row of `top_at`."""
    return None if top.version is None else adapters.yank_warning(top.version, top.yanked_reason)


class Top(NamedTuple):
    """The statement of a top node by itself, and beside that of a token."""

    alone: Prepared
    with_token: Pair


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
    return Top(Prepared(found), Pair(BY_DIGEST, found))


_TOP_OF_COMMIT: Final = _tops(of_ref=False)
_TOP_OF_REF: Final = _tops(of_ref=True)


def find_commit(
    connection: Connection, repo: Row[Any], revision: str, *, prefers: Literal["branch", "tag"] = "tag"
) -> str:
    """The commit of a branch, alias, tag, `refs/heads/x`, `refs/tags/x` or commit id (7 hex digits or more).

    HEAD is `main`. Hub clients see an alias as a branch.

    `prefers` decides where a branch and a tag have the same name.

    Raises:
        Refusal: 404 RevisionNotFound.
    """
    revision = "main" if revision == "HEAD" else revision
    kinds, name = ["alias", "branch", "tag"], revision
    for prefix, meant in (("refs/heads/", ["alias", "branch"]), ("refs/tags/", ["tag"])):
        if revision.startswith(prefix):
            kinds, name = meant, revision.removeprefix(prefix)
    if COMMIT_PREFIX.fullmatch(revision):  # no branch or tag has such a name
        ids = select(commits.c.id).where(commits.c.repo_id == repo.id)
        ids = ids.where(commits.c.id == revision if COMMIT.fullmatch(revision) else commits.c.id.startswith(revision))
        found = connection.scalars(ids.limit(2)).all()
    else:
        wanted = select(refs.c.commit_id).where(refs.c.repo_id == repo.id, refs.c.kind.in_(kinds), refs.c.name == name)
        order = refs.c.kind if prefers == "branch" else refs.c.kind.desc()
        found = connection.scalars(wanted.order_by(order).limit(1)).all()
    if len(found) != 1:
        raise revision_not_found(repo.full_name, revision)
    return str(found[0])


def tree_of(connection: Connection, repo_id: int, commit_id: str) -> Tree:
    """The files at a commit."""
    wanted = select(commits.c.root).where(commits.c.repo_id == repo_id, commits.c.id == commit_id)
    return Tree(connection, repo_id, connection.scalars(wanted).one())


def outlines_of(connection: Connection, repo_ids: Sequence[int]) -> dict[tuple[int, str], Outline]:
    """The files of some repositories, by their number and head; a repository without a top node is left out."""
    rows = _TOPS.tuples(connection, numbers=json.dumps(list(repo_ids)))
    return {(number, head): outline_of(body) for number, head, body in rows}


_TOPS: Final = Prepared(
    select(repos.c.id, repos.c.head, nodes.c.body)
    .join_from(repos, commits, (commits.c.repo_id == repos.c.id) & (commits.c.id == repos.c.head))
    .join(nodes, (nodes.c.repo_id == repos.c.id) & (nodes.c.id == commits.c.root))
    .where(among(repos.c.id, "numbers"))
)


def file_at(connection: Connection, repo_id: int, commit_id: str, path: str) -> FileEntry:
    """One file at a commit.

    Raises:
        Refusal: 404 EntryNotFound, with the commit.
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


def _history() -> Prepared:
    mine, start = commits.c.repo_id == bindparam("repo"), commits.c.id == bindparam("start")
    characters = func.length(commits.c.title) + func.length(commits.c.message)
    first = select(commits.c.id, commits.c.parent, literal(1).label("place"), characters.label("characters"))
    line = first.where(mine, start).cte("line", recursive=True)
    older = select(commits.c.id, commits.c.parent, line.c.place + 1, line.c.characters + characters)
    most, enough = (bindparam(name, type_=Integer) for name in ("limit", "characters"))
    fits = (line.c.place < most) & (line.c.characters < enough)
    line = line.union_all(older.join(line, commits.c.id == line.c.parent).where(mine, fits))
    return Prepared(select(commits).join(line, commits.c.id == line.c.id).where(mine).order_by(line.c.place))


_HISTORY: Final = _history()


def count(connection: Connection, repo_id: int, commit_id: str) -> int:
    """The number of commits that `history` lists from `commit_id` on."""
    return int(_LENGTH.tuples(connection, repo=repo_id, start=commit_id)[0][0])


def _length() -> Prepared:
    mine, start = commits.c.repo_id == bindparam("repo"), commits.c.id == bindparam("start")
    line = select(commits.c.parent).where(mine, start).cte("line", recursive=True)
    line = line.union_all(select(commits.c.parent).join(line, commits.c.id == line.c.parent).where(mine))
    counted: Any = select(func.count()).select_from(line)
    return Prepared(counted)


_LENGTH: Final = _length()


def first_commit(connection: Connection, blobs: BlobStore, repo_number: int, full_name: str, *, author: str) -> str:
    """Make the first commit of a repository, with the file that tells git which files go by LFS."""
    put = Put(path=GIT_ATTRIBUTES, blob=blobs.put([_ATTRIBUTES], size=len(_ATTRIBUTES)), lfs=False)
    # with the name, so that two repositories of one moment do not share a commit id; a number would count hidden ones
    words = ("initial commit", full_name, author)
    return write(connection, Tree(connection, repo_number, EMPTY), None, {put.path: put}, words)


def commit(connection: Connection, blobs: BlobStore, repo: Row[Any], proposal: Proposal, *, max_files: int) -> str:
    """Apply a proposal to its branch and index the result; return the new head, or the old one without changes.

    Raises:
        Refusal: 404 for a missing branch or a missing file to remove, 412 when the branch has moved, 400 or 413 for an
            invalid tree, 409 for a released version with other bytes.
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
    if not changes:
        return str(head)
    check_tree(tree, changes, max_files)
    made = write(connection, tree, head, changes, (proposal.title, proposal.message, proposal.author))
    moved = connection.execute(
        update(refs).where(branch, refs.c.commit_id == head).values(commit_id=made, created_at=now_ms())
    )
    if not moved.rowcount:
        raise stale_parent(head, "another commit now")
    if proposal.branch == "main":
        describe(connection, blobs, repo, made, proposal.writes)
    return made


def _is_this_already(connection: Connection, repo: Row[Any], proposal: Proposal, head: str, tree: Tree) -> bool:
    """Whether the head is the same change on the same parent: a request that the client repeated."""
    wanted = select(commits.c.parent).where(commits.c.repo_id == repo.id, commits.c.id == head)
    parent = connection.scalar(wanted)
    if parent is None or not parent.startswith(proposal.parent or "-"):
        return False
    before = tree_of(connection, repo.id, parent)
    try:
        changes = changes_of(before, proposal.operations)
    except Refusal:
        return False
    return digest_after(before, changes) == tree.totals().digest


def write(connection: Connection, tree: Tree, parent: str | None, changes: Changes, words: tuple[str, str, str]) -> str:
    """Write a commit of `tree` with the changes; `words` are its title, message and author. Return its id."""
    title, message, author = words
    now, repo_number = now_ms(), tree.repo_id
    facts = json.dumps([parent, id_of_changes(changes), title, message, author, now]).encode()
    made = hashlib.sha1(facts, usedforsecurity=False).hexdigest()
    after = tree.changed([(path, None if put is None else _entry(put, made, now)) for path, put in changes.items()])
    connection.execute(
        insert(commits).values(
            repo_id=repo_number,
            id=made,
            parent=parent,
            root=after.root,
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
    return made


def _entry(put: Put, commit_id: str, now: int) -> FileEntry:
    return FileEntry(
        path=put.path,
        sha256=put.blob.sha256,
        git_sha1=put.blob.git_sha1,
        size=put.blob.size,
        lfs=put.lfs,
        changed_in=commit_id,
        changed_at=now,
    )


def describe(connection: Connection, blobs: BlobStore, repo: Row[Any], head: str, writes: Writes) -> None:
    """Update the facts for listings and searches to the new head of `main`."""
    tree = tree_of(connection, repo.id, head)
    digests = Digests(tree)
    front_matter, config = card.read_card(blobs, digests), card.read_config(blobs, digests)
    earned = adapters.index_commit(connection, blobs, repo, head, digests, writes=writes)
    card_tags = adapter_facts.without_contradictions(card.tags_of(front_matter, config, digests), earned)
    task = connection.scalar(
        select(adapters_table.c.task).where(adapters_table.c.repo_id == repo.id, adapters_table.c.commit_id == head)
    )
    adapter_library = "peft" if card.ADAPTER_CONFIG in digests else None
    pipeline_tag, now = _text(front_matter.get("pipeline_tag")) or _text(task), now_ms()
    connection.execute(
        update(repos)
        .where(repos.c.id == repo.id)
        .values(
            head=head,
            modified_at=now,
            used_bytes=tree.totals().bytes,
            pipeline_tag=pipeline_tag,
            library_name=_text(front_matter.get("library_name")) or adapter_library,
            card=json.dumps(front_matter),
            config=json.dumps(config),
        )
    )
    names = {f"{adapter_names.TAG}{name}" for name in adapter_names.names_of(connection, repo.id)}
    tags = {*card_tags, *earned, *names, *([pipeline_tag] if pipeline_tag and pipeline_tag.isprintable() else [])}
    connection.execute(repo_tags.delete().where(repo_tags.c.repo_id == repo.id))
    insert_new(connection, repo_tags, [{"repo_id": repo.id, "tag": tag, "modified_at": now} for tag in sorted(tags)])


def _text(value: object) -> str | None:
    return value[:200] if isinstance(value, str) and value else None
