"""Which repository may release each name of a namespace."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Integer, String, inspect

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    """Add the table. Each repository keeps the names that it has released: only its owner knows which are strange."""
    if "adapter_names" in inspect(op.get_bind()).get_table_names():
        return
    op.create_table(
        "adapter_names",
        Column("namespace", String(96), primary_key=True),
        Column("name", String(200), primary_key=True),
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("granted", Boolean, nullable=False),
        Column("created_at", BigInteger, nullable=False),
    )
    op.create_index("ix_adapter_names_repo_id", "adapter_names", ["repo_id"])
    op.execute(
        "INSERT INTO adapter_names (namespace, name, repo_id, granted, created_at) "
        "SELECT repos.namespace, adapters.name, repos.id, true, min(releases.created_at) FROM releases "
        "JOIN repos ON repos.id = releases.repo_id JOIN adapters ON adapters.repo_id = releases.repo_id "
        "AND adapters.commit_id = releases.commit_id WHERE adapters.name IS NOT NULL "
        "GROUP BY repos.namespace, adapters.name, repos.id"
    )
