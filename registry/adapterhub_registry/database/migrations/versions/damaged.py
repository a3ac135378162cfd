"""Which stored files were found damaged, and how much users sent and had unpacked by Xet."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, String

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add a column and a table; a server of the schema before goes on working beside this one."""
    op.add_column("blobs", Column("damaged_at", BigInteger))
    op.create_table(
        "xet_use",
        Column("user_name", String(96), primary_key=True),
        Column("epoch", Integer, primary_key=True, autoincrement=False),
        Column("sent_bytes", BigInteger, nullable=False),
        Column("unpacked_bytes", BigInteger, nullable=False),
    )
