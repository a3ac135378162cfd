"""Sets of the repositories with each tag, on SQLite."""

from __future__ import annotations

from alembic import op

from adapterhub_registry.database.search_tables import keep_tag_sets

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Make the sets."""
    keep_tag_sets(op.get_bind())
