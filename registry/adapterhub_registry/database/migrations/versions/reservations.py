"""The bytes that clients announced and have not sent yet."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, String

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "reservations",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("sha256", String(64), primary_key=True),
        Column("size", BigInteger, nullable=False),
        Column("token_id", Integer),
        Column("ends_at", BigInteger, nullable=False),
    )
    op.create_index("reservations_by_token", "reservations", ["token_id"])
