"""The schema of the database, created or migrated from an earlier one, and the engine of SQLite.

An empty database gets the tables of `db` at once. Alembic migrates an earlier one through `migrations/versions`, one
revision after the other. A test checks that both ways end in the same schema. Everything happens in one transaction.

Servers of two versions share a database while one replaces the other. So a migration only adds what older statements
do not meet: `OLDEST` is the first schema whose program works on this one, and the database names it. Parts that an
older version needs go one minor version after its last use, with a higher `OLDEST`.

No driver begins a transaction by itself: a statement outside of one is a transaction of its own, one way to the
database and back.
"""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Column, Engine, MetaData, String, Table, create_engine, delete, event, insert, inspect, select
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from adapterhub.core.disk.files import SQLITE_ENDS
from adapterhub.core.errors import Conflict, Malformed, UsageProblem, shown

UNRELEASED: Final = ("0001", "0002", "0003", "0004")
"""Schemas from before the first release, which `initial` migrates; databases of the first one name no revision."""
HEAD: Final = "0041"
KNOWN: Final = (*UNRELEASED, *(f"{number:04}" for number in range(5, 41)), HEAD)
OLDEST: Final = "0035"
"""The oldest schema whose program works on a database of this one."""
MIGRATIONS: Final = Path(__file__).parent / "migrations"

metadata: Final = MetaData()
"""The tables of `db`, and of the files beside it."""

_version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


_works_with = Table("works_with", MetaData(), Column("schema_num", String(32), primary_key=True))
"""The `OLDEST` of the program that made the schema; without it, only that program's own version works."""


@contextlib.contextmanager
def readable(place: str | None) -> Iterator[None]:
    """Turn SQLite's errors about a damaged file, or one that is not a database, into `Malformed`.

    `place` is the path of the file, None for a database on a server.
    """
    for path in (Path(f"{place}{end}") for end in SQLITE_ENDS if place):
        # SQLite waits without end for a pipe in place of its journal; a journal may go between two looks
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(path.stat().st_mode):
                raise Malformed(
                    f"`{shown(str(path), 200)}` is not a regular file; no row was read or written",
                    hint="move it away; if it is the database itself, restore that from a backup",
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
    """Return the revision of the schema; None for a database without the registry's tables."""
    tables = set(inspect(connection).get_table_names())
    if _version.name in tables:
        return connection.scalar(select(_version.c.version_num))
    return UNRELEASED[0] if "facts" in tables else None


def bring_up_to_date(connection: Connection) -> None:
    """Create the tables, or migrate those of an earlier version.

    Raises:
        UsageProblem: a later version of this program made the database, and this one does not work on it. Nothing was
            changed.
    """
    revision = revision_of(connection)
    if revision is None:
        metadata.create_all(connection, checkfirst=bool(inspect(connection).get_table_names()))
        _version.create(connection)
        connection.execute(insert(_version).values(version_num=HEAD))
    elif revision not in KNOWN:
        _check_later(connection, revision)
        return
    elif revision != HEAD:
        upgrade(connection, revision)
    if revision != HEAD:
        _works_with.create(connection, checkfirst=True)
        connection.execute(delete(_works_with))
        connection.execute(insert(_works_with).values(schema_num=OLDEST))


def _check_later(connection: Connection, revision: str) -> None:
    oldest = None
    if inspect(connection).has_table(_works_with.name):
        oldest = connection.scalar(select(_works_with.c.schema_num))
    if oldest not in KNOWN:
        needs = f"{shown(oldest)} or later" if oldest else "that one"
        raise UsageProblem(
            f"the database has schema {shown(revision)}, and this version supports schemas up to {HEAD}; only programs "
            f"of {needs} can use it; nothing was changed",
            hint="upgrade the program: `pip install -U adapterhub`; a database goes back only by `adapt registry "
            "restore` of a backup",
        )


def patient(change: Callable[[], None]) -> None:
    """Run `change`, and run it again, `RETRIES_S` later, where it waited too long for a lock.

    Raises:
        Conflict: it did so each time. Nothing was changed.
    """
    for pause_s in (*RETRIES_S, None):
        try:
            return change()
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != _NO_LOCK:
                raise
        if pause_s is not None:
            time.sleep(pause_s)
    raise Conflict(
        f"the database was not upgraded: {len(RETRIES_S) + 1} times, it waited {LOCK_S} s for a table that another "
        "transaction holds; nothing was changed",
        hint="`SELECT pid, query FROM pg_stat_activity WHERE xact_start IS NOT NULL ORDER BY xact_start` lists the "
        "transactions, the longest first; end that one, and start again",
    )


_NO_LOCK: Final = "55P03"
"""What PostgreSQL answers to a statement that waited longer for a lock than it may."""


def leave_as_it_is(_connection: Connection) -> None:
    """Take a database of any schema, for reads of tables that every schema has."""


def check_current(connection: Connection) -> None:
    """Create the tables in an empty database, and leave any other unchanged.

    Raises:
        UsageProblem: the database has an earlier schema, or a later one on which this program does not work.
    """
    revision = revision_of(connection)
    if revision is not None and revision in KNOWN and revision != HEAD:
        raise UsageProblem(
            f"the database has schema {revision}, this version works on {HEAD}; nothing was changed",
            hint="back it up, then run `adapt registry upgrade`, or start a server of this version, which upgrades it",
        )
    bring_up_to_date(connection)


LOCK_S: Final = 5
RETRIES_S: Final = (1.0, 5.0, 15.0)


def upgrade(connection: Connection, revision: str) -> None:
    """Run the migrations from `revision` on, in the caller's transaction.

    On PostgreSQL, one that waits `LOCK_S` for a lock fails: every statement that comes after it waits for it.
    """
    from alembic import command

    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_S}s'")
    settings = alembic_settings()
    settings.attributes["connection"] = connection
    if revision in UNRELEASED:
        _version.create(connection, checkfirst=True)
        connection.execute(delete(_version))
    command.upgrade(settings, "head")


def steps_after(revision: str) -> list[tuple[str, str]]:
    """Return the number of each migration after a schema of `KNOWN`, and what it does."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(alembic_settings()).walk_revisions()
    found = [(one.revision, one.doc.partition("\n")[0]) for one in scripts if one.revision > revision]
    return sorted(found)


def alembic_settings() -> Any:
    """Make Alembic's configuration, which finds the migrations."""
    from alembic import config

    settings = config.Config()
    settings.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return settings


BUSY_TIMEOUT_MS: Final = 30_000
STATEMENTS: Final = 512
"""Of a connection: to prepare one again takes as long as to run it."""
_PRAGMAS: Final = (
    f"busy_timeout={BUSY_TIMEOUT_MS}",  # first, as the next one waits for other processes
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "mmap_size=2147418112",  # the most: a read of a page in memory costs no call of the system; writes stay calls
    "cache_size=-8192",  # KiB of the pages behind those: a search of a million builds reads them again and again
    "case_sensitive_like=ON",  # like PostgreSQL: a token for `acme/*` does not cover `ACME/x`
)


def url_of(text: str) -> URL:
    """Return the URL of a database, with our driver for PostgreSQL.

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


class _WithIndexes(SQLiteCompiler):
    """Writes the index that a statement names behind its table, which SQLAlchemy does for other databases only."""

    def get_from_hint_text(self, table: object, text: str | None) -> str | None:  # noqa: ARG002 - as SQLAlchemy calls it
        return text


def sqlite_engine(url: URL) -> Engine:
    """Return the engine of a file, or of memory."""
    options = {"check_same_thread": False, "cached_statements": STATEMENTS}
    # the connection of the last request has its pages and statements at hand
    engine = create_engine(url, connect_args=options, pool_size=16, max_overflow=48, pool_use_lifo=True)
    engine.dialect.statement_compiler = _WithIndexes

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
