"""How many of the versions that an alias had stay."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, String, inspect

revision = "0028"
down_revision = "0027"


def upgrade() -> None:
    """Add the table."""
    if inspect(op.get_bind()).has_table("alias_retention"):
        return
    op.create_table(
        "alias_retention",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("alias", String(96), primary_key=True),
        Column("newest", Integer, nullable=False),
        Column("grace_ms", BigInteger, nullable=False),
        Column("actor", String(200), nullable=False),
        Column("set_at", BigInteger, nullable=False),
    )
