"""Commits: what a repository held at each of them, and how a new one is made.

A commit is its parent, its files and who wrote what when; its id is the sha1 over these, 40 hex digits, because every
hub client expects that. Making the same change again makes no commit: clients send one again when an answer is lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.engine import Connection

from adapterhub_registry import adapter_facts, adapters, card
from adapterhub_registry.blobs import BlobStore, StoredBlob
from adapterhub_registry.db import adapters as adapters_table
from adapterhub_registry.db import blobs as blobs_table
from adapterhub_registry.db import commits, files, insert_new, now_ms, refs, repo_tags, repos
from adapterhub_registry.errors import Refusal, bad_request, entry_not_found, revision_not_found, stale_parent
from adapterhub_registry.names import COMMIT, COMMIT_PREFIX

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
INSERT_ROWS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a commit. `lfs` files are named to clients by sha256, others by their git object name."""

    path: str
    sha256: str
    git_sha1: str
    size: int
    lfs: bool
    changed_in: str

    @property
    def oid(self) -> str:
        """The git object name: that of an LFS file is the name of its pointer."""
        if not self.lfs:
            return self.git_sha1
        return _git_name(self.pointer)

    @property
    def etag(self) -> str:
        """What names the content to a download client."""
        return self.sha256 if self.lfs else self.git_sha1

    @property
    def pointer(self) -> bytes:
        """The git-lfs pointer file that would stand for it."""
        return POINTER.format(sha256=self.sha256, size=self.size).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Set a file to bytes that are stored here."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A commit as a client proposes it. `parent`: refuse unless the branch is still there; 7 hex digits will do."""

    branch: str
    title: str
    message: str
    author: str
    parent: str | None
    operations: tuple[Operation, ...]


def find_commit(connection: Connection, repo: Row[Any], revision: str) -> str:
    """The commit that a branch, tag, `refs/heads/x`, `refs/tags/x` or commit id (7 hex digits or more) names.

    Raises:
        Refusal: 404 RevisionNotFound.
    """
    kinds, name = ["branch", "tag"], revision
    for prefix, kind in (("refs/heads/", "branch"), ("refs/tags/", "tag")):
        if revision.startswith(prefix):
            kinds, name = [kind], revision.removeprefix(prefix)
    if COMMIT_PREFIX.fullmatch(revision):  # no branch or tag can look like this
        ids = select(commits.c.id).where(commits.c.repo_id == repo.id)
        ids = ids.where(commits.c.id == revision if COMMIT.fullmatch(revision) else commits.c.id.startswith(revision))
        found = connection.scalars(ids.limit(2)).all()
    else:
        wanted = select(refs.c.commit_id).where(refs.c.repo_id == repo.id, refs.c.kind.in_(kinds), refs.c.name == name)
        found = connection.scalars(wanted).all()
    if len(found) != 1:
        raise revision_not_found(repo.full_name, revision)
    return str(found[0])


def files_of(connection: Connection, repo_id: int, commit_id: str, *, below: str = "") -> dict[str, FileEntry]:
    """The files at a commit by path, sorted; with `below`, only those in that folder."""
    wanted = select(files).where(files.c.repo_id == repo_id, files.c.commit_id == commit_id)
    if below:
        wanted = wanted.where(func.substr(files.c.path, 1, len(below) + 1) == f"{below}/")
    # sorted here, not by the database: its order follows the locale
    return {row.path: _entry(row) for row in sorted(connection.execute(wanted), key=lambda row: str(row.path))}


def file_at(connection: Connection, repo_id: int, commit_id: str, path: str) -> FileEntry:
    """One file at a commit.

    Raises:
        Refusal: 404 EntryNotFound, with the commit.
    """
    wanted = select(files).where(files.c.repo_id == repo_id, files.c.commit_id == commit_id, files.c.path == path)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise entry_not_found(path, commit_id)
    return _entry(row)


