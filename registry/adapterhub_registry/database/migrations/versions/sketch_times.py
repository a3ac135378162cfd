"""An index that shows whether there are new sketches, so that no search for like updates reads their table."""

from __future__ import annotations

from alembic import op

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    """Add the index."""
    op.create_index("sketches_by_time", "sketches", ["made_at"], if_not_exists=True)
