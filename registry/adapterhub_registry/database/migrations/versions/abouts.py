"""One line of text about a namespace."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, String, inspect

revision = "0041"
down_revision = "0040"


def upgrade() -> None:
    """Add the table."""
    if "abouts" not in inspect(op.get_bind()).get_table_names():
        op.create_table(
            "abouts",
            Column("namespace", String(96), primary_key=True),
            Column("about", String(200), nullable=False),
        )
