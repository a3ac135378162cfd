"""Rewrites histories: one commit instead of a branch's many, and LFS files removed from every commit.

Released versions never change: their commits keep their ids and files, and a request that would touch one is refused.
The bytes of what no commit names any more go with the next `adapt registry gc`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from sqlalchemy import Row, bindparam, delete, select, update
from sqlalchemy.engine import Connection

from adapterhub_registry.access import adapter_names
from adapterhub_registry.database.db import adapters as adapters_table
from adapterhub_registry.database.db import commits, nodes, places, refs, releases, slices, uploads
from adapterhub_registry.database.trees.nodes import FileEntry, key_of
from adapterhub_registry.database.trees.trees import EMPTY, Digests, Tree
from adapterhub_registry.errors import conflict, revision_not_found
from adapterhub_registry.repos import adapters
from adapterhub_registry.repos.changes import Put
from adapterhub_registry.repos.commits import describe, tree_of, write
from adapterhub_registry.storage.blobs import BlobStore, StoredBlob


@dataclass(frozen=True, slots=True, kw_only=True)
class LfsFile:
    """An LFS file that a commit of a repository names: its newest place, and the first ref that has it."""

    entry: FileEntry
    ref: str | None


def squash(connection: Connection, blobs: BlobStore, repo: Row[Any], branch: str, *, title: str, author: str) -> str:
    """Replace the commits of a branch by one with the same files, and return its id.

    Commits that no other branch, tag or release needs are removed.

    Raises:
        Refusal: 404 for a missing branch.
    """
    ref = (refs.c.repo_id == repo.id) & (refs.c.kind == "branch") & (refs.c.name == branch)
    head = connection.scalar(select(refs.c.commit_id).where(ref).with_for_update())
    if head is None:
        raise revision_not_found(repo.full_name, branch)
    files = {
        entry.path: Put(path=entry.path, blob=StoredBlob(entry.sha256, entry.git_sha1, entry.size), lfs=entry.lfs)
        for entry in tree_of(connection, repo.id, head).walk()
    }
    made = write(connection, Tree(connection, repo.id, EMPTY), None, dict(files), (title, "", author))
    connection.execute(update(refs).where(ref).values(commit_id=made))
    if branch == "main":
        describe(connection, blobs, repo, made, adapter_names.anyone)
    _drop_line(connection, repo.id, head)
    return made


# ------------------------------------------------------------ LFS files
def lfs_files(connection: Connection, repo: Row[Any]) -> list[LfsFile]:
    """Every LFS file of the repository, by sha256."""
    named = connection.execute(select(refs.c.name, refs.c.kind, refs.c.commit_id).where(refs.c.repo_id == repo.id))
    heads = sorted(named, key=lambda ref: (ref.name != "main", ref.kind, ref.name))
    refs_of = [(ref.name, ref.commit_id) for ref in heads]
    rows = connection.execute(select(commits.c.id).where(commits.c.repo_id == repo.id).order_by(commits.c.created_at))
    found: dict[str, LfsFile] = {}
    seen: set[str] = set()
    for ref, commit_id in [*refs_of, *((None, row.id) for row in reversed(rows.all()))]:
        for entry in _new_entries(connection, repo.id, commit_id, seen):
            if entry.lfs:
                found.setdefault(entry.sha256, LfsFile(entry=entry, ref=ref))
    return [found[sha256] for sha256 in sorted(found)]


def forget_files(connection: Connection, blobs: BlobStore, repo: Row[Any], doomed: AbstractSet[str]) -> None:
    """Remove the LFS files with these sha256 from every commit. A commit that had one gets a new id.

    Raises:
        Refusal: 409 when a released version has one of them; nothing was removed.
    """
    connection.execute(select(refs.c.name).where(refs.c.repo_id == repo.id).with_for_update()).all()
    _check_unreleased(connection, repo, doomed)
    rows = connection.execute(select(commits).where(commits.c.repo_id == repo.id)).all()
    new_ids: dict[str, str] = {}
    for row in _parents_first(rows):
        entries = list(Tree(connection, repo.id, row.root).walk())
        parent = new_ids.get(row.parent, row.parent)
        mine = (commits.c.repo_id == repo.id) & (commits.c.id == row.id)
        if not any(entry.sha256 in doomed for entry in entries):
            connection.execute(update(commits).where(mine).values(parent=parent))
            continue
        facts = json.dumps([row.id, parent, sorted(doomed)]).encode()
        new_ids[row.id] = made = hashlib.sha1(facts, usedforsecurity=False).hexdigest()
        edits: list[tuple[str, FileEntry | None]] = []
        for entry in entries:
            if entry.sha256 in doomed:
                edits.append((entry.path, None))
            elif entry.changed_in in new_ids:
                edits.append((entry.path, replace(entry, changed_in=new_ids[entry.changed_in])))
        after = Tree(connection, repo.id, row.root).changed(sorted(edits, key=lambda edit: key_of(edit[0])))
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
            digests = Digests(tree_of(connection, repo.id, ref.commit_id))
            adapters.index_commit(connection, blobs, repo, ref.commit_id, digests, tag=ref.name)
        elif ref.commit_id in new_ids.values() and ref.name == "main":
            describe(connection, blobs, repo, ref.commit_id, adapter_names.anyone)


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


def drop_unnamed(connection: Connection, repo_id: int) -> None:
    """Remove the nodes that no commit's tree has, and the places that no commit has."""
    left = select(commits.c.id).where(commits.c.repo_id == repo_id).order_by(commits.c.created_at)
    seen: set[str] = set()
    homes: dict[tuple[str, str], str] = {}
    for commit_id in connection.scalars(left).all():
        for entry in _new_entries(connection, repo_id, commit_id, seen):
            homes.setdefault((entry.sha256, entry.path), commit_id)
    stored = set(connection.scalars(select(nodes.c.id).where(nodes.c.repo_id == repo_id)))
    for some in slices(sorted(stored - seen)):
        connection.execute(delete(nodes).where(nodes.c.repo_id == repo_id, nodes.c.id.in_(some)))
    at = (places.c.repo_id == repo_id) & (places.c.sha256 == bindparam("digest")) & (places.c.path == bindparam("at"))
    gone, moved = [], []
    for row in connection.execute(select(places).where(places.c.repo_id == repo_id)):
        home = homes.get((row.sha256, row.path))
        if home is None:
            gone.append({"digest": row.sha256, "at": row.path})
        elif home != row.commit_id:
            moved.append({"digest": row.sha256, "at": row.path, "home": home})
    if gone:
        connection.execute(delete(places).where(at), gone)
    if moved:
        connection.execute(update(places).where(at).values(commit_id=bindparam("home")), moved)


def _new_entries(connection: Connection, repo_id: int, commit_id: str, seen: set[str]) -> Iterator[FileEntry]:
    """The files of a commit in nodes that are not in `seen`."""
    for node in tree_of(connection, repo_id, commit_id).unseen(seen):
        if not node.height:
            yield from node.items
