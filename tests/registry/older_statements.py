"""The statements of an older server, recorded as it made its tables, took pushes and answered every route.

    python -m tests.registry.older_statements     records those of this version, in tests/data

Record anew with each minor version, before its first migration: then `OLDEST` becomes the present schema. Statements
have their values in them. Each write until the routes are asked is there; of all else, the first one of each form.

The limits: one statement is tried at a time, so what an older server does between two of them, and whether it
understands the rows of a newer one, shows only where a test says so.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from sqlalchemy import Engine, event, inspect
from sqlalchemy.engine import Connection

ROOT: Final = Path(__file__).resolve().parent.parent.parent
BASELINE: Final = "0035"
_LITERAL = re.compile(r"[xXE]?'(?:[^']|'')*'|\b\d+(?:\.\d+)?\b|'\\x[0-9a-f]*'")
_LIST = re.compile(r"\?(?:(?:::\w+)?, \?)+")
_SKIPPED = ("BEGIN", "COMMIT", "ROLLBACK", "PRAGMA", "SET ", "SAVEPOINT", "RELEASE", "--", "DECLARE", "FETCH", "CLOSE")


def place(dialect: str) -> Path:
    """The file of the statements for a kind of database."""
    return ROOT / "tests" / "data" / f"registry-statements-{BASELINE}-{dialect}.json.gz"


def statements(dialect: str) -> list[tuple[str, str]]:
    """Each statement in order, and what it did: `ok`, or the class of its error."""
    return [(one[0], one[1]) for one in json.loads(gzip.decompress(place(dialect).read_bytes()))]


def replay(connection: Any, sql: str) -> str:
    """Run a statement by itself on a connection of the driver; `ok`, or the class of the error."""
    try:
        cursor = connection.execute(sql)
        if cursor.description is not None:
            cursor.fetchall()
    except Exception as error:  # noqa: BLE001 - its class is what is compared
        return type(error).__name__
    return "ok"


@contextlib.contextmanager
def driver(url: str) -> Iterator[Any]:
    """A connection of the driver that commits each statement."""
    if url.startswith("sqlite"):
        connection: Any = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=OFF")
    else:
        import psycopg

        connection = psycopg.connect(
            url.replace("+psycopg", ""), autocommit=True, prepare_threshold=None, cursor_factory=psycopg.ClientCursor
        )
    with contextlib.closing(connection):
        yield connection


# ------------------------------------------------------------ the shape of a schema
def shape(connection: Connection) -> dict[str, dict[str, Any]]:
    """What statements meet in each table."""
    looks = inspect(connection)
    found = {}
    for name in looks.get_table_names():
        unique = {tuple(one["column_names"]) for one in looks.get_unique_constraints(name)}
        unique |= {tuple(one["column_names"]) for one in looks.get_indexes(name) if one["unique"]}
        found[name] = {
            "columns": {one["name"]: one for one in looks.get_columns(name)},
            "key": tuple(looks.get_pk_constraint(name)["constrained_columns"]),
            "unique": unique,
            "foreign": {tuple(one["constrained_columns"]) for one in looks.get_foreign_keys(name)},
            "checks": {str(one["sqltext"]) for one in looks.get_check_constraints(name)},
        }
    return found


def contractions(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> list[str]:
    """What a later schema has otherwise than by adding what older statements do not meet."""
    found = [f"table {name} is gone" for name in before.keys() - after.keys()]
    for name in sorted(before.keys() & after.keys()):
        old, new = before[name]["columns"], after[name]["columns"]
        found += [f"{name}.{column} is gone" for column in old.keys() - new.keys()]
        for column in sorted(new):
            about = new[column]
            if column not in old:
                if not about["nullable"] and about["default"] is None and not about.get("computed"):
                    found.append(f"{name}.{column} is new, without NULL and without a default")
                continue
            if str(about["type"]) != str(old[column]["type"]):
                found.append(f"{name}.{column} was {old[column]['type']} and is {about['type']}")
            if old[column]["nullable"] and not about["nullable"]:
                found.append(f"{name}.{column} takes no NULL any more")
            if old[column]["default"] is not None and about["default"] is None and not about["nullable"]:
                found.append(f"{name}.{column} has no default any more")
        if before[name]["key"] != after[name]["key"]:
            found.append(f"{name} has another key")
        for kind in ("unique", "foreign", "checks"):
            found += [
                f"{name}: {kind} {one} is new"
                for one in sorted(after[name][kind] - before[name][kind], key=str)
                if kind == "checks" or not any(_is_null(column, old, new) for column in one)
            ]
    return found


def _is_null(column: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether rows of older servers have NULL in a column, which no unique index and no foreign key looks at."""
    return column not in old and new[column]["nullable"] and new[column]["default"] is None


