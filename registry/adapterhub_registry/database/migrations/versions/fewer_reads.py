"""Indexes and a column of stems that spare searches and pages the reading of rows."""

from __future__ import annotations

from alembic import op

from adapterhub_registry.database.search_tables import add_stems

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Make one index again with three more columns, and two more; PostgreSQL keeps stems in a column."""
    op.drop_index("adapters_by_base", "adapters", if_exists=True)
    columns = ["base_sha256", "created_at", "repo_id", "is_listed", "base_model", "digest"]
    op.create_index("adapters_by_base", "adapters", columns)
    connection = op.get_bind()
    is_shared = connection.dialect.name == "postgresql"
    op.execute(
        f"CREATE INDEX IF NOT EXISTS adapters_shown ON adapters (repo_id) WHERE is_listed{'' if is_shared else ' = 1'}"
    )
    op.execute(
        f"CREATE INDEX IF NOT EXISTS repos_private ON repos (id) WHERE private IS {'true' if is_shared else '1'}"
    )
    if is_shared:
        add_stems(connection)
