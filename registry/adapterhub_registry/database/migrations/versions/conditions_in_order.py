"""Indexes of lists of adapters with what conditions ask of each, so that a search reads no row that it passes over."""

from __future__ import annotations

from alembic import op

revision = "0039"
down_revision = "0038"

_LISTED = "is_listed"
_SHOWN = "is_listed OR is_warned"
_INDEXES = {
    "adapters_listed": ("created_at, repo_id, base_sha256, task, peft_type, rank", _LISTED),
    "adapters_in_short": ("repo_id, base_sha256, task, peft_type, rank, base_model, is_warned", _LISTED),
    "adapters_by_base_and_task": ("base_sha256, task, created_at, repo_id, peft_type, rank, is_listed", _SHOWN),
}


def upgrade() -> None:
    """Make three indexes again with more columns."""
    is_shared = op.get_bind().dialect.name == "postgresql"
    for name, (columns, rows) in _INDEXES.items():
        where = rows if is_shared else rows.replace("is_listed", "is_listed = 1").replace("is_warned", "is_warned = 1")
        op.drop_index(name, "adapters", if_exists=True)
        op.execute(f"CREATE INDEX {name} ON adapters ({columns}) WHERE {where}")
