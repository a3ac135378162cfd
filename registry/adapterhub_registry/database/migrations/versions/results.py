"""Signed results of tests, and what namespaces ask of them."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Integer, LargeBinary, String

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the three tables."""
    op.create_table(
        "results",
        Column("id", Integer, primary_key=True),
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), nullable=False),
        Column("manifest", String(64), nullable=False),
        Column("sha256", String(64), nullable=False),
        Column("key", String(64), nullable=False),
        Column("question", String(64), nullable=False),
        Column("sent_by", String(200), nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Column("body", LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("results_of_key", "results", ["repo_id", "manifest", "key", "question"], unique=True)
    op.create_table(
        "test_rules",
        Column("namespace", String(96), primary_key=True),
        Column("asks", String(8), nullable=False),
        Column("keys_only", Boolean, nullable=False),
    )
    op.create_table(
        "test_keys",
        Column("namespace", String(96), primary_key=True),
        Column("fingerprint", String(64), primary_key=True),
        Column("name", String(64), nullable=False),
        Column("pem", String(2048), nullable=False),
        Column("created_at", BigInteger, nullable=False),
    )
