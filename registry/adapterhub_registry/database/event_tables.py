"""The tables of events and webhooks: an outbox that each change writes to in its own transaction."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, String, Table, Text

from adapterhub_registry.database.schema import metadata

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    # the place in the order of all events; None until the first reader after the commit gives it (see `events.outbox`)
    Column("number", BigInteger, unique=True),
    Column("public_id", String(64), nullable=False, unique=True),
    Column("type", String(32), nullable=False),
    Column("repo", String(200), nullable=False),  # ns/name at the time of the event
    Column("private", Boolean, nullable=False),  # whether the repository was private at that time
    Column("data", Text, nullable=False),  # JSON object
    Column("created_at", BigInteger, nullable=False, index=True),
    Index("events_by_repo", "repo", "number"),
    sqlite_autoincrement=True,
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("scope", String(200), nullable=False, index=True),  # a namespace, or ns/name
    Column("url", String(2000), nullable=False),
    Column("secret", String(100), nullable=False),
    Column("types", Text, nullable=False),  # JSON array of event types; an empty one stands for all
    Column("owner", String(96)),  # the user whose tokens decide what it may learn; None for the server's operator
    Column("created_at", BigInteger, nullable=False),
    sqlite_autoincrement=True,  # never reuses a number: who removes a hook by its number means that hook
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("webhook_id", ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("event_id", ForeignKey("events.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("state", String(10), nullable=False),  # waiting | delivered | failed | withheld
    Column("attempts", Integer, nullable=False),
    Column("due_at", BigInteger, nullable=False),  # of the next attempt; a server that makes one moves it on first
    Column("status", Integer),  # of the last answer
    Column("problem", String(200)),  # of the last attempt
    Column("ended_at", BigInteger),
    Index("deliveries_due", "state", "due_at"),
    Index("deliveries_by_webhook", "webhook_id", "state", "due_at"),
    sqlite_autoincrement=True,
)
