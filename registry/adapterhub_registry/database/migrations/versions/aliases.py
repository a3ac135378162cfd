"""The moves of aliases."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, String, Text

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "alias_moves",
        Column("id", Integer, primary_key=True),
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), nullable=False),
        Column("alias", String(96), nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Column("actor", String(200), nullable=False),
        Column("action", String(16), nullable=False),
        Column("targets", Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("alias_moves_by_name", "alias_moves", ["repo_id", "alias", "id"])
