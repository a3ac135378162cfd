"""The schema of the database: create it, or migrate an earlier one.

An empty database gets the tables of `db` at once. Alembic migrates an earlier one through `migrations/versions`, one
revision after the other. A test checks that both ways end in the same schema. Everything happens in one transaction.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import Column, MetaData, String, Table, delete, insert, inspect, select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DatabaseError

from adapterhub.core.errors import Malformed, UsageProblem, shown

UNRELEASED: Final = ("0001", "0002", "0003", "0004")
"""Schemas from before the first release, which `initial` migrates; databases of the first one name no revision."""
HEAD: Final = "0025"
KNOWN: Final = (*UNRELEASED, *(f"{number:04}" for number in range(5, 25)), HEAD)
MIGRATIONS: Final = Path(__file__).parent / "migrations"

metadata: Final = MetaData()
"""The tables of `db`, and of the files beside it."""

_version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


_BESIDE: Final = ("", "-wal", "-shm", "-journal")
"""What SQLite adds to the name of a database for the files beside it."""


@contextlib.contextmanager
def readable(place: str | None) -> Iterator[None]:
    """Turn SQLite's errors about a damaged file, or one that is not a database, into `Malformed`.

    `place` is the path of the file, None for a database on a server.
    """
    for path in (Path(f"{place}{end}") for end in _BESIDE if place):
        # SQLite waits without end for a pipe in place of its journal
        if path.exists() and not path.is_file():
            raise Malformed(
                f"`{shown(str(path), 200)}` is not a regular file; no row was read or written",
                hint="move it away, and restore the database from a backup where it is the database itself",
            )
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
    """The revision of the schema; None for a database without the registry's tables."""
    tables = set(inspect(connection).get_table_names())
    if _version.name in tables:
        return connection.scalar(select(_version.c.version_num))
    return UNRELEASED[0] if "facts" in tables else None


def bring_up_to_date(connection: Connection) -> None:
    """Create the tables, or migrate those of an earlier version.

    Raises:
        UsageProblem: a later version of this program made the database. Nothing was changed.
    """
    revision = revision_of(connection)
    if revision == HEAD:
        return
    if revision is None:
        metadata.create_all(connection, checkfirst=bool(inspect(connection).get_table_names()))
        _version.create(connection)
        connection.execute(insert(_version).values(version_num=HEAD))
        return
    if revision not in KNOWN:
        raise UsageProblem(
            f"the database has schema {shown(revision)}, this version knows schemas up to {HEAD}; nothing was changed",
            hint="upgrade the program: `pip install -U adapterhub`",
        )
    upgrade(connection, revision)


def upgrade(connection: Connection, revision: str) -> None:
    """Run the migrations from `revision` on, in the caller's transaction."""
    from alembic import command, config  # noqa: PLC0415 - only an old database needs Alembic

    settings = config.Config()
    settings.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    settings.attributes["connection"] = connection
    if revision in UNRELEASED:
        _version.create(connection, checkfirst=True)
        connection.execute(delete(_version))
    command.upgrade(settings, "head")
