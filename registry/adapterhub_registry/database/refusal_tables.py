"""The table of refused changes: what somebody tried to publish, and why the server refused it."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, Text

from adapterhub_registry.database.schema import metadata

refusals = Table(
    "refusals",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("created_at", BigInteger, nullable=False),  # of the last one, as repeats share a row
    Column("user_name", String(96), nullable=False),
    Column("token_id", Integer),
    Column("repo", String(200), nullable=False),  # ns/name, or empty where the request's path names none
    Column("action", String(16), nullable=False),  # commit | upload | create | …
    Column("status", Integer, nullable=False),
    Column("code", String(32), nullable=False),
    Column("message", Text, nullable=False),
    Column("count", Integer, nullable=False),
    Index("refusals_by_time", "created_at", "id"),
    Index("refusals_by_user", "user_name", "repo"),
    sqlite_autoincrement=True,
)