def _entry(row: Row[Any]) -> FileEntry:
    return FileEntry(
        path=row.path,
        sha256=row.sha256,
        git_sha1=row.git_sha1,
        size=row.size,
        lfs=row.lfs,
        changed_in=row.changed_in,
    )


def history(connection: Connection, repo: Row[Any], commit_id: str, *, limit: int) -> Sequence[Row[Any]]:
    """`commit_id` and its ancestors, newest first, at most `limit`."""
    found: list[Row[Any]] = []
    wanted: str | None = commit_id
    while wanted is not None and len(found) < limit:
        one = select(commits).where(commits.c.repo_id == repo.id, commits.c.id == wanted)
        row = connection.execute(one).one()
        found.append(row)
        wanted = row.parent
    return found


def first_commit(connection: Connection, repo_number: int, full_name: str, *, author: str) -> str:
    """The empty commit with which a repository begins."""
    # the repository's number is in it: two repositories never share a commit id
    message = f"{full_name} {repo_number}"
    return _write(connection, repo_number, None, {}, ("initial commit", message, author))


def commit(connection: Connection, blobs: BlobStore, repo: Row[Any], proposal: Proposal, *, max_files: int) -> str:
    """Apply a proposal to its branch and index the result; the new head, or the old one when nothing changed.

    Raises:
        Refusal: 404 for a branch or a file to remove that is not there, 412 when the branch has moved, 400 or 413 for
            a tree that cannot be, 409 for a released version with other bytes.
    """
    branch = (refs.c.repo_id == repo.id) & (refs.c.kind == "branch") & (refs.c.name == proposal.branch)
    head = connection.scalar(select(refs.c.commit_id).where(branch).with_for_update())
    if head is None:
        raise revision_not_found(repo.full_name, proposal.branch)
    tree = files_of(connection, repo.id, head)
    if proposal.parent is not None and not head.startswith(proposal.parent):
        if _is_this_already(connection, repo, proposal, head, tree):
            return str(head)
        raise stale_parent(proposal.parent, head)
    changed = _applied(tree, proposal.operations)
    if _content(changed) == _content(tree):
        return str(head)
    _refuse_impossible(changed, max_files)
    made = _write(connection, repo.id, head, changed, (proposal.title, proposal.message, proposal.author))
    moved = connection.execute(
        update(refs).where(branch, refs.c.commit_id == head).values(commit_id=made, created_at=now_ms())
    )
    if not moved.rowcount:
        raise stale_parent(head, "another commit by now")
    if proposal.branch == "main":
        _describe(connection, blobs, repo, made)
    return made


def _is_this_already(
    connection: Connection, repo: Row[Any], proposal: Proposal, head: str, tree: Mapping[str, FileEntry]
) -> bool:
    """Whether the head is this very change on this very parent: sent again because the answer was lost."""
    wanted = select(commits.c.parent).where(commits.c.repo_id == repo.id, commits.c.id == head)
    parent = connection.scalar(wanted)
    if parent is None or not parent.startswith(proposal.parent or "-"):
        return False
    try:
        again = _applied(files_of(connection, repo.id, parent), proposal.operations)
    except Refusal:
        return False
    return _content(again) == _content(tree)


def _applied(tree: Mapping[str, FileEntry], operations: Iterable[Operation]) -> dict[str, FileEntry]:
    """The files after `operations`, in order. `changed_in` is empty where the new commit will stand."""
    after = dict(tree)
    for operation in operations:
        if isinstance(operation, Put):
            blob, before = operation.blob, after.get(operation.path)
            if before is not None and before.sha256 == blob.sha256:
                continue
            after[operation.path] = FileEntry(
                path=operation.path,
                sha256=blob.sha256,
                git_sha1=blob.git_sha1,
                size=blob.size,
                lfs=operation.lfs,
                changed_in="",
            )
            continue
        below = f"{operation.path}/" if isinstance(operation, DeleteFolder) else None
        gone = [path for path in after if (path.startswith(below) if below else path == operation.path)]
        if not gone:
            raise Refusal(404, "EntryNotFound", f"A file with this name doesn't exist: {operation.path}")
        for path in gone:
            del after[path]
    return after


