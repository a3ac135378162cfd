"""The index of adapters by base holds what the page of a base counts and draws."""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Make the index again with three more columns."""
    op.drop_index("adapters_by_base", "adapters", if_exists=True)
    columns = ["base_sha256", "created_at", "repo_id", "is_listed", "base_model", "digest"]
    op.create_index("adapters_by_base", "adapters", columns)
