"""People who sign in at an issuer, and programs that wait for a token."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, String, Text, inspect

revision = "0038"
down_revision = "0037"


def upgrade() -> None:
    """Add the tables and the column."""
    found = inspect(op.get_bind())
    if "made_by" not in {one["name"] for one in found.get_columns("tokens")}:
        op.add_column("tokens", Column("made_by", Integer))
    if "accounts" in found.get_table_names():
        return
    op.create_table(
        "accounts",
        Column("id", Integer, primary_key=True),
        Column("issuer", String(500), nullable=False),
        Column("subject", String(255), nullable=False),
        Column("user_id", Integer, ForeignKey("users.id"), nullable=False, unique=True),
        Column("groups", Text, nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Column("signed_in_at", BigInteger),
    )
    op.create_index("accounts_by_subject", "accounts", ["issuer", "subject"], unique=True)
    op.create_table(
        "device_requests",
        Column("id", Integer, primary_key=True),
        Column("device_sha256", String(64), nullable=False, unique=True),
        Column("user_code", String(16), nullable=False, unique=True),
        Column("client", String(200), nullable=False),
        Column("address", String(64), nullable=False, index=True),
        Column("scopes", String(40), nullable=False),
        Column("days", Integer, nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Column("expires_at", BigInteger, nullable=False, index=True),
        Column("polled_at", BigInteger),
        Column("wait_s", Integer, nullable=False),
        Column("state", String(8), nullable=False),
        Column("approved_by", Integer, ForeignKey("tokens.id")),
        sqlite_autoincrement=True,
    )
