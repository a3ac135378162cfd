"""Indexes that spare lists the reading of rows: of builds for a base of one name, and with the columns of filters."""

from __future__ import annotations

from alembic import op

revision = "0037"
down_revision = "0036"


def upgrade() -> None:
    """Add three indexes of adapters, and make those of repositories again with three columns more."""
    columns = "(base_model, created_at, repo_id)"
    is_shared = op.get_bind().dialect.name == "postgresql"
    is_shown = "is_listed OR is_warned" if is_shared else "is_listed = 1 OR is_warned = 1"
    op.execute("CREATE INDEX IF NOT EXISTS adapters_of_name ON adapters (base_model, created_at)")
    op.execute(f"CREATE INDEX IF NOT EXISTS adapters_of_base_name ON adapters {columns} WHERE {is_shown}")
    is_listed = "is_listed" if is_shared else "is_listed = 1"
    columns = "(repo_id, base_sha256, task, peft_type, rank)"
    op.execute(f"CREATE INDEX IF NOT EXISTS adapters_in_short ON adapters {columns} WHERE {is_listed}")
    for name, column in (("modified", "modified_at"), ("created", "created_at"), ("downloads", "downloads")):
        op.execute(f"DROP INDEX IF EXISTS repos_by_{name}")
        op.execute(f"CREATE INDEX repos_by_{name} ON repos ({column}, id, private, namespace, full_name)")
