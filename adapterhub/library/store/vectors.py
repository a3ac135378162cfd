"""The vectors of what builds say of themselves, by the number of the build's row; made again where they are missing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

SCHEMA: Final = (
    "CREATE TABLE meaning (build INTEGER PRIMARY KEY, model TEXT NOT NULL, vectors BLOB NOT NULL)",
    # a row that is put again loses them, too: the triggers are recursive
    "CREATE TRIGGER meaning_gone AFTER DELETE ON builds BEGIN DELETE FROM meaning WHERE build = old.rowid; END",
)


def vectors_of(
    connection: sqlite3.Connection, model: str, conditions: Sequence[str], values: Sequence[Any]
) -> list[tuple[int, bytes | None]]:
    """Return the numbers of the builds that meet the conditions, each with its vectors of `model`, or None."""
    sql = "SELECT builds.rowid, vectors FROM builds LEFT JOIN meaning ON build = builds.rowid AND model = ?"
    sql += f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return connection.execute(sql, (model, *values)).fetchall()


def without_vectors(connection: sqlite3.Connection, model: str) -> list[int]:
    """Return the numbers of the builds that have no vectors of `model`."""
    sql = "SELECT builds.rowid FROM builds LEFT JOIN meaning ON build = builds.rowid AND model = ? WHERE build IS NULL"
    return [row[0] for row in connection.execute(sql, (model,))]


def put_vectors(connection: sqlite3.Connection, model: str, rows: Iterable[tuple[str, str, bytes]]) -> None:
    """Keep `(folder, digest, vectors)` of the builds that are still there."""
    sql = "INSERT OR REPLACE INTO meaning SELECT rowid, ?, ? FROM builds WHERE folder = ? AND digest = ?"
    connection.executemany(sql, ((model, vectors, folder, digest) for folder, digest, vectors in rows))
