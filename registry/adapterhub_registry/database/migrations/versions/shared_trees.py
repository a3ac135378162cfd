"""Trees that commits share, instead of a row for each file of each commit. Ids of commits stay."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from alembic import op
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    select,
    text,
    update,
)

from adapterhub_registry.database.db import insert_new, places
from adapterhub_registry.database.trees.nodes import FileEntry, key_of
from adapterhub_registry.database.trees.trees import EMPTY, Tree

revision = "0004"
down_revision = "0003"
PLACES_AT_ONCE = 500

_before = MetaData()
_repos = Table("repos", _before, Column("id", Integer, primary_key=True))
_commits = Table(
    "commits",
    _before,
    Column("repo_id", Integer, primary_key=True),
    Column("id", String(40), primary_key=True),
    Column("parent", String(40)),
    Column("root", String(64)),
    Column("created_at", BigInteger),
)
_files = Table(
    "files",
    _before,
    Column("repo_id", Integer, primary_key=True),
    Column("commit_id", String(40), primary_key=True),
    Column("path", String(1024), primary_key=True),
    Column("sha256", String(64)),
    Column("git_sha1", String(40)),
    Column("size", BigInteger),
    Column("lfs", Boolean),
    Column("changed_in", String(40)),
)


def upgrade() -> None:
    """Make the trees from the rows, which go. A server of the schema before can commit neither meanwhile nor later."""
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":  # SQLite has one writer
        connection.execute(text("LOCK TABLE repos, commits, files IN ACCESS EXCLUSIVE MODE"))
    # the name that such a server knows goes: it would write what is no tree
    op.execute(text("ALTER TABLE commits RENAME COLUMN tree TO root"))
    op.create_table(
        "nodes",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("id", String(64), primary_key=True),
        Column("body", LargeBinary, nullable=False),
    )
    op.create_table(
        "places",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("sha256", String(64), primary_key=True),
        Column("path", String(1024), primary_key=True),
        Column("commit_id", String(40), nullable=False),
        Index("places_by_sha256", "sha256"),
        sqlite_with_rowid=False,
    )
    for repo_id in connection.scalars(select(_repos.c.id)).all():
        _share(connection, repo_id)
    op.drop_table("files")


def _share(connection: Connection, repo_id: int) -> None:
    """The trees of one repository, each made from that of its parent."""
    found = select(_commits.c.id, _commits.c.parent, _commits.c.created_at).where(_commits.c.repo_id == repo_id)
    made_at: dict[str, int] = {}
    children: dict[str | None, list[str]] = defaultdict(list)
    for row in connection.execute(found.order_by(_commits.c.created_at)):
        made_at[row.id] = row.created_at
        children[row.parent].append(row.id)
    waiting: list[tuple[str, str | None, Tree]] = [(c, None, Tree(connection, repo_id, EMPTY)) for c in children[None]]
    while waiting:
        commit_id, parent, tree = waiting.pop()
        before = _rows(connection, repo_id, parent) if parent else {}
        after = _rows(connection, repo_id, commit_id)
        changed = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
        changed.sort(key=key_of)
        edits = [(path, _entry(path, after[path], made_at) if path in after else None) for path in changed]
        new = tree.changed(edits)
        mine = (_commits.c.repo_id == repo_id) & (_commits.c.id == commit_id)
        connection.execute(update(_commits).where(mine).values(root=new.root))
        _note_places(connection, repo_id, commit_id, [entry for _, entry in edits if entry is not None])
        waiting += [(child, commit_id, new) for child in children[commit_id]]


def _rows(connection: Connection, repo_id: int, commit_id: str) -> dict[str, tuple[Any, ...]]:
    columns = (_files.c.sha256, _files.c.git_sha1, _files.c.size, _files.c.lfs, _files.c.changed_in)
    wanted = select(_files.c.path, *columns).where(_files.c.repo_id == repo_id, _files.c.commit_id == commit_id)
    return {row.path: tuple(row)[1:] for row in connection.execute(wanted)}


def _entry(path: str, row: tuple[Any, ...], made_at: dict[str, int]) -> FileEntry:
    sha256, git_sha1, size, lfs, changed_in = row
    return FileEntry(
        path=path,
        sha256=sha256,
        git_sha1=git_sha1,
        size=size,
        lfs=lfs,
        changed_in=changed_in,
        changed_at=made_at[changed_in],
    )


def _note_places(connection: Connection, repo_id: int, commit_id: str, entries: list[FileEntry]) -> None:
    named = {"repo_id": repo_id, "commit_id": commit_id}
    rows = [named | {"sha256": entry.sha256, "path": entry.path} for entry in entries]
    for start in range(0, len(rows), PLACES_AT_ONCE):
        insert_new(connection, places, rows[start : start + PLACES_AT_ONCE])
