"""The order of versions, and indexes by which a repository of ten thousand versions is as quick as one of one."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, LargeBinary, MetaData, Table, inspect, select, update

from adapterhub.core.specs import version_order

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    """Add and fill the column, and add six indexes."""
    connection = op.get_bind()
    if "place" not in {column["name"] for column in inspect(connection).get_columns("releases")}:
        op.add_column("releases", Column("place", LargeBinary))
    releases = Table("releases", MetaData(), autoload_with=connection)
    for row in connection.execute(select(releases.c.repo_id, releases.c.version)).all():
        one = (releases.c.repo_id == row.repo_id) & (releases.c.version == row.version)
        connection.execute(update(releases).where(one).values(place=version_order(row.version)))
    is_shared = connection.dialect.name == "postgresql"
    for statement in (
        "releases_in_order ON releases (repo_id, place)",
        "releases_by_commit ON releases (repo_id, commit_id, version)",
        "releases_by_digest ON releases (repo_id, digest)",
        "refs_by_commit ON refs (repo_id, commit_id)",
        "adapters_by_repo_base ON adapters (repo_id, base_sha256)",
        f"adapters_at_heads ON adapters (repo_id) WHERE is_head{'' if is_shared else ' = 1'}",
    ):
        op.execute(f"CREATE INDEX IF NOT EXISTS {statement}")
