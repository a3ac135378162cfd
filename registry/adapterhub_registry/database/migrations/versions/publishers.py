"""Which jobs of a CI may publish, the tokens of the CI that were exchanged, and which job made a release."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, String, Text

revision = "0033"
down_revision = "0032"


def upgrade() -> None:
    """Add the tables and the column."""
    op.create_table(
        "publishers",
        Column("id", Integer, primary_key=True),
        Column("repo", String(200), nullable=False, index=True),
        Column("issuer", String(500), nullable=False),
        Column("claims", Text, nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Column("created_by", String(200), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "identities",
        Column("token_id", Integer, ForeignKey("tokens.id"), primary_key=True),
        Column("publisher_id", Integer, nullable=False),
        Column("proof", String(64), nullable=False, unique=True),
        Column("origin", Text, nullable=False),
    )
    op.add_column("releases", Column("publisher", Text))
