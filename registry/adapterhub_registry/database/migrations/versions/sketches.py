"""The sketches of builds, with signs that only this registry knows, in a table of their own."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, LargeBinary, String, inspect

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Add the table; every build waits for a worker, which makes its sketch."""
    op.drop_table("sketches", if_exists=True)
    op.create_table(
        "sketches",
        Column("digest", String(64), primary_key=True),
        Column("key_id", String(16), nullable=False),
        Column("made_at", BigInteger, nullable=False),
        Column("sketch", LargeBinary, nullable=False),
    )
    if "sketch" in {column["name"] for column in inspect(op.get_bind()).get_columns("derived")}:
        op.drop_column("derived", "sketch")
    op.execute("UPDATE derived SET state = 'waiting', attempts = 0, due_at = 0")
