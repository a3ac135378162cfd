"""The schema of the database, created or migrated from an earlier one, and the engines of SQLite and PostgreSQL.

An empty database gets the tables of `db` at once. Alembic migrates an earlier one through `migrations/versions`, one
revision after the other. A test checks that both ways end in the same schema. Everything happens in one transaction.

No driver begins a transaction by itself: a statement outside of one is a transaction of its own, one way to the
database and back.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Column, Engine, MetaData, String, Table, create_engine, delete, event, insert, inspect, select
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, InvalidatePoolError

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
    from alembic import command, config

    settings = config.Config()
    settings.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    settings.attributes["connection"] = connection
    if revision in UNRELEASED:
        _version.create(connection, checkfirst=True)
        connection.execute(delete(_version))
    command.upgrade(settings, "head")


BUSY_TIMEOUT_MS: Final = 30_000
IDLE_S: Final = 1.0
"""A connection to PostgreSQL that was idle for so long answers a ping before it is used."""

_PRAGMAS: Final = (
    f"busy_timeout={BUSY_TIMEOUT_MS}",  # first, as the next one waits for other processes
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "mmap_size=1073741824",  # a read of a page in memory costs no call of the system; writes stay calls
    "case_sensitive_like=ON",  # like PostgreSQL: a token for `acme/*` does not cover `ACME/x`
)


def url_of(text: str) -> URL:
    """The URL of a database, with our driver for PostgreSQL.

    Raises:
        UsageProblem: the text is no URL.
    """
    try:
        parsed = make_url(text)
    except ArgumentError:
        # the text may contain a password
        raise UsageProblem("database: expected a URL such as postgresql://user@host/name") from None
    if parsed.drivername in {"postgres", "postgresql"}:
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def sqlite_engine(url: URL) -> Engine:
    """The engine of a file, or of memory."""
    engine = create_engine(url, connect_args={"check_same_thread": False}, pool_size=16, max_overflow=48)

    def on_connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver starts no transactions; `on_begin` does
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    def on_begin(connection: Connection) -> None:
        if connection.get_execution_options().get("writes", False):
            # a read transaction that becomes a write can fail with `database is locked`
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.connection.cursor().execute("BEGIN")  # touches no file, so it cannot fail

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
    return engine


def postgresql_engine(url: URL, *, connections: int) -> Engine:
    """The engine of a server, with at most so many connections.

    Raises:
        ImportError: the driver is not installed.
    """
    options = {"pool_size": connections, "max_overflow": 0, "pool_timeout": 10}
    engine = create_engine(url, connect_args={"autocommit": True}, **options)

    def on_begin(connection: Connection) -> None:
        is_read = connection.get_execution_options().get("reads", False)
        connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY" if is_read else "BEGIN")

    def on_checkin(_connection: object, record: Any) -> None:
        record.info["used_at"] = time.monotonic()

    def on_checkout(connection: Any, record: Any, _proxy: object) -> None:
        used_at = record.info.get("used_at")
        if used_at is not None and time.monotonic() - used_at > IDLE_S:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error:
                raise InvalidatePoolError from None  # the pool opens new connections in place of all

    event.listen(engine, "begin", on_begin)
    event.listen(engine, "checkin", on_checkin)
    event.listen(engine, "checkout", on_checkout)
    return engine
