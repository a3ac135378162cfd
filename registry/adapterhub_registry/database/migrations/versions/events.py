"""Events, webhooks and the deliveries of one to the other."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Integer, String, Text

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the three tables."""
    op.create_table(
        "events",
        Column("id", Integer, primary_key=True),
        Column("number", BigInteger, unique=True),
        Column("public_id", String(64), nullable=False, unique=True),
        Column("type", String(32), nullable=False),
        Column("repo", String(200), nullable=False),
        Column("private", Boolean, nullable=False),
        Column("data", Text, nullable=False),
        Column("created_at", BigInteger, nullable=False, index=True),
        sqlite_autoincrement=True,
    )
    op.create_index("events_by_repo", "events", ["repo", "number"])
    op.create_table(
        "webhooks",
        Column("id", Integer, primary_key=True),
        Column("scope", String(200), nullable=False, index=True),
        Column("url", String(2000), nullable=False),
        Column("secret", String(100), nullable=False),
        Column("types", Text, nullable=False),
        Column("owner", String(96)),
        Column("created_at", BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "deliveries",
        Column("id", Integer, primary_key=True),
        Column("webhook_id", Integer, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
        Column("event_id", Integer, ForeignKey("events.id", ondelete="CASCADE"), nullable=False, index=True),
        Column("state", String(10), nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("due_at", BigInteger, nullable=False),
        Column("status", Integer),
        Column("problem", String(200)),
        Column("ended_at", BigInteger),
        sqlite_autoincrement=True,
    )
    op.create_index("deliveries_due", "deliveries", ["state", "due_at"])
    op.create_index("deliveries_by_webhook", "deliveries", ["webhook_id", "state", "due_at"])
