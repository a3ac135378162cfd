"""An index in the order of downloads that marks public rows, so that a listing in this order reads its own rows."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Make the index again, with one more column."""
    op.drop_index("repos_by_downloads", "repos", if_exists=True)
    op.create_index("repos_by_downloads", "repos", ["downloads", "id", "private"])
