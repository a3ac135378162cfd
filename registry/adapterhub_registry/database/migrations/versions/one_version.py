"""One key for all spellings of a version: 1.0 and 1.0.0 are one, as in resolution."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, MetaData, String, Table, inspect, select, update

from adapterhub.core.specs import version_key, version_of
from adapterhub_registry.database.db import now_ms

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Add the keys. Of equal versions in a repository the first keeps its key, and the others are yanked."""
    if "version_key" in {column["name"] for column in inspect(op.get_bind()).get_columns("releases")}:
        return
    for table in ("releases", "tombstones"):
        op.add_column(table, Column("version_key", String(200), nullable=False, server_default=""))
        op.drop_index(f"{table}_by_version", table, if_exists=True)
    connection = op.get_bind()
    known = MetaData()
    releases, tombstones = (Table(name, known, autoload_with=connection) for name in ("releases", "tombstones"))
    for text in connection.scalars(select(tombstones.c.version).distinct()).all():
        one = tombstones.c.version == text
        connection.execute(update(tombstones).where(one).values(version_key=version_key(text)))
    first: dict[tuple[int, str], str] = {}
    oldest = select(releases).order_by(releases.c.created_at, releases.c.version)
    # a local version after all others: it reads like the one without its local part
    rows = sorted(connection.execute(oldest).all(), key=lambda row: version_of(row.version).local is not None)
    for row in rows:
        key = version_key(row.version)
        same = first.get((row.repo_id, key)) or first.get((row.repo_id, version_key(version_of(row.version).public)))
        values: dict[str, object] = {"version_key": f"={row.version}" if (row.repo_id, key) in first else key}
        if same is not None and row.yanked_at is None:
            reason = f"reads like {same}, which was released, too"
            values |= {"yanked_at": now_ms(), "yanked_by": "the registry", "yanked_reason": reason}
        first.setdefault((row.repo_id, key), row.version)
        one = (releases.c.repo_id == row.repo_id) & (releases.c.version == row.version)
        connection.execute(update(releases).where(one).values(values))
    op.create_index("releases_by_version", "releases", ["version_key"])
    op.create_index("releases_are_one", "releases", ["repo_id", "version_key"], unique=True)
    op.create_index("tombstones_by_version", "tombstones", ["namespace", "version_key"])
