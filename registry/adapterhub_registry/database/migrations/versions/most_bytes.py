"""A bound of the bytes that a repository takes of its namespace's quota; the first check of each counts."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, inspect

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    """Add the column."""
    if "most_bytes" not in {column["name"] for column in inspect(op.get_bind()).get_columns("repos")}:
        op.add_column("repos", Column("most_bytes", BigInteger))
