"""Records of who created and revoked tokens."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, String, Text

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "records",
        Column("id", Integer, primary_key=True),
        Column("created_at", BigInteger, nullable=False),
        Column("actor", String(200), nullable=False),
        Column("action", String(32), nullable=False),
        Column("subject", Text, nullable=False),
    )
