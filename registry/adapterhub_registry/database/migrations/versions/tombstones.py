"""What was released by repositories that are gone."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Index, Integer, String

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add a table; a server of the schema before goes on working beside this one."""
    op.create_table(
        "tombstones",
        Column("full_name", String(200), primary_key=True),
        Column("version", String(200), primary_key=True),
        Column("namespace", String(96), nullable=False),
        Column("digest", String(64), nullable=False),
        Column("name", String(200)),
        Column("base_sha256", String(64)),
        Column("base_model", String(256)),
        Column("rank", Integer),
        Column("created_at", BigInteger, nullable=False),
        Index("tombstones_by_version", "namespace", "version"),
    )
