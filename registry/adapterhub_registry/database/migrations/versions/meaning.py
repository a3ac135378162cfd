"""Vectors of builds, which a worker makes."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, ForeignKey, Integer, LargeBinary, String

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the table."""
    op.drop_table("meaning", if_exists=True)  # a worker makes all of it again
    op.create_table(
        "meaning",
        Column("id", Integer, primary_key=True),
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), nullable=False),
        Column("commit_id", String(40), nullable=False),
        Column("model", String(16), nullable=False),
        Column("vectors", LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("meaning_of_build", "meaning", ["repo_id", "commit_id"], unique=True)
    op.create_index("meaning_by_model", "meaning", ["model", "id"])
