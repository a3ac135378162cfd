"""The derived records of builds, and their parents."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Float, Integer, LargeBinary, String, Text

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the tables; the builds that are there wait for a worker."""
    op.create_table(
        "derived",
        Column("digest", String(64), primary_key=True),
        Column("state", String(8), nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("due_at", BigInteger, nullable=False),
        Column("reason", Text),
        Column("norm", Float),
        Column("sketch", String(200)),
        Column("record", LargeBinary),
    )
    op.create_index("derived_due", "derived", ["state", "due_at"])
    op.create_table(
        "parents",
        Column("digest", String(64), primary_key=True),
        Column("position", Integer, primary_key=True, autoincrement=False),
        Column("parent", String(64)),
        Column("spec", Text, nullable=False),
        Column("weight", Float, nullable=False),
    )
    op.create_index("ix_parents_parent", "parents", ["parent"])
    op.execute(
        "INSERT INTO derived (digest, state, attempts, due_at) SELECT DISTINCT digest, 'waiting', 0, 0 FROM adapters"
    )
