"""Numbers that the database keeps while it writes, by triggers: what it holds, what of it is public, each namespace.

On PostgreSQL, a row of a count would let every writer wait for the one before. So each of its backends has rows of its
own, a number is their sum, and `fold` adds the rows of those that write nothing now to one row. SQLite, with one
writer, has one row for each.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeVar, cast

from sqlalchemy import Select, bindparam, column, event, func, insert, select, table, union, update
from sqlalchemy.engine import Connection
from sqlalchemy.schema import MetaData

from adapterhub_registry.database.prepared import PreparedSql

counts: Final = table("counts", column("name"), column("backend"), column("value"))
spaces: Final = table("spaces", column("namespace"), column("backend"), column("repos"), column("bytes"))
"""No tables that move with the others: they follow from them. `bytes` is the sum of `repos.most_bytes`."""


PUBLIC: Final = "public "
_Amounts = dict[str, dict[str, str]]
"""By table: what one row of it adds to numbers, by their names."""

_HELD: Final[_Amounts] = {
    "repos": {"repos": "1", "downloads": "{row}.downloads"},
    "commits": {"commits": "1"},
    "adapters": {"adapters": "CAST({row}.is_listed AS INTEGER)"},
    "releases": {"releases": "1", "releases_yanked": "CAST({row}.yanked_at IS NOT NULL AS INTEGER)"},
}
_DECIDING: Final = {
    "repos": ("downloads", "private"),
    "adapters": ("is_listed",),
    "releases": ("yanked_at",),
    "blobs": ("size",),
    "tokens": ("revoked_at",),
}
"""The columns whose changes change a number."""
_IS_PUBLIC: Final = "CAST(NOT {row}.private AS INTEGER)"
_OF_PUBLIC: Final = "coalesce((SELECT CAST(NOT r.private AS INTEGER) FROM repos r WHERE r.id = {row}.repo_id), 0)"


def _counted() -> _Amounts:
    found: _Amounts = {
        "blobs": {"blobs": "1", "blob_bytes": "{row}.size"},
        "tokens": {"tokens_active": "CAST({row}.revoked_at IS NULL AS INTEGER)"},
    }
    for of, amounts in _HELD.items():
        share = _IS_PUBLIC if of == "repos" else _OF_PUBLIC
        found[of] = amounts | {f"{PUBLIC}{name}": f"{amount} * {share}" for name, amount in amounts.items()}
    return found


COUNTED: Final = _counted()
"""By table: what one row of it adds to the numbers of `counts`, by their names."""


def counted(connection: Connection, *, public: bool = False) -> dict[str, int]:
    """Return the numbers by name: of all, or of public repositories only."""
    found = _kept(connection)
    return {name.removeprefix(PUBLIC): value for name, value in found.items() if name.startswith(PUBLIC) is public}


def _kept(connection: Connection) -> dict[str, int]:
    return {str(name): int(value) for name, value in _NUMBERS.tuples(connection)}


_NUMBERS: Final = PreparedSql(select(counts.c.name, func.sum(counts.c.value)).group_by(counts.c.name))


def numbers_now(connection: Connection) -> Hashable:
    """Return what a push, a release, a yank or a removal changes, and a download does not."""
    return frozenset((name, value) for name, value in _kept(connection).items() if not name.endswith("downloads"))


class Counted(Protocol):
    """A count; with `more`, each number in it is a least one."""

    @property
    def more(self) -> bool:
        """True if there are others."""

    @property
    def total(self) -> int:
        """The number that was counted."""


Result = TypeVar("Result", bound=Counted)
KEPT: Final = 1024
LONG: Final = 100
"""Whole counts of fewer are made again."""


class Counts:
    """The latest counts of long lists, for `COUNTED_S`: whole ones only until the registry's numbers change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[float, Hashable, Any]] = OrderedDict()

    def result(self, key: Hashable, now: Hashable, make: Callable[[], Result]) -> Result:
        """Return what is kept under the key, or a new result of `make`; `now` are the registry's numbers."""
        with self._lock:
            until, then, found = self._kept.get(key, (0.0, None, None))
        if found is not None and time.monotonic() < until and (found.more or then == now):
            return cast("Result", found)
        made = make()
        if made.more or made.total >= LONG:
            with self._lock:
                self._kept[key] = (time.monotonic() + COUNTED_S, now, made)
                self._kept.move_to_end(key)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return made


def counted_repos(connection: Connection) -> int:
    """Return how many repositories the database holds."""
    return int(_REPOS.tuples(connection, name="repos")[0][0])


COUNTED_S: Final = 60.0


