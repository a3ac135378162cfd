"""Works through a table in steps, so that servers go on: short transactions, and few rows in memory.

A step reads some rows in the order of an index, outside of any lock. The rows that it found are checked once more in
the transaction that changes them. A task notes how far it came in the table `facts`; the next one of its kind begins
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import Column, ColumnElement, Table, and_, bindparam, delete, literal, select, tuple_
from sqlalchemy.engine import Connection

from adapterhub_registry.database.db import Database, facts, insert_new, lock_space

LOOKED_AT: Final = 5000
"""How many rows one transaction reads."""
CHANGED: Final = 500
"""How many rows one transaction changes: some milliseconds, while other writers wait."""

Progress = Callable[[str, int, int], None]
"""What is done, how far it is, and of how much."""
Item = TypeVar("Item")


def silent(_what: str, _done: int, _total: int) -> None:
    """Report nothing."""


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items, at most `size` at a time."""
    left = iter(items)
    while some := list(islice(left, size)):
        yield some


def windows(
    database: Database, keys: Sequence[Column[Any]], size: int = LOOKED_AT, *, after: Sequence[Any] = ()
) -> Iterator[ColumnElement[bool]]:
    """Conditions that cover a table past the values `after`, each of at most `size` rows, in the order of `keys`.

    An index has the keys in this order.
    """
    while True:
        here = _past(keys, after)
        with database.read() as connection:
            edge = connection.execute(select(*keys).where(here).order_by(*keys).offset(size - 1).limit(1)).one_or_none()
        if edge is None:
            yield here
            return
        after = tuple(edge)
        yield and_(here, _row(keys) <= _values(keys, after))


def _past(keys: Sequence[Column[Any]], after: Sequence[Any]) -> ColumnElement[bool]:
    return _row(keys) > _values(keys, after) if after else keys[0].is_not(None)


def _row(keys: Sequence[Column[Any]]) -> ColumnElement[Any]:
    return tuple_(*keys) if len(keys) > 1 else keys[0]


def _values(keys: Sequence[Column[Any]], values: Sequence[Any]) -> ColumnElement[Any]:
    given = [literal(value, key.type) for key, value in zip(keys, values, strict=True)]
    return tuple_(*given) if len(keys) > 1 else given[0]


class Leftover(NamedTuple):
    """The rows of a table that nothing needs any more."""

    table: Table
    gone: ColumnElement[bool]


def drop(database: Database, leftover: Leftover) -> None:
    """Remove the rows of `leftover`, some at a time."""
    table = leftover.table
    keys = list(table.primary_key)
    mine = and_(*(key == bindparam(f"key_{at}") for at, key in enumerate(keys)))
    for window in windows(database, keys):
        with database.read() as connection:
            found = connection.execute(select(*keys).where(window, leftover.gone)).all()
        for some in batches(found, CHANGED):
            rows = [{f"key_{at}": value for at, value in enumerate(row)} for row in some]
            with database.begin() as connection:
                lock_space(connection, shared=False)
                connection.execute(delete(table).where(mine, leftover.gone), rows)


def noted(connection: Connection, task: str) -> str:
    """Return how far the last run of a task came; empty after one that came to its end."""
    return str(connection.scalar(select(facts.c.value).where(facts.c.name == task)) or "")


def note(connection: Connection, task: str, place: str) -> None:
    """Note how far a task came; an empty place ends it."""
    connection.execute(delete(facts).where(facts.c.name == task))
    if place:
        insert_new(connection, facts, [{"name": task, "value": place}])
