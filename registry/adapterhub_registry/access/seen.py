"""Which builds the worker has come to since their push: only these show a record or a sketch.

The record of a build is kept by its digest. So the same bytes in a hidden repository have made it before, and a push
of bytes that one knows would tell whether a hidden repository has them.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, ColumnElement, cast, exists, func, select, update
from sqlalchemy.engine import Connection

from adapterhub_registry.database.db import adapters, facts, insert_new, now_ms
from adapterhub_registry.database.derived_tables import derived

_NAME: Final = "derived until"
_ALWAYS: Final = (1 << 63) - 1
_VALUE: Final = cast(facts.c.value, BigInteger)
_UNTIL: Final = func.coalesce(select(_VALUE).where(facts.c.name == _NAME).scalar_subquery(), _ALWAYS)
"""Until when everything pushed has been seen; without a value, as before the first run of this version, all has."""

SEEN: Final[ColumnElement[bool]] = adapters.c.created_at <= _UNTIL
"""Whether the worker has come to the build of a row of `adapters`."""


def is_seen(connection: Connection, created_at: int) -> bool:
    """Whether the worker has come to what was pushed at a time."""
    return bool(connection.scalar(select(created_at <= _UNTIL)))


def push_again(connection: Connection, digest: str) -> None:
    """Let the worker come to a build again that has its record already."""
    known = (derived.c.digest == digest) & (derived.c.state != "waiting")
    connection.execute(update(derived).where(known).values(due_at=now_ms()))


def note(connection: Connection, until_ms: int) -> None:
    """All that was due by `until_ms` has been seen."""
    insert_new(connection, facts, [{"name": _NAME, "value": "0"}])
    connection.execute(update(facts).where(facts.c.name == _NAME, until_ms > _VALUE).values(value=str(until_ms)))


def is_behind(connection: Connection) -> bool:
    """Whether a build that has its record was pushed again since."""
    again = derived.c.state.in_(("made", "none")) & (derived.c.due_at > _UNTIL)
    return bool(connection.scalar(select(exists().where(again))))
