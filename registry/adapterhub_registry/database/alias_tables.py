"""The table of the aliases of repositories: every move of each."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text

from adapterhub_registry.database.schema import metadata

alias_moves = Table(
    "alias_moves",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), nullable=False),
    Column("alias", String(96), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("actor", String(200), nullable=False),  # a user and the token
    Column("action", String(16), nullable=False),  # set | rollback | remove
    Column("targets", Text, nullable=False),  # JSON array of version, digest and weight; empty after a removal
    Index("alias_moves_by_name", "repo_id", "alias", "id"),
    sqlite_autoincrement=True,
)
