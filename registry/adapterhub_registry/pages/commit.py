"""One commit, and what differs between two: files, and for configs their values."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, Final

from sqlalchemy import select

from adapterhub.core.digests import strict_json
from adapterhub.pages.changes import changed
from adapterhub.pages.values.files import Change, CommitPage, FileChange
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import commits as commits_table
from adapterhub_registry.database.db import releases
from adapterhub_registry.database.trees.nodes import FileEntry, key_of
from adapterhub_registry.database.trees.trees import EMPTY, Tree
from adapterhub_registry.errors import Refusal
from adapterhub_registry.pages.files import repo_of, url_of
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos import commits

MAX_FILES: Final = 100
MAX_VALUES: Final = 200
MAX_CONFIG_BYTES: Final = 256 << 10


def commit_page(here: Visit, repo: str, revision: str, before: str | None) -> CommitPage:
    """A commit against `before`, or against its parent. The values of configs need the right to read the files."""
    registry, caller = here.registry, here.caller
    with registry.db.read() as connection:
        row = repo_of(registry, connection, caller, repo)
        commit_id = commits.find_commit(connection, row, revision)
        wanted = select(commits_table).where(commits_table.c.repo_id == row.id, commits_table.c.id == commit_id)
        made = connection.execute(wanted).one()
        since = commits.find_commit(connection, row, before) if before else made.parent
        old = commits.tree_of(connection, row.id, since) if since else Tree(connection, row.id, EMPTY)
        new = commits.tree_of(connection, row.id, commit_id)
        pairs = list(_differing(old, new))
        named = select(releases.c.version).where(releases.c.repo_id == row.id, releases.c.commit_id == commit_id)
        versions = tuple(sorted(connection.scalars(named)))
        try:
            repo_of(registry, connection, caller, repo, files=True)
            reads = True
        except Refusal:
            reads = False
    name = row.full_name
    return CommitPage(
        repo=name,
        id=commit_id,
        title=made.title,
        message=made.message,
        author=made.author,
        at=made.created_at,
        tree_url=url_of(name, "tree", commit_id),
        parent=made.parent,
        parent_url=url_of(name, "commit", made.parent) if made.parent else None,
        before=since,
        files=tuple(_file_change(registry, name, commit_id, *pair, reads=reads) for pair in pairs[:MAX_FILES]),
        more_files=max(len(pairs) - MAX_FILES, 0),
        versions=versions,
    )


def _differing(old: Tree, new: Tree) -> Iterator[tuple[FileEntry | None, FileEntry | None]]:
    """The files that differ, by path."""
    both = heapq.merge(_keyed(old, 0), _keyed(new, 1), key=lambda item: item[:2])
    for _, same in groupby(both, key=lambda item: item[0]):
        pair = {side: entry for _, side, entry in same}
        before, after = pair.get(0), pair.get(1)
        if before is None or after is None or before.sha256 != after.sha256:
            yield before, after


def _keyed(tree: Tree, side: int) -> Iterator[tuple[str, int, FileEntry]]:
    return ((key_of(entry.path), side, entry) for entry in tree.walk())


def _file_change(
    registry: Registry, repo: str, commit_id: str, before: FileEntry | None, after: FileEntry | None, *, reads: bool
) -> FileChange:
    path = (after or before).path  # type: ignore[union-attr]  # one of them is there
    kind = "Added" if before is None else "Removed" if after is None else "Changed"
    changes: tuple[Change, ...] = ()
    if reads and path.endswith(".json") and before is not None:
        changes = tuple(changed(config_of(registry, before), config_of(registry, after)))[:MAX_VALUES]
    return FileChange(
        path=path,
        kind=kind,
        url=url_of(repo, "blob", commit_id, path) if after is not None else None,
        before_sha256=before.sha256 if before is not None else None,
        after_sha256=after.sha256 if after is not None else None,
        changes=changes,
    )


def config_of(registry: Registry, entry: FileEntry | None) -> Mapping[str, Any]:
    """The JSON object of a file; an empty one when there is none, or it is unreadable or long."""
    if entry is None or entry.lfs or entry.size > MAX_CONFIG_BYTES:
        return {}
    try:
        value = strict_json(b"".join(registry.blobs.open(entry.sha256)), limit_bytes=MAX_CONFIG_BYTES)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
