"""The table of the names of adapters: which repository of a namespace may release each."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, String, Table

from adapterhub_registry.database.schema import metadata

adapter_names = Table(
    "adapter_names",
    metadata,
    Column("namespace", String(96), primary_key=True),
    Column("name", String(200), primary_key=True),
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True, index=True),
    Column("created_at", BigInteger, nullable=False),
)