def _content(tree: Mapping[str, FileEntry]) -> dict[str, str]:
    return {path: entry.sha256 for path, entry in tree.items()}


def _refuse_impossible(tree: Mapping[str, FileEntry], max_files: int) -> None:
    if len(tree) > max_files:
        raise Refusal(413, "TooLarge", f"a repository holds at most {max_files} files, this would be {len(tree)}")
    for path in tree:
        folder = path
        while "/" in folder:
            folder = folder.rpartition("/")[0]
            if folder in tree:
                raise bad_request(f"`{folder}` cannot be a file and a folder")


def _write(
    connection: Connection,
    repo_number: int,
    parent: str | None,
    tree: Mapping[str, FileEntry],
    words: tuple[str, str, str],
) -> str:
    title, message, author = words
    now = now_ms()
    listing = json.dumps(sorted(_content(tree).items())).encode()
    tree_id = hashlib.sha256(listing).hexdigest()
    facts = json.dumps([parent, tree_id, title, message, author, now]).encode()
    made = hashlib.sha1(facts, usedforsecurity=False).hexdigest()
    connection.execute(
        insert(commits).values(
            repo_id=repo_number,
            id=made,
            parent=parent,
            tree=tree_id,
            title=title,
            message=message,
            author=author,
            created_at=now,
        )
    )
    rows = [
        {
            "repo_id": repo_number,
            "commit_id": made,
            "path": entry.path,
            "sha256": entry.sha256,
            "git_sha1": entry.git_sha1,
            "size": entry.size,
            "lfs": entry.lfs,
            "changed_in": entry.changed_in or made,
        }
        for entry in tree.values()
    ]
    for start in range(0, len(rows), INSERT_ROWS):
        connection.execute(insert(files), rows[start : start + INSERT_ROWS])
    new = {entry.sha256: entry for entry in tree.values() if not entry.changed_in}
    insert_new(
        connection,
        blobs_table,
        [{"sha256": e.sha256, "git_sha1": e.git_sha1, "size": e.size, "created_at": now} for e in new.values()],
    )
    return made


def _describe(connection: Connection, blobs: BlobStore, repo: Row[Any], head: str) -> None:
    """Bring what listings and searches know of a repository up to its new head of `main`."""
    tree = files_of(connection, repo.id, head)
    digests = {path: entry.sha256 for path, entry in tree.items()}
    front_matter, config = card.read_card(blobs, digests), card.read_config(blobs, digests)
    earned = adapters.index_commit(connection, blobs, repo, head, digests)
    told = adapter_facts.without_contradictions(card.tags_of(front_matter, config, digests), earned)
    task = connection.scalar(
        select(adapters_table.c.task).where(adapters_table.c.repo_id == repo.id, adapters_table.c.commit_id == head)
    )
    connection.execute(
        update(repos)
        .where(repos.c.id == repo.id)
        .values(
            head=head,
            modified_at=now_ms(),
            used_bytes=sum(entry.size for entry in tree.values()),
            pipeline_tag=_text(front_matter.get("pipeline_tag")) or _text(task),
            library_name=_text(front_matter.get("library_name")) or ("peft" if card.ADAPTER_CONFIG in tree else None),
            card=json.dumps(front_matter),
            config=json.dumps(config),
        )
    )
    connection.execute(repo_tags.delete().where(repo_tags.c.repo_id == repo.id))
    insert_new(connection, repo_tags, [{"repo_id": repo.id, "tag": tag} for tag in sorted({*told, *earned})])


def _text(value: object) -> str | None:
    return value[:200] if isinstance(value, str) and value else None


def _git_name(content: bytes) -> str:
    header = b"blob %d\x00" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()
