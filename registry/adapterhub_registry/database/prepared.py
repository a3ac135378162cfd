"""Statements that the driver runs by itself, for the few that nearly every request needs."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Insert, Integer, Select, bindparam, func, literal, select, true
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from adapterhub_registry.database.postgresql import FOR_VALUES, REPEATED


class _DriverForm(NamedTuple):
    """A statement in the words of one driver, with its constants; `names` in their order where it has positions."""

    text: str
    names: tuple[str, ...] | None
    constants: dict[str, Any]
    row: Callable[[Sequence[Any]], Any]


class PreparedSql:
    """A statement with named parameters, which takes a fifth of the time of `Connection.execute`.

    The values are those of the driver: SQLite has 0 and 1 for booleans.
    """

    def __init__(self, statement: Select[Any]) -> None:
        self._statement = statement
        self._forms: dict[str, _DriverForm] = {}

    def first(self, connection: Connection, **given: object) -> Any | None:
        """Return the first row, by the names of its columns, in the transaction of `connection`; None without rows."""
        return next(iter(self.rows(connection, **given)), None)

    def rows(self, connection: Connection, **given: object) -> list[Any]:
        """Return the rows in the transaction of `connection`: a named tuple each, a tenth of the time of a `Row`."""
        found = self.tuples(connection, **given)
        row = self._forms[connection.dialect.name].row
        return [row(one) for one in found]

    def tuples(self, connection: Connection, **given: object) -> Sequence[tuple[Any, ...]]:
        """As `rows`, without names, for many rows."""
        form = self._forms.get(connection.dialect.name)
        if form is None:
            form = self._forms[connection.dialect.name] = self._form(connection.dialect, given)
        values: Any = form.constants | given
        if form.names is not None:
            values = tuple(values[name] for name in form.names)
        cursor = connection.connection.cursor()
        try:
            with _one_plan(connection) if given.keys() == _BY_NUMBERS else nullcontext():
                cursor.execute(form.text, values)
            return cursor.fetchall()
        except connection.dialect.loaded_dbapi.Error:
            # its errors are those that callers expect
            return [tuple(row) for row in connection.execute(self._statement, given)]
        finally:
            cursor.close()

    def _form(self, dialect: Dialect, given: dict[str, object]) -> _DriverForm:
        state = self._statement.compile(dialect=dialect).construct_expanded_state(given)
        names = None if state.positiontup is None else tuple(state.positiontup)
        return _DriverForm(state.statement, names, dict(state.parameters), _row_of(self._statement))


class PreparedPair:
    """Two statements as one, for one way to the database and back: each finds a row at most, whose first value is set.

    Their parameters have different names.
    """

    def __init__(self, one: Select[Any], other: Select[Any]) -> None:
        self._rows = [_row_of(statement) for statement in (one, other)]
        self._count = len(one.selected_columns)
        always = select(literal(1)).subquery()
        first, second = one.subquery(), other.subquery()
        columns = [*(column.label(None) for column in (*first.c, *second.c))]
        joined = always.outerjoin(first, true()).outerjoin(second, true())
        self._both = PreparedSql(select(*columns).select_from(joined))

    def first(self, connection: Connection, **given: object) -> tuple[Any | None, Any | None]:
        """Return the row of each, by the names of its columns; None for one without."""
        (values,) = self._both.tuples(connection, **given)
        parts = values[: self._count], values[self._count :]
        one, other = (None if part[0] is None else make(part) for make, part in zip(self._rows, parts, strict=True))
        return one, other


def insert_many(
    connection: Connection, statement: Insert, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Run an insert of these columns once for each row, in a third of the time of `Connection.execute`.

    The driver gets the values unchanged, so they are text, bytes, numbers, booleans or None.
    """
    form = statement.compile(dialect=connection.dialect, column_keys=list(columns))
    if form.positiontup is None:
        connection.exec_driver_sql(str(form), list(rows))
    else:
        values = itemgetter(*form.positiontup)
        connection.exec_driver_sql(str(form), [values(row) for row in rows])


def _row_of(statement: Select[Any]) -> Callable[[Sequence[Any]], Any]:
    row = namedtuple("Row", [str(column.key) for column in statement.selected_columns], rename=True)  # type: ignore[misc]  # noqa: PYI024 - its fields are known here
    return row._make


class Met(NamedTuple):
    """What the rows of a search meet, and the values of its parameters."""

    filters: Sequence[ColumnElement[bool]]
    given: Mapping[str, object]


class FoundNumbers(NamedTuple):
    """Numbers as one value in JSON, and how many they are."""

    many: int
    numbers: str


GLANCED: Final = 64
"""So many numbers that a glance finds are few enough to look at each."""


class Numbers(NamedTuple):
    """A statement that reads numbers, at most as many as its parameter `rows`, with the values of its others.

    With the values `glance`, it finds these numbers and others in less time.
    """

    statement: PreparedSql
    given: Mapping[str, object]
    glance: Mapping[str, object] | None = None

    def first(self, connection: Connection, most: int) -> str:
        """Return at most so many of the numbers, as JSON."""
        ((_, numbers),) = self.statement.tuples(connection, **self.given, rows=most)
        return str(numbers)

    def read(self, connection: Connection, most: int) -> FoundNumbers | None:
        """Return the numbers, with others where a glance finds at most `GLANCED`; None for more than `most`."""
        glances = [] if self.glance is None else [(self.glance, min(most, GLANCED))]
        for given, enough in (*glances, (self.given, most)):
            ((count, numbers),) = self.statement.tuples(connection, **given, rows=enough + 1)
            if count <= enough:
                return FoundNumbers(count, numbers)
        return None


def numbers_of(statement: Select[Any]) -> PreparedSql:
    """Return the statement of `Numbers`, for one that selects them."""
    some = statement.limit(bindparam("rows", type_=Integer)).subquery()
    found: Any = select(func.count(), JsonList(next(iter(some.c))))
    return PreparedSql(found)


class JsonList(FunctionElement[str]):
    """The values of a column as a list in JSON."""

    inherit_cache = True
    name = "listed"


@compiles(JsonList)
def _of_postgresql(element: JsonList, compiler: SQLCompiler, **options: object) -> str:
    return f"coalesce(CAST(json_agg({compiler.process(element.clauses, **options)}) AS TEXT), '[]')"


@compiles(JsonList, "sqlite")
def _of_sqlite(element: JsonList, compiler: SQLCompiler, **options: object) -> str:
    return f"json_group_array({compiler.process(element.clauses, **options)})"


def plan_for_values(connection: Connection) -> None:
    """Let PostgreSQL plan the rest of the transaction for its values: a plan for any word would read all words.

    Statements by numbers have one plan.
    """
    if connection.dialect.name == "postgresql":
        driver = _driver(connection)
        driver.prepare_threshold = None  # until the connection goes back
        driver.execute(FOR_VALUES)


_BY_NUMBERS: Final = {"numbers"}


@contextmanager
def _one_plan(connection: Connection) -> Iterator[None]:
    """Let the driver prepare a statement all the same."""
    if connection.dialect.name != "postgresql" or (driver := _driver(connection)).prepare_threshold is not None:
        yield
        return
    driver.prepare_threshold = REPEATED
    try:
        yield
    finally:
        driver.prepare_threshold = None


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection
