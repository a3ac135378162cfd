"""The engines of SQLite and PostgreSQL: how a connection opens, is known to live, and begins a transaction.

No driver begins a transaction by itself: a statement outside of one is a transaction of its own, one way to the
database and back.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any, Final

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, InvalidatePoolError

from adapterhub.core.errors import UsageProblem

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

    def on_checkin(_connection: object, record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's
        record.info["used_at"] = time.monotonic()

    def on_checkout(connection: Any, record: Any, _proxy: object) -> None:  # noqa: ANN401 - SQLAlchemy's
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