def about_repos(connection: Connection) -> int:
    """As `counted_repos`, up to a minute ago."""
    known: tuple[float, int] = connection.info.get("repos", (float("-inf"), 0))
    now = time.monotonic()
    if now - known[0] > COUNTED_S:
        known = connection.info["repos"] = (now, counted_repos(connection))
    return known[1]


def recall(connection: Connection, key: Hashable) -> Any:
    """Return what `keep` kept on this connection in the last minute; None without it."""
    until, found = connection.info.get("recalled", {}).get(key, (0.0, None))
    return found if time.monotonic() < until else None


def keep(connection: Connection, key: Hashable, value: object) -> None:
    """Keep a figure that may be a minute old: it decides how to search, and not what is found."""
    kept: OrderedDict[Hashable, tuple[float, object]] = connection.info.setdefault("recalled", OrderedDict())
    kept[key] = (time.monotonic() + COUNTED_S, value)
    kept.move_to_end(key)
    while len(kept) > KEPT:
        kept.popitem(last=False)


_REPOS: Final = PreparedSql(
    select(func.coalesce(func.sum(counts.c.value), 0)).where(counts.c.name == bindparam("name"))
)


@dataclass(frozen=True, slots=True)
class SpaceUse:
    """The repositories of a namespace, and no less than the bytes that they take of its quota."""

    namespace: str
    repos: int
    bytes: int


def space_of(connection: Connection, namespace: str) -> SpaceUse:
    """Return the sums of a namespace."""
    row = connection.execute(_sums().where(spaces.c.namespace == namespace)).one_or_none()
    return SpaceUse(namespace, 0, 0) if row is None else SpaceUse(namespace, int(row.repos), int(row.bytes))


def largest_spaces(connection: Connection, most: int) -> list[SpaceUse]:
    """Return the namespaces that take most, the largest first."""
    # a namespace may have several rows; the largest of them tells where to look
    rows = select(spaces.c.namespace).order_by(spaces.c.bytes.desc()).limit(4 * most)
    names = list(dict.fromkeys(connection.scalars(rows)))
    found = connection.execute(_sums().where(spaces.c.namespace.in_(names))).all()
    uses = [SpaceUse(row.namespace, int(row.repos), int(row.bytes)) for row in found]
    return sorted((one for one in uses if one.repos), key=lambda one: (-one.bytes, one.namespace))[:most]


def _sums() -> Select[Any]:
    values = (func.sum(spaces.c.repos).label("repos"), func.sum(spaces.c.bytes).label("bytes"))
    return select(spaces.c.namespace, *values).group_by(spaces.c.namespace)


# ------------------------------------------------------------ comparing
class WrongNumber(NamedTuple):
    """A kept number that is not that of the rows: its table, its name, its columns, and what is missing in each."""

    table: str
    name: str
    columns: tuple[str, ...]
    kept: tuple[int, ...]
    lacks: tuple[int, ...]

    def __str__(self) -> str:
        """Return a sentence for people."""
        differ = [
            f"{column} {kept}, expected {kept + more}"
            for column, kept, more in zip(self.columns, self.kept, self.lacks, strict=True)
            if more
        ]
        return f"the kept number of {self.table} `{self.name}` is wrong: {', '.join(differ)}"


def wrong_counts(connection: Connection, of: str) -> list[WrongNumber]:
    """Return the numbers of a table in `COUNTED` that differ from its rows, at one moment."""
    names = list(COUNTED[of])
    sums = ", ".join(f"coalesce(sum({amount.format(row=of)}), 0)" for amount in COUNTED[of].values())
    rows = connection.exec_driver_sql(f"SELECT {sums} FROM {of}").one()
    kept, counted_now = _kept(connection), zip(names, map(int, rows), strict=True)
    return [
        WrongNumber("counts", name, ("value",), (kept.get(name, 0),), (number - kept.get(name, 0),))
        for name, number in counted_now
        if number != kept.get(name, 0)
    ]


def wrong_spaces(connection: Connection, *, after: str, most: int) -> tuple[list[WrongNumber], str | None]:
    """Return the numbers of namespaces behind one that differ from its repositories.

    And the last name, None at the end.
    """
    repos = table("repos", column("namespace"), column("most_bytes"))
    beginning = (select(of.c.namespace).where(of.c.namespace > after).distinct() for of in (repos, spaces))
    pages = [one.order_by(one.selected_columns.namespace).limit(most).subquery() for one in beginning]
    both = union(*(select(page.c.namespace) for page in pages)).subquery()
    # in the order of the database, which may differ from that of the letters' numbers
    names = list(connection.scalars(select(both.c.namespace).order_by(both.c.namespace).limit(most)))
    if not names:
        return [], None
    sizes = (func.count(), func.coalesce(func.sum(repos.c.most_bytes), 0))
    here, there = (of.c.namespace.between(names[0], names[-1]) for of in (repos, spaces))
    rows = connection.execute(select(repos.c.namespace, *sizes).where(here).group_by(repos.c.namespace))
    real = {name: (int(number), int(size)) for name, number, size in rows}
    kept = {row.namespace: (int(row.repos), int(row.bytes)) for row in connection.execute(_sums().where(there))}
    found = []
    for name in names:
        has, expected = kept.get(name, (0, 0)), real.get(name, (0, 0))
        lacks = (expected[0] - has[0], expected[1] - has[1])
        found += [WrongNumber("spaces", name, ("repos", "bytes"), has, lacks)] if any(lacks) else []
    return found, names[-1] if len(names) == most else None


