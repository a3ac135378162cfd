"""Counts, and sets of those with a tag, that SQLite keeps while it writes, by triggers: a search reads a few rows.

PostgreSQL counts when it is asked: there, every writer would wait for the row of a count. It joins the tags themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import ColumnElement, Integer, MetaData, bindparam, column, event, func, select, table
from sqlalchemy.engine import Connection

from adapterhub_registry.database.prepared import Prepared
from adapterhub_registry.database.schema import metadata

counts = table("counts", column("name"), column("value"))
"""Of SQLite alone, and no table that moves with the others: it follows from them."""

_COUNTED: Final[dict[str, tuple[str, str, str]]] = {
    # the table, and what one row adds, by the column that decides it
    "repos": ("repos", "1", ""),
    "downloads": ("repos", "{row}.downloads", "downloads"),
    "commits": ("commits", "1", ""),
    "adapters": ("adapters", "{row}.is_listed", "is_listed"),
    "releases": ("releases", "1", ""),
    "releases_yanked": ("releases", "({row}.yanked_at IS NOT NULL)", "yanked_at"),
    "blobs": ("blobs", "1", ""),
    "blob_bytes": ("blobs", "{row}.size", "size"),
}


def counted(connection: Connection) -> dict[str, int]:
    """The counts by name; none on PostgreSQL."""
    if connection.dialect.name != "sqlite":
        return {}
    return {str(name): int(value) for name, value in connection.execute(select(counts.c.name, counts.c.value)).all()}


def counted_repos(connection: Connection) -> int:
    """How many repositories SQLite holds."""
    row = _REPOS.first(connection)
    return 0 if row is None else int(row.value)


_REPOS: Final = Prepared(select(counts.c.value).where(counts.c.name == "repos"))


def start_counting(connection: Connection) -> None:
    """Count what SQLite holds, and let the counts follow the tables."""
    if connection.dialect.name == "sqlite":
        for statement in _statements():
            connection.exec_driver_sql(statement)


def _statements() -> Iterator[str]:
    yield "CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL)"
    for name, (of, amount, deciding) in _COUNTED.items():
        added, gone = amount.format(row="new"), amount.format(row="old")
        total = f"coalesce(sum({amount.format(row=of)}), 0)"
        yield f"INSERT OR REPLACE INTO counts SELECT '{name}', {total} FROM {of}"  # noqa: S608 - names of this module
        changes = {"INSERT": added, "DELETE": f"- {gone}"}
        changes |= {f"UPDATE OF {deciding}": f"{added} - {gone}"} if deciding else {}
        for change, more in changes.items():
            trigger = f"count_{name}_{change.partition(' ')[0].lower()}"
            step = f"UPDATE counts SET value = value + {more} WHERE name = '{name}';"  # noqa: S608
            yield f"CREATE TRIGGER IF NOT EXISTS {trigger} AFTER {change} ON {of} BEGIN {step} END"


# ------------------------------------------------------------ tags
BITS: Final = 63
"""A row of `tag_sets` says of so many repositories who has a tag: in all bits of an integer of SQLite but its sign."""
_sets = table("tag_sets", column("tag"), column("block"), column("bits"))


def tagged(connection: Connection, tags: Sequence[str], *, most: int) -> list[int] | None:
    """The numbers of the repositories with all of some tags, on SQLite; None for more than `most`."""
    if len(tags) == 1 and _MORE.tuples(connection, tag=tags[0], most=most):
        return None
    # SQLite looks up the rows of the others for each one of the first
    rarest_first = sorted(tags, key=lambda tag: int(_BLOCKS.tuples(connection, tag=tag)[0][0])) if tags[1:] else tags
    given = {f"tag_{at}": tag for at, tag in enumerate(rarest_first)}
    numbers: list[int] = []
    for block, bits in _together(len(tags)).tuples(connection, **given):
        if len(numbers) > most:
            return None
        first = block * BITS - 1
        left = bits
        while left:
            last = left & -left
            numbers.append(first + last.bit_length())
            left ^= last
    return numbers if len(numbers) <= most else None


_FREQUENT: Final = 1000
"""Of tags in at least so many blocks, any may be the first."""
_some = select(_sets.c.block).where(_sets.c.tag == bindparam("tag")).limit(_FREQUENT).subquery()
_BLOCKS: Final = Prepared(select(func.count(_some.c.block)))
_tags = table("repo_tags", column("repo_id"), column("tag"))
_MORE: Final = Prepared(
    select(_tags.c.repo_id).where(_tags.c.tag == bindparam("tag")).limit(1).offset(bindparam("most", type_=Integer))
)
"""Whether more repositories than `most` have a tag: a row, or none."""


@lru_cache(maxsize=64)
def _together(count: int) -> Prepared:
    """The blocks in which repositories have all of so many tags."""
    first, *others = (_sets.alias(f"set_{at}") for at in range(count))
    bits: ColumnElement[Any] = first.c.bits
    wanted = [first.c.tag == bindparam("tag_0")]
    for at, other in enumerate(others, 1):
        bits = bits.op("&")(other.c.bits)
        wanted += [other.c.tag == bindparam(f"tag_{at}"), other.c.block == first.c.block]
    return Prepared(select(first.c.block, bits.label("bits")).where(*wanted, bits != 0))


def keep_tag_sets(connection: Connection) -> None:
    """Make the sets of what SQLite holds, and let them follow the tags."""
    if connection.dialect.name == "sqlite":
        for statement in _set_statements():
            connection.exec_driver_sql(statement)


def _set_statements() -> Iterator[str]:
    keys = "tag TEXT NOT NULL, block INTEGER NOT NULL, bits INTEGER NOT NULL, PRIMARY KEY (tag, block)"
    yield f"CREATE TABLE IF NOT EXISTS tag_sets ({keys}) WITHOUT ROWID"
    yield "DELETE FROM tag_sets"
    bits = f"sum(1 << (repo_id % {BITS}))"
    yield f"INSERT INTO tag_sets SELECT tag, repo_id / {BITS}, {bits} FROM repo_tags GROUP BY 1, 2"  # noqa: S608
    mine, bit = f"tag = {{0}}.tag AND block = {{0}}.repo_id / {BITS}", f"(1 << ({{0}}.repo_id % {BITS}))"
    known = f"SELECT 1 FROM tag_sets WHERE {mine}"  # noqa: S608
    changes = {
        "insert": (
            f"INSERT INTO tag_sets SELECT {{0}}.tag, {{0}}.repo_id / {BITS}, 0 WHERE NOT EXISTS ({known})",
            f"UPDATE tag_sets SET bits = bits | {bit} WHERE {mine}",  # noqa: S608
        ),
        "delete": (
            f"UPDATE tag_sets SET bits = bits & ~{bit} WHERE {mine}",  # noqa: S608
            f"DELETE FROM tag_sets WHERE {mine} AND bits = 0",  # noqa: S608
        ),
    }
    for change, steps in changes.items():
        row = "new" if change == "insert" else "old"
        body = " ".join(f"{step.format(row)};" for step in steps)
        yield f"CREATE TRIGGER IF NOT EXISTS tag_sets_{change} AFTER {change} ON repo_tags BEGIN {body} END"


@event.listens_for(metadata, "after_create")
def _with_counts(_metadata: MetaData, connection: Connection, **_: object) -> None:
    start_counting(connection)
    keep_tag_sets(connection)
