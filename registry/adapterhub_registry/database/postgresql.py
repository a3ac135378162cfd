"""The engine of PostgreSQL, whose statements wait for a database that works and not for one that is silent.

A machine that is gone, a network that drops packets and a program that was stopped have in common that no answer comes,
not even a refusal. A statement without an answer for `SILENT_S` therefore asks over a new connection whether the
database answers anybody. When it does, the statement is a long one, or waits for a lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from typing import Any, Final

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import InvalidatePoolError

from adapterhub_registry.fuse import Fuse

IDLE_S: Final = 1.0
"""A connection that was idle for so long answers a ping before it is used."""
SILENT_S: Final = 3.0
CONNECTING: Final = {
    "connect_timeout": 3,  # seconds
    "tcp_user_timeout": 10_000,  # milliseconds until a connection ends whose bytes no acknowledgement answers
    "keepalives_idle": 5,  # these three find a machine that is gone in 11 seconds
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
"""Parameters of libpq; the URL of the database may name others."""
PREPARED: Final = 400
"""So many statements a connection keeps prepared; all routes and pages run about 300."""
REPEATED: Final = 1
"""A statement is prepared when it comes again: planning it takes longer than running it."""
_BY_INDEX: Final = (
    "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off; SET enable_memoize = off; "
    "SET max_parallel_workers_per_gather = 0; SET jit = off; SET random_page_cost = 1.1"
)
FOR_VALUES: Final = "SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on"
"""For statements that PostgreSQL plans for their values, of which it knows how many rows have them."""


def postgresql_engine(url: URL, *, connections: int, fuse: Fuse) -> Engine:
    """Return the engine of a server, with at most so many connections; a database that does not answer trips `fuse`.

    Raises:
        ImportError: the driver is not installed.
    """
    import psycopg

    # the connection that came back last goes first, as it has prepared most
    options = {"pool_size": connections, "max_overflow": 0, "pool_timeout": 10, "pool_use_lifo": True}
    engine = create_engine(url, connect_args={"autocommit": True}, **options)
    connection_class = _patient(fuse)

    def on_connect(_dialect: object, _record: object, given: list[Any], named: dict[str, Any]) -> Any:
        if not fuse.passes():
            raise psycopg.OperationalError("the database did not answer a moment ago")
        for name, value in CONNECTING.items():
            named.setdefault(name, value)
        try:
            made = connection_class.connect(*given, **named)
        except psycopg.errors.ConnectionTimeout:
            fuse.trip()
            raise
        fuse.mend()
        made.prepared_max, made.prepare_threshold = PREPARED, REPEATED
        return made

    def on_begin(connection: Connection) -> None:
        is_read = connection.get_execution_options().get("reads", False)
        connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY" if is_read else "BEGIN")

    def on_checkin(connection: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()
        if connection is not None:
            connection.prepare_threshold = REPEATED  # see `plan_for_values`

    def on_checkout(connection: Any, record: Any, _proxy: object) -> None:
        used_at = record.info.get("used_at")
        if used_at is None or not (fuse.tripped or time.monotonic() - used_at > IDLE_S):
            return
        if not fuse.passes():
            raise psycopg.OperationalError("the database did not answer a moment ago")
        connection.is_pinged = True
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error:
            raise InvalidatePoolError from None  # the pool opens new connections in place of all
        connection.is_pinged = False
        fuse.mend()

    event.listen(engine, "do_connect", on_connect)
    event.listen(engine, "begin", on_begin)
    event.listen(engine, "checkin", on_checkin)
    event.listen(engine, "checkout", on_checkout)
    return engine


def look_up_by_index(engine: Engine) -> None:
    """Let PostgreSQL plan for requests, none of which reads a table as a whole; upkeep, which does, needs other plans.

    A statement keeps one plan for all values, made for a repository of average size. In one with 100,000 commits, each
    join but a loop over an index would read them all.
    """
    if engine.dialect.name == "postgresql":
        event.listen(engine, "connect", lambda connection, _: connection.execute(_BY_INDEX, prepare=False))
        engine.dispose()  # the connections that were made before


def _patient(fuse: Fuse) -> Any:
    """Return the class of the driver's connections, with statements that look for the database while they wait."""
    import psycopg

    asking = threading.Lock()
    answered_at = time.monotonic()

    def answers(dsn: str) -> bool:
        """Return whether the database takes a connection or refuses it; one thread asks for all."""
        nonlocal answered_at
        began = time.monotonic()
        with asking:
            if answered_at < began and not fuse.tripped:
                try:
                    psycopg.connect(dsn, connect_timeout=int(SILENT_S)).close()
                except psycopg.errors.ConnectionTimeout:
                    fuse.trip()
                except psycopg.OperationalError:  # without the password, for one
                    pass
                answered_at = time.monotonic()
            return not fuse.tripped

    class Patient(psycopg.Connection[Any]):
        is_pinged = False

        def wait(self, gen: Any, *given: Any, **named: Any) -> Any:
            return super().wait(self._watched(gen), *given, **named)

        def _watched(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
            heard_at = time.monotonic()
            try:
                wanted = next(steps)
                while True:
                    ready = yield wanted
                    now = time.monotonic()
                    if ready:
                        heard_at = now
                    elif now - heard_at > SILENT_S:
                        if self.is_pinged or not answers(self.info.dsn):
                            self.close()
                            raise psycopg.OperationalError("the database does not answer")
                        heard_at = time.monotonic()
                    wanted = steps.send(ready)
            except StopIteration as end:
                return end.value

    return Patient