def put_right(connection: Connection, wrong: Iterable[WrongNumber]) -> None:
    """Add what the numbers lack."""
    for one in wrong:
        of, key = (counts, counts.c.name) if one.table == "counts" else (spaces, spaces.c.namespace)
        first = (key == one.name) & (of.c.backend == 0)
        more = dict(zip(one.columns, one.lacks, strict=True))
        added = connection.execute(
            update(of).where(first).values({name: of.c[name] + value for name, value in more.items()})
        )
        if not added.rowcount:
            connection.execute(insert(of).values({key.name: one.name, "backend": 0, **more}))


def fold(connection: Connection) -> None:
    """Add the rows of other backends to one row each, on PostgreSQL; those that a transaction changes now stay."""
    if connection.dialect.name != "postgresql":
        return
    for name, key, values in (("counts", "name", ("value",)), ("spaces", "namespace", ("repos", "bytes"))):
        sums = ", ".join(f"sum({value})" for value in values)
        added = ", ".join(f"{value} = {name}.{value} + excluded.{value}" for value in values)
        free = f"SELECT ctid FROM {name} WHERE backend <> 0 ORDER BY {key}, backend FOR UPDATE SKIP LOCKED"
        connection.exec_driver_sql(
            f"WITH gone AS (DELETE FROM {name} WHERE ctid = ANY(ARRAY({free})) RETURNING {key}, {', '.join(values)})"
            f" INSERT INTO {name} ({key}, backend, {', '.join(values)})"
            f" SELECT {key}, 0, {sums} FROM gone GROUP BY {key} ORDER BY {key}"
            f" ON CONFLICT ({key}, backend) DO UPDATE SET {added}"
        )
    connection.exec_driver_sql("DELETE FROM spaces WHERE backend = 0 AND repos = 0 AND bytes = 0")


# ------------------------------------------------------------ triggers
def start_counting(connection: Connection) -> None:
    """Count what the database holds, and let the numbers follow the tables."""
    is_shared = connection.dialect.name == "postgresql"
    for statement in (*_tables(), *(_in_postgresql() if is_shared else _in_sqlite())):
        connection.exec_driver_sql(statement)


def follow(tables: MetaData) -> None:
    """Let the numbers begin with the tables."""
    event.listen(tables, "after_create", lambda _tables, connection, **_: start_counting(connection))


def _tables() -> Iterator[str]:
    for name in ("counts", "spaces"):
        yield f"DROP TABLE IF EXISTS {name}"
    number, backend = "BIGINT NOT NULL", "backend INTEGER NOT NULL"
    yield f"CREATE TABLE counts (name VARCHAR(64) NOT NULL, {backend}, value {number}, PRIMARY KEY (name, backend))"
    columns = f"namespace VARCHAR(96) NOT NULL, {backend}, repos {number}, bytes {number}"
    yield f"CREATE TABLE spaces ({columns}, PRIMARY KEY (namespace, backend))"
    yield "CREATE INDEX spaces_by_size ON spaces (bytes)"
    for of, amounts in COUNTED.items():
        for name, amount in amounts.items():
            yield f"INSERT INTO counts SELECT '{name}', 0, coalesce(sum({amount.format(row=of)}), 0) FROM {of}"
    bytes_of = "CAST(coalesce(sum(most_bytes), 0) AS BIGINT)"
    yield f"INSERT INTO spaces SELECT namespace, 0, count(*), {bytes_of} FROM repos GROUP BY namespace"


