"""What limits for each token need, and the indexes by which listings of many repositories stay quick."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Integer, text

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add a column and indexes; a server of the schema before goes on working beside this one."""
    op.add_column("uploads", Column("token_id", Integer))
    op.create_index("uploads_by_token", "uploads", ["token_id", "created_at"])
    op.create_index("repos_by_modified", "repos", ["modified_at", "id"])
    op.create_index("repos_by_created", "repos", ["created_at", "id"])
    op.create_index("repos_by_downloads", "repos", ["downloads", "id"])
    op.create_index("adapters_listed", "adapters", ["is_listed", "created_at", "repo_id"])
    op.execute(text("DELETE FROM facts WHERE name = 'schema'"))