# ------------------------------------------------------------ recording
@dataclass
class Recorder:
    """Keeps statements in their order."""

    keeps_writes: bool = True
    found: list[str] = field(default_factory=list)
    _forms: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, sql: str) -> None:
        sql = sql.strip()
        if sql.upper().startswith(_SKIPPED) or "advisory_xact" in sql:
            return
        form = _LIST.sub("?", _LITERAL.sub("?", sql))
        reads = sql.upper().startswith(("SELECT", "WITH"))
        with self._lock:
            if (reads or not self.keeps_writes) and form in self._forms:
                return
            self._forms.add(form)
            self.found.append(sql)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear what every connection of this process runs."""
        import psycopg

        def on_connect(connection: Any, _record: object) -> None:
            if isinstance(connection, sqlite3.Connection):
                connection.set_trace_callback(self)

        def heard(method: Callable[..., Any], *, many: bool) -> Callable[..., Any]:
            def run(cursor: Any, query: Any, given: Any = None, **named: Any) -> Any:
                result = method(cursor, query, given, **named)
                for values in given if many else [given]:
                    self(psycopg.ClientCursor(cursor.connection).mogrify(query, values))
                return result

            return run

        before = psycopg.Cursor.execute, psycopg.Cursor.executemany
        event.listen(Engine, "connect", on_connect)
        psycopg.Cursor.execute = heard(before[0], many=False)  # type: ignore[method-assign]
        psycopg.Cursor.executemany = heard(before[1], many=True)  # type: ignore[method-assign]
        try:
            yield
        finally:
            event.remove(Engine, "connect", on_connect)
            psycopg.Cursor.execute, psycopg.Cursor.executemany = before  # type: ignore[method-assign]


def record(folder: Path, new_url: Callable[[], str], **settings: Any) -> list[tuple[str, str]]:
    """Let a server make tables, take pushes and answer every route; its statements, with what each does by itself."""
    from tests.registry.matrix.comparing import answers_of, free_port
    from tests.registry.matrix.worlds import KINDS, make_builds, world

    made, recorder = make_builds(folder / "library"), Recorder()
    with recorder.listening(), world(folder / "root", free_port(), made, KINDS["private"], **settings) as there:
        recorder.keeps_writes = False
        answers_of(there, made[1], ("writer",))
    with driver(new_url()) as connection:
        found = [(sql, replay(connection, sql)) for sql in recorder.found]
    return [one for one in found if one[1] in {"ok", "IntegrityError", "UniqueViolation", "ForeignKeyViolation"}]


def main() -> None:
    """Record for both kinds of databases."""
    from tests.registry.shared_servers import postgres

    with TemporaryDirectory() as name, postgres() as pg:
        folder = Path(name)
        kept = {
            "sqlite": record(folder / "one", lambda: f"sqlite:///{folder / 'again.db'}"),
            "postgresql": record(folder / "two", pg.new_database, database_url=pg.new_database()),
        }
    for dialect, found in kept.items():
        place(dialect).write_bytes(gzip.compress(json.dumps(found, separators=(",", ":")).encode(), 9, mtime=0))
        print(dialect, len(found), sum(one[1] == "ok" for one in found), place(dialect).stat().st_size)  # noqa: T201


if __name__ == "__main__":
    main()