def _changes() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield the changes of one row that decide numbers: a table, a change, and by number what it adds."""
    for of, amounts in COUNTED.items():
        yield of, "AFTER INSERT", {name: amount.format(row="new") for name, amount in amounts.items()}
        yield of, "AFTER DELETE", {name: f"-({amount.format(row='old')})" for name, amount in amounts.items()}
        if of in _DECIDING:
            moved = {name: f"({one.format(row='new')}) - ({one.format(row='old')})" for name, one in amounts.items()}
            yield of, f"AFTER UPDATE OF {', '.join(_DECIDING[of])}", moved
    # of a repository that goes, or turns private, what it holds; rows that go after it are of no public one
    for change, times in (
        ("BEFORE DELETE", f"-{_IS_PUBLIC.format(row='old')}"),
        ("AFTER UPDATE OF private", f"({_IS_PUBLIC.format(row='new')} - {_IS_PUBLIC.format(row='old')})"),
    ):
        held = {
            f"{PUBLIC}{name}": f"{times} * (SELECT coalesce(sum({amount.format(row=of)}), 0) FROM {of}"
            f" WHERE {of}.repo_id = old.id)"
            for of, amounts in _HELD.items()
            if of != "repos"
            for name, amount in amounts.items()
        }
        yield "repos", change, held


_IN_SPACES: Final = {
    "AFTER INSERT": (("new", "+"),),
    "AFTER DELETE": (("old", "-"),),
    "AFTER UPDATE OF namespace, most_bytes": (("old", "-"), ("new", "+")),
}


def _in_sqlite() -> Iterator[str]:
    for of, change, amounts in _changes():
        steps = [f"UPDATE counts SET value = value + {more} WHERE name = '{name}';" for name, more in amounts.items()]
        yield from _trigger("counting", of, change, steps)
    for change, rows in _IN_SPACES.items():
        steps = []
        for row, sign in rows:
            known = f"SELECT 1 FROM spaces WHERE namespace = {row}.namespace"
            more = f"repos = repos {sign} 1, bytes = bytes {sign} coalesce({row}.most_bytes, 0)"
            steps.append(f"INSERT INTO spaces SELECT {row}.namespace, 0, 0, 0 WHERE NOT EXISTS ({known});")
            steps.append(f"UPDATE spaces SET {more} WHERE namespace = {row}.namespace;")
        yield from _trigger("spacing", "repos", change, steps)


def _trigger(kind: str, of: str, change: str, steps: Iterable[str]) -> Iterator[str]:
    name = _name(kind, of, change)
    yield f"DROP TRIGGER IF EXISTS {name}"
    yield f"CREATE TRIGGER {name} {change} ON {of} BEGIN {' '.join(steps)} END"


def _name(kind: str, of: str, change: str) -> str:
    return f"{kind}_{of}_{change.lower().replace(' of ', ' ').replace(', ', '_').replace(' ', '_')}"


def _in_postgresql() -> Iterator[str]:
    for of, change, amounts in _changes():
        yield from _function("counting", of, change, _added_to_counts(amounts, change), is_statement=_is_whole(change))
    for change, rows in _IN_SPACES.items():
        steps = [
            f"INSERT INTO spaces SELECT {row}.namespace, pg_backend_pid(), {sign}1, {sign}coalesce({row}.most_bytes, 0)"
            " ON CONFLICT (namespace, backend) DO UPDATE SET repos = spaces.repos + excluded.repos,"
            " bytes = spaces.bytes + excluded.bytes;"
            for row, sign in rows
        ]
        yield from _function("spacing", "repos", change, " ".join(steps), is_statement=False)


def _is_whole(change: str) -> bool:
    """Return whether a trigger runs once for a statement: a repository may go with 100,000 commits."""
    return change in {"AFTER INSERT", "AFTER DELETE"}


def _added_to_counts(amounts: Mapping[str, str], change: str) -> str:
    def value(amount: str) -> str:
        if not _is_whole(change):
            return f"({amount})"
        rows = "news" if change == "AFTER INSERT" else "olds"
        of_rows = amount.replace("new.", "news.").replace("old.", "olds.")
        return f"(SELECT coalesce(sum({of_rows}), 0) FROM {rows})"

    found = " UNION ALL ".join(f"SELECT '{name}' AS name, {value(one)} AS more" for name, one in amounts.items())
    return (
        f"INSERT INTO counts SELECT name, pg_backend_pid(), more FROM ({found}) AS found WHERE more <> 0"
        " ON CONFLICT (name, backend) DO UPDATE SET value = counts.value + excluded.value;"
    )


def _function(kind: str, of: str, change: str, body: str, *, is_statement: bool) -> Iterator[str]:
    name = _name(kind, of, change)
    result = "OLD" if change.startswith("BEFORE DELETE") else "NULL"
    made = f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql"
    yield f"{made} AS $$ BEGIN {body} RETURN {result}; END $$"
    yield f"DROP TRIGGER IF EXISTS {name} ON {of}"
    rows = "NEW TABLE AS news" if change == "AFTER INSERT" else "OLD TABLE AS olds"
    how = f"REFERENCING {rows} FOR EACH STATEMENT" if is_statement else "FOR EACH ROW"
    yield f"CREATE TRIGGER {name} {change} ON {of} {how} EXECUTE FUNCTION {name}()"
