"""The schema of the database through time: empty, of an earlier version, or of this one.

An empty database gets the tables of `db` at once. An earlier one goes through `migrations/versions`, with Alembic, one
revision after the other. A test holds that both end in the same schema. Everything happens in one transaction.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import Column, MetaData, String, Table, insert, inspect, select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DatabaseError

from adapterhub.core.errors import Malformed, UsageProblem, shown

FIRST: Final = "0001"
"""The schema from before revisions were written down."""
HEAD: Final = "0005"
KNOWN: Final = (FIRST, "0002", "0003", "0004", HEAD)
MIGRATIONS: Final = Path(__file__).parent / "migrations"

_version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


@contextlib.contextmanager
def readable(place: object) -> Iterator[None]:
    """Turn what SQLite says of a file that is no database, or a damaged one, into `Malformed`."""
    try:
        yield
    except (sqlite3.DatabaseError, DatabaseError) as error:
        cause = getattr(error, "orig", error)
        if type(cause) is not sqlite3.DatabaseError:  # its subclasses are other faults
            raise
        raise Malformed(
            f"`{shown(str(place), 200)}` cannot be read as a database: {cause}; no row was written",
            hint="restore it from a backup",
        ) from None


def revision_of(connection: Connection) -> str | None:
    """The revision of the schema; None for a database without tables of ours."""
    tables = set(inspect(connection).get_table_names())
    if _version.name in tables:
        return connection.scalar(select(_version.c.version_num))
    return FIRST if "facts" in tables else None


def bring_up_to_date(connection: Connection, metadata: MetaData) -> None:
    """Make the tables, or change those of an earlier version into those of this one.

    Raises:
        UsageProblem: the database is of a later version than this program. It was not changed.
    """
    revision = revision_of(connection)
    if revision == HEAD:
        return
    if revision is None:
        metadata.create_all(connection)
        _version.create(connection)
        connection.execute(insert(_version).values(version_num=HEAD))
        return
    if revision not in KNOWN:
        raise UsageProblem(
            f"the database has the schema {shown(revision)}, this version knows up to {HEAD}; nothing was changed",
            hint="`pip install -U adapterhub` brings a version that knows it",
        )
    upgrade(connection, revision)


def upgrade(connection: Connection, revision: str | None, target: str = HEAD) -> None:
    """Run the migrations from `revision` (None: from nothing) up to `target`, in the caller's transaction."""
    from alembic import command  # noqa: PLC0415 - needed for an old database only
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    if revision == FIRST and _version.name not in inspect(connection).get_table_names():
        command.stamp(config, FIRST)
    command.upgrade(config, target)
