"""A name belongs to those who may write the repository of that name; to have been first gives no right."""

from __future__ import annotations

from alembic import op
from sqlalchemy import inspect

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    """Take their names from repositories that only were first. An owner of the namespace may give them back."""
    if "granted" not in {column["name"] for column in inspect(op.get_bind()).get_columns("adapter_names")}:
        return
    op.execute(
        "DELETE FROM repo_tags WHERE EXISTS (SELECT 1 FROM adapter_names WHERE NOT adapter_names.granted AND "
        "adapter_names.repo_id = repo_tags.repo_id AND repo_tags.tag = 'adapter-name:' || adapter_names.name)"
    )
    op.execute("DELETE FROM adapter_names WHERE NOT granted")
    op.drop_column("adapter_names", "granted")
