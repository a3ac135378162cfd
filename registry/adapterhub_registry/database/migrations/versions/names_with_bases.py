"""The index of adapters by name with their bases, so that a search for other bases reads no row of the same one."""

from __future__ import annotations

from alembic import op

revision = "0040"
down_revision = "0039"


def upgrade() -> None:
    """Make the index again with one more column."""
    op.drop_index("adapters_by_name", "adapters", if_exists=True)
    op.create_index("adapters_by_name", "adapters", ["name", "version", "base_sha256"])
