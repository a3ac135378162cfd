"""An index of uploads by digest: `gc` asks of each file whether one was sent lately."""

from __future__ import annotations

from alembic import op

revision = "0030"
down_revision = "0029"


def upgrade() -> None:
    """Add the index."""
    op.create_index("uploads_by_sha256", "uploads", ["sha256", "created_at"], if_not_exists=True)
