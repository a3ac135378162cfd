"""Copies the rows of a registry from one database to another, and checks whether two databases hold the same rows.

The tables are those that the program knows and the database has. Their digests do not depend on the kind of database,
nor on the order of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, MetaData, func, insert, inspect, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from adapterhub.core.errors import Conflict, Malformed, UsageProblem, shown
from adapterhub_registry.database.prepared import insert_many
from adapterhub_registry.database.schema import HEAD, metadata, revision_of
from adapterhub_registry.database.steps import Progress

ROWS: Final = 1000
_DIGEST_BYTES: Final = 32


class TableRows(NamedTuple):
    """How many rows a table has, and the digest of all."""

    number: int
    digest: str


@dataclass
class _Digest:
    """Adds up the digests of rows, so that their order does not matter."""

    columns: Sequence[str]
    count: int = 0
    sum: int = 0
    _order: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._order = sorted(range(len(self.columns)), key=self.columns.__getitem__)

    def over(self, rows: Iterable[Sequence[Any]]) -> None:
        for row in rows:
            hasher = hashlib.sha256()
            for at in self._order:
                for part in _parts(row[at]):
                    hasher.update(b"%d:" % len(part) + part)
            self.sum += int.from_bytes(hasher.digest(), "big")
            self.count += 1

    @property
    def found(self) -> TableRows:
        total = self.sum % (1 << 8 * _DIGEST_BYTES)
        names = hashlib.sha256(" ".join(sorted(self.columns)).encode()).digest()
        digest = hashlib.sha256(names + total.to_bytes(_DIGEST_BYTES, "big")).hexdigest()
        return TableRows(self.count, digest)


def _parts(value: Any) -> tuple[bytes, bytes]:
    if isinstance(value, bool):
        value = int(value)  # SQLite has 0 and 1
    kind = type(value).__name__.encode()
    return kind, value if isinstance(value, bytes) else str(value).encode()


def rows_of(connection: Connection) -> dict[str, TableRows]:
    """Return the rows of each table of the program that the database has, whatever its schema."""
    found = {}
    known = set(inspect(connection).get_table_names()) & set(metadata.tables)
    reflected = MetaData()
    reflected.reflect(connection, only=sorted(known))
    for name in sorted(known):
        columns = [column for column in reflected.tables[name].columns if column.name in metadata.tables[name].columns]
        digest = _Digest([column.name for column in columns])  # PostgreSQL has computed ones of its own
        for rows in _stream(connection, columns):
            digest.over(rows)
        found[name] = digest.found
    return found


def _stream(connection: Connection, columns: Sequence[Column[Any]]) -> Iterator[Sequence[Sequence[Any]]]:
    result = connection.execute(select(*columns), execution_options={"yield_per": ROWS})
    for rows in result.partitions(ROWS):
        yield [tuple(row) for row in rows]


def copy_rows(old: Connection, new: Connection, progress: Progress) -> dict[str, TableRows]:
    """Copy the rows of all tables, and let the numbers of new ones go on; the rows of each.

    Raises:
        Malformed: the new database refuses a row.
        UsageProblem: the schema of the old one is that of another version.
    """
    if (schema := revision_of(old)) != HEAD:  # a later one has tables and columns that this program does not know
        raise UsageProblem(
            f"the database has schema `{shown(str(schema))}`, this version copies {HEAD}; no row was written",
            hint="use the version of the program that has this schema",
        )
    found = {}
    for at, table in enumerate(metadata.sorted_tables):
        progress("tables", at, len(metadata.sorted_tables))
        names = [column.name for column in table.columns]
        digest = _Digest(names)
        for rows in _stream(old, list(table.columns)):
            digest.over(rows)
            try:
                insert_many(new, insert(table), names, [dict(zip(names, row, strict=True)) for row in rows])
            except SQLAlchemyError as error:
                why = str(getattr(error, "orig", error)).partition("\n")[0]
                raise Malformed(
                    f"table {table.name}: {shown(why, 200)}; no row was written",
                    hint="`adapt registry check` finds rows that the old database should not have",
                ) from error
        found[table.name] = digest.found
    progress("tables", len(metadata.sorted_tables), len(metadata.sorted_tables))
    _go_on_counting(old, new)
    return found


def _go_on_counting(old: Connection, new: Connection) -> None:
    """Continue the numbers of the source: the next ones exceed those of all rows, removed ones included."""
    given = _given_numbers(old)
    for table in metadata.sorted_tables:
        number: Any = table.autoincrement_column
        if number is None:
            continue
        last = max(given.get(table.name, 0), new.scalar(select(func.max(number))) or 0)
        if not last:
            continue
        if new.dialect.name == "postgresql":
            new.execute(select(func.setval(func.pg_get_serial_sequence(table.name, number.name), last)))
        elif table.dialect_options["sqlite"]["autoincrement"]:
            row = {"name": table.name, "last": last}
            new.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), row)
            new.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)"), row)


def _given_numbers(connection: Connection) -> Mapping[str, int]:
    """Return the last number that each table gave, as far as the database knows."""
    if connection.dialect.name == "sqlite":
        return {row.name: row.seq for row in connection.execute(text("SELECT name, seq FROM sqlite_sequence"))}
    found = {}
    for table in metadata.sorted_tables:
        number: Any = table.autoincrement_column
        if number is not None:
            named = select(func.pg_get_serial_sequence(table.name, number.name)).scalar_subquery()
            found[table.name] = connection.scalar(select(func.pg_sequence_last_value(named))) or 0
    return found


def check_empty(connection: Connection) -> None:
    """Raise unless every table that is there is empty."""
    known = set(inspect(connection).get_table_names())
    filled = [
        table.name
        for table in metadata.sorted_tables
        if table.name in known and connection.execute(text(f'SELECT 1 FROM "{table.name}" LIMIT 1')).first()  # noqa: S608 - a table of ours
    ]
    if filled:
        names = ", ".join(filled)
        raise Conflict(
            f"the target database has rows ({names}); expected an empty one, no row was written",
            hint="create a new one with `createdb`, and start servers on it only after its rows are copied",
        )
