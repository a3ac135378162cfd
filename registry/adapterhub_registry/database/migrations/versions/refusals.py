"""The log of refused changes."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, String, Text

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "refusals",
        Column("id", Integer, primary_key=True),
        Column("created_at", BigInteger, nullable=False),
        Column("user_name", String(96), nullable=False),
        Column("token_id", Integer),
        Column("repo", String(200), nullable=False),
        Column("action", String(16), nullable=False),
        Column("status", Integer, nullable=False),
        Column("code", String(32), nullable=False),
        Column("message", Text, nullable=False),
        Column("count", Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("refusals_by_time", "refusals", ["created_at", "id"])
    op.create_index("refusals_by_user", "refusals", ["user_name", "repo"])
