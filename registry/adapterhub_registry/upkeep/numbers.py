"""Compares the numbers that the database keeps with its rows, and puts them right.

Each comparison is of one moment, and holds up no writer. A difference stays the same while others write, as triggers
add to a number what changes; so what was found is added later, in a transaction of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from adapterhub_registry.database import counting
from adapterhub_registry.database.counting import WrongNumber
from adapterhub_registry.database.db import Database
from adapterhub_registry.database.steps import CHANGED, Progress, batches, silent

AT_ONCE: Final = 2000
"""The numbers of so many namespaces are compared together."""


def wrong_numbers(database: Database, *, mends: bool = False, progress: Progress = silent) -> Iterator[WrongNumber]:
    """Yield the kept numbers that are not those of the rows.

    `mends` puts each right before the next ones are compared.
    """
    for some in _compared(database, progress):
        for few in batches(some, CHANGED) if mends else ():
            with database.begin() as connection:
                counting.put_right(connection, few)
        yield from some


def _compared(database: Database, progress: Progress) -> Iterator[Sequence[WrongNumber]]:
    tables = list(counting.COUNTED)
    for at, table in enumerate(tables):
        progress("numbers", at, len(tables) + 1)
        with database.read() as connection:
            yield counting.wrong_counts(connection, table)
    last: str | None = ""
    while last is not None:
        progress("numbers", len(tables), len(tables) + 1)
        with database.read() as connection:
            found, last = counting.wrong_spaces(connection, after=last, most=AT_ONCE)
        yield found
