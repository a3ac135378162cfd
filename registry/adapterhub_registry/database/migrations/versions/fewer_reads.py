"""Indexes that spare searches and pages the reading of rows of adapters and repositories."""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Make one again with three more columns, and two more."""
    op.drop_index("adapters_by_base", "adapters", if_exists=True)
    columns = ["base_sha256", "created_at", "repo_id", "is_listed", "base_model", "digest"]
    op.create_index("adapters_by_base", "adapters", columns)
    shown = {"sqlite_where": text("is_listed = 1"), "postgresql_where": text("is_listed")}
    op.create_index("adapters_shown", "adapters", ["repo_id"], if_not_exists=True, **shown)
    rows = {"sqlite_where": text("private IS 1"), "postgresql_where": text("private IS true")}
    op.create_index("repos_private", "repos", ["id"], if_not_exists=True, **rows)
