"""An index that has all that an index of vectors is compared with, so that no row with vectors is read for it."""

from __future__ import annotations

from alembic import op

revision = "0031"
down_revision = "0030"


def upgrade() -> None:
    """Replace the index."""
    op.drop_index("meaning_by_model", "meaning", if_exists=True)
    op.create_index("meaning_in_order", "meaning", ["model", "id", "commit_id"], if_not_exists=True)
