"""Redirects of renamed repositories, and requests for the files of gated ones."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, String, Text

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the two tables."""
    op.create_table(
        "redirects",
        Column("full_name", String(200), primary_key=True),
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), nullable=False, index=True),
        Column("created_at", BigInteger, nullable=False),
    )
    op.create_table(
        "access_requests",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("user_name", String(96), primary_key=True),
        Column("status", String(8), nullable=False),
        Column("fields", Text),
        Column("reason", Text),
        Column("created_at", BigInteger, nullable=False),
    )
