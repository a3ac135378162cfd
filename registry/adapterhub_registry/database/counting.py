"""Counts that SQLite keeps while it writes, by triggers, so that metrics of a large registry read a few rows.

PostgreSQL counts when it is asked: there, every writer would wait for the row of a count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import MetaData, column, event, select, table
from sqlalchemy.engine import Connection

from adapterhub_registry.database.schema import metadata

counts = table("counts", column("name"), column("value"))
"""Of SQLite alone, and no table that moves with the others: it follows from them."""

_COUNTED: Final[dict[str, tuple[str, str, str]]] = {
    # the table, and what one row adds, by the column that decides it
    "repos": ("repos", "1", ""),
    "downloads": ("repos", "{row}.downloads", "downloads"),
    "commits": ("commits", "1", ""),
    "adapters": ("adapters", "{row}.is_listed", "is_listed"),
    "releases": ("releases", "1", ""),
    "releases_yanked": ("releases", "({row}.yanked_at IS NOT NULL)", "yanked_at"),
    "blobs": ("blobs", "1", ""),
    "blob_bytes": ("blobs", "{row}.size", "size"),
}


def counted(connection: Connection) -> dict[str, int]:
    """The counts by name; none on PostgreSQL."""
    if connection.dialect.name != "sqlite":
        return {}
    return {str(name): int(value) for name, value in connection.execute(select(counts.c.name, counts.c.value)).all()}


def start_counting(connection: Connection) -> None:
    """Count what SQLite holds, and let the counts follow the tables."""
    if connection.dialect.name == "sqlite":
        for statement in _statements():
            connection.exec_driver_sql(statement)


def _statements() -> Iterator[str]:
    yield "CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL)"
    for name, (of, amount, deciding) in _COUNTED.items():
        added, gone = amount.format(row="new"), amount.format(row="old")
        total = f"coalesce(sum({amount.format(row=of)}), 0)"
        yield f"INSERT OR REPLACE INTO counts SELECT '{name}', {total} FROM {of}"  # noqa: S608 - names of this module
        changes = {"INSERT": added, "DELETE": f"- {gone}"}
        changes |= {f"UPDATE OF {deciding}": f"{added} - {gone}"} if deciding else {}
        for change, more in changes.items():
            trigger = f"count_{name}_{change.partition(' ')[0].lower()}"
            step = f"UPDATE counts SET value = value + {more} WHERE name = '{name}';"  # noqa: S608
            yield f"CREATE TRIGGER IF NOT EXISTS {trigger} AFTER {change} ON {of} BEGIN {step} END"


@event.listens_for(metadata, "after_create")
def _with_counts(_metadata: MetaData, connection: Connection, **_: object) -> None:
    start_counting(connection)
