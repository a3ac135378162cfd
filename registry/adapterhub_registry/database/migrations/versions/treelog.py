"""The log of releases. A server that starts records the releases that stand already."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, LargeBinary, String, inspect

revision = "0034"
down_revision = "0033"


def upgrade() -> None:
    """Add the tables."""
    if "log_entries" in inspect(op.get_bind()).get_table_names():
        return
    op.create_table(
        "log_entries",
        Column("log", BigInteger, primary_key=True, autoincrement=False),
        Column("position", BigInteger, primary_key=True, autoincrement=False),
        Column("entry", LargeBinary, nullable=False),
        Column("kind", String(32), nullable=False),
        Column("repo_id", BigInteger, nullable=False),
        Column("repo", String(200), nullable=False),
        Column("version_key", String(200)),
    )
    op.create_index("log_entries_by_release", "log_entries", ["repo_id", "version_key", "log", "position"])
    op.create_table(
        "log_nodes",
        Column("log", BigInteger, primary_key=True, autoincrement=False),
        Column("level", Integer, primary_key=True, autoincrement=False),
        Column("position", BigInteger, primary_key=True, autoincrement=False),
        Column("hash", LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
