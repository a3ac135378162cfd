"""The LFS files of a repository, of all its commits, in pages."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, select
from sqlalchemy.engine import Connection

from adapterhub_registry.database.db import commits, nodes, places, refs, slices
from adapterhub_registry.database.prepared import plan_for_values
from adapterhub_registry.database.search_tables import among
from adapterhub_registry.database.trees import FileTree, TreeFile
from adapterhub_registry.repos.commits import tree_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LfsFile:
    """An LFS file that a commit of a repository names: `main` where its head has it, or the ref of its first commit."""

    entry: TreeFile
    ref: str | None


def lfs_files(
    connection: Connection, repo: Row[Any], *, after: str = "", most: int
) -> tuple[list[LfsFile], str | None]:
    """Return the LFS files of the repository by sha256, `after` one, and the sha256 after which the rest begins.

    A page looks at `most` files, so it may have fewer of LFS.
    """
    rows = connection.execute(_PUT_FILES.where(places.c.repo_id == repo.id, places.c.sha256 > after).limit(most + 1))
    found = rows.all()
    return _lfs_in(connection, repo, found[:most]), found[most - 1].sha256 if len(found) > most else None


def lfs_among(connection: Connection, repo: Row[Any], digests: AbstractSet[str]) -> set[str]:
    """Those of `digests` that are LFS files of the repository."""
    found: set[str] = set()
    for some in slices(sorted(digests)):
        rows = connection.execute(_PUT_FILES.where(places.c.repo_id == repo.id, places.c.sha256.in_(some))).all()
        found |= {file.entry.sha256 for file in _lfs_in(connection, repo, rows)}
    return found


_PUT_FILES: Final = (
    select(places.c.sha256, places.c.path, places.c.commit_id, commits.c.root, nodes.c.body)
    .join_from(places, commits, (commits.c.repo_id == places.c.repo_id) & (commits.c.id == places.c.commit_id))
    .join(nodes, (nodes.c.repo_id == places.c.repo_id) & (nodes.c.id == commits.c.root))
    .order_by(places.c.sha256, places.c.path)
)
"""Each file with the first commit that has it there, and the top node of that commit's files."""


def _lfs_in(connection: Connection, repo: Row[Any], rows: Sequence[Any]) -> list[LfsFile]:
    plan_for_values(connection)  # for any repository, PostgreSQL would read all refs of this one
    named = select(refs.c.commit_id, refs.c.name).where(refs.c.repo_id == repo.id)
    named = named.where(among(refs.c.commit_id, sorted({row.commit_id for row in rows})))
    names: dict[str, str] = {}
    for ref in sorted(connection.execute(named), key=lambda ref: str(ref.name)):
        names.setdefault(ref.commit_id, ref.name)
    head = tree_of(connection, repo.id, repo.head)
    found: dict[str, LfsFile] = {}
    for row in rows:
        entry = FileTree(connection, repo.id, row.root, top=row.body).find(row.path)
        if entry is None or not entry.lfs or row.sha256 in found:
            continue
        now = head.find(row.path)
        is_there = now is not None and now.sha256 == row.sha256
        found[row.sha256] = LfsFile(entry=entry, ref="main" if is_there else names.get(row.commit_id))
    return list(found.values())
