"""How many builds declare each base, and the sum of their sizes: kept in step by the index itself."""

from __future__ import annotations

import sqlite3
from typing import Final

from adapterhub.library.store.rows import BaseCount

SCHEMA: Final = (
    """CREATE TABLE per_base (
        weights TEXT PRIMARY KEY, tensors TEXT, builds INTEGER NOT NULL, size_bytes INTEGER NOT NULL
    ) WITHOUT ROWID""",
    # no upsert: in a trigger, SQLite takes the `OR REPLACE` of the statement that fires it instead
    """CREATE TRIGGER build_counted AFTER INSERT ON builds BEGIN
        INSERT INTO per_base SELECT new.base_weights, new.base_tensors, 0, 0
        WHERE NOT EXISTS (SELECT 1 FROM per_base WHERE weights = new.base_weights);
        UPDATE per_base SET builds = builds + 1, size_bytes = size_bytes + coalesce(new.size_bytes, 0),
        tensors = max(tensors, new.base_tensors) WHERE weights = new.base_weights;
    END""",
    """CREATE TRIGGER build_uncounted AFTER DELETE ON builds BEGIN
        UPDATE per_base SET builds = builds - 1, size_bytes = size_bytes - coalesce(old.size_bytes, 0)
        WHERE weights = old.base_weights;
        DELETE FROM per_base WHERE weights = old.base_weights AND builds < 1;
    END""",
)
_COUNTED: Final = (
    "SELECT base_weights, max(base_tensors), count(*), sum(coalesce(size_bytes, 0)) FROM builds GROUP BY base_weights"
)
FILL: Final = f"INSERT INTO per_base {_COUNTED}"
"""Counts the builds that an index had before it kept their number."""


def per_base(connection: sqlite3.Connection) -> list[BaseCount]:
    """Each base that a build declares."""
    rows = connection.execute("SELECT weights, tensors, builds, size_bytes FROM per_base ORDER BY weights")
    return [BaseCount._make(row) for row in rows]


def count(connection: sqlite3.Connection) -> int:
    """Return how many builds are indexed."""
    return int(connection.execute("SELECT coalesce(sum(builds), 0) FROM per_base").fetchone()[0])


def miscounted(connection: sqlite3.Connection) -> int:
    """For how many bases the kept count differs from that of the builds; looks at each build."""
    kept = {(one.weights, one.builds, one.size_bytes) for one in per_base(connection)}
    real = {(row[0], row[2], row[3]) for row in connection.execute(_COUNTED)}
    return len({one[0] for one in kept ^ real})
