"""Tables of SQLite that hold their keys once, without an index of their own for them."""

from __future__ import annotations

from alembic import op
from sqlalchemy.engine import Connection

revision = "0035"
down_revision = "0034"

_WAY = " WITHOUT ROWID"
_TABLES = ("commits", "adapter_names", "downloads")


def upgrade() -> None:
    """Write the rows of these tables once more, in the order of their keys."""
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        return
    for name in _TABLES:
        _rewrite(connection, name)


def _rewrite(connection: Connection, name: str) -> None:
    known = connection.exec_driver_sql(
        "SELECT type, sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL", (name,)
    ).all()
    (made,) = (sql for kind, sql in known if kind == "table")
    if made.rstrip().upper().endswith(_WAY):
        return
    later = f"later_{name}"
    connection.exec_driver_sql(f"CREATE TABLE {later} {made[made.index('(') :].rstrip()}{_WAY}")
    columns = ", ".join(row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info({name})"))
    connection.exec_driver_sql(f"INSERT INTO {later} ({columns}) SELECT {columns} FROM {name} ORDER BY 1, 2")
    connection.exec_driver_sql(f"DROP TABLE {name}")
    # the triggers of other tables name this one, and must not be read while it is away
    connection.exec_driver_sql("PRAGMA legacy_alter_table=ON")
    connection.exec_driver_sql(f"ALTER TABLE {later} RENAME TO {name}")
    connection.exec_driver_sql("PRAGMA legacy_alter_table=OFF")
    for kind, sql in known:
        if kind != "table":
            connection.exec_driver_sql(sql)
