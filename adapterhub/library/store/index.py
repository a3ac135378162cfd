"""The index: installed builds by base, task and rank, and by the words that describe them.

The SQLite file is only a cache: the installed folders and the base records hold everything in it. Reads and writes use
`sqlite3` (11 ms to import). Only the schema needs sqlite_utils, which costs 150 ms and numpy. Its upserts are not used:
it probes SQLite's features by making a table, and mistakes a full disk for an old SQLite, whose `INSERT OR IGNORE` then
loses the row without an error.

The file is never synced to the disk. A killed writer leaves a rollback journal or the mark `index.stale`, and the age
of the file shows whether a power cut may have torn it (`is_current`). In each case the next reader makes it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

from adapterhub.core.arguments import Sort
from adapterhub.core.disk.files import make_folder, remove_sqlite
from adapterhub.core.errors import Malformed
from adapterhub.core.specs import version_order
from adapterhub.library.store import counts, named, vectors
from adapterhub.library.store.rows import (
    ORDER,
    BaseCount,
    BaseRow,
    BuildFacts,
    BuildRow,
    Filters,
    Hit,
    PlaceChange,
    PlaceRow,
    SketchRow,
    conditions_of,
    has_name,
    order_of,
)

if TYPE_CHECKING:
    from adapterhub.library.store.words import WhereClause

SCHEMA_VERSION = 10
_BUSY_MS = 30_000
_COUNTER_END = 28  # of the "file change counter" in the header of the file
_UNSURE_S = 120.0


class IndexUnusable(Malformed):
    """The index is missing, damaged, or of another schema; rebuild it."""


class IndexNewer(IndexUnusable):
    """A newer adapterhub wrote the index: it stays unchanged, and the folders are read instead."""


_COLUMNS = BuildRow._fields
_ORDERED = tuple(
    f"CREATE INDEX by_{what} ON builds ({order.replace('builds.', '')})"
    for what, order in (
        *((sort, order_of(Filters(sort=sort))) for sort in get_args(Sort)),
        ("base", f"base_weights, {ORDER}"),
    )
)
_FACETS = (
    "CREATE INDEX by_base_and_task ON builds (base_weights, task, rank)",
    "CREATE INDEX by_base_and_rank ON builds (base_weights, rank)",
    *(f"CREATE INDEX by_{column} ON builds ({column})" for column in ("method", "license", "base_hub_id")),
)
_UPGRADES: Final[Mapping[int, Sequence[str]]] = {
    9: (
        *counts.SCHEMA,
        counts.FILL,
        "DROP INDEX IF EXISTS idx_builds_base_weights_task_rank_size_bytes_base_tensors",
        *_FACETS,
    )
}
"""What makes the next schema of an older one in place; from a schema without such steps the index is made again."""
_SKETCHES_SINCE = 4
_AT_ONCE = 500  # numbers in one statement, which SQLite bounds
_FEW = 2000
"""Builds that are sorted for a page; where more match, the index of the order is followed until the page is full."""
_LINEAGE = (
    "CREATE TABLE made_from (parent TEXT NOT NULL, child INTEGER NOT NULL, PRIMARY KEY (parent, child)) WITHOUT ROWID",
    "CREATE INDEX by_child ON made_from (child)",
    "CREATE TRIGGER child_gone AFTER DELETE ON builds BEGIN DELETE FROM made_from WHERE child = old.rowid; END",
    "CREATE INDEX by_family ON builds (family) WHERE family > ''",
    "CREATE INDEX by_triggers ON builds (triggers) WHERE triggers > ''",
)
_LASTING = tuple(name for name in _COLUMNS if name != "added_at")
_MATCH = ("registered", "declared")
_FORGET_SKETCH = "DELETE FROM sketches WHERE digest = ? AND NOT EXISTS (SELECT 1 FROM builds WHERE digest = ?)"


class Index:
    """The SQLite file at `path` about the library under `root`, by default the folder that it lies in."""

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path = path
        self._root = root or path.parent
        self.stale_mark = path.with_suffix(".stale")

    @property
    def is_current(self) -> bool:
        """Whether the file exists, no change to the folders is left half-indexed, and no power cut tore it."""
        return self.path.exists() and not self.stale_mark.exists() and not self.may_be_torn

    @property
    def may_be_torn(self) -> bool:
        """Whether a power cut may have lost a part of the file."""
        try:
            written_at = self.path.stat().st_mtime
        except OSError:
            return False
        # The kernel writes its buffers within half a minute; what was written just before a restart of the machine may
        # have been lost in part.
        age_at_boot_s = _started_at() - written_at
        return 0 <= age_at_boot_s < _UNSURE_S

    def stamp(self) -> object:
        """Return a stamp that differs after each write, by SQLite's own counter; None if there is no file."""
        try:
            with self.path.open("rb") as file:
                facts = os.fstat(file.fileno())
                return facts.st_ino, facts.st_mtime_ns, file.read(_COUNTER_END)[-4:]
        except OSError:
            return None

    # ------------------------------------------------------------ read
    @contextlib.contextmanager
    def _reading(self, oldest: int = SCHEMA_VERSION) -> Iterator[sqlite3.Connection]:
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_MS / 1000)
            _check_schema(connection.execute("PRAGMA user_version").fetchone()[0], self.path, oldest)
            connection.create_function("is_signed", 1, self._is_signed)
            yield connection
        except sqlite3.Error as error:
            raise IndexUnusable(
                f"`{self.path}`: {error}", hint="`adapt doctor --rebuild-index` makes it again"
            ) from None
        finally:
            if connection is not None:
                connection.close()

    def _is_signed(self, folder: str) -> bool:
        """Return whether a build has a signature now: it may get one at any time."""
        from adapterhub.formats.manifest import SIGNATURE_FILE

        return os.path.lexists(os.path.join(self._root, folder, SIGNATURE_FILE))  # noqa: PTH118 - for each row

    def search(self, filters: Filters) -> list[BuildRow]:
        """Return builds that match every filter: by relevance for a text, otherwise by name, then newest first."""
        return [hit.row for hit in self.find(filters)]

    def find(self, filters: Filters) -> list[Hit]:
        """Return the builds of `search`, and why each matches the text."""
        sql = f"SELECT {', '.join('builds.' + c for c in _COLUMNS)} FROM builds"
        with self._finding(filters) as connection:
            connection.execute("BEGIN")  # a row that was found is there to be read
            if filters.text:
                from adapterhub.library.store.words import find_words

                last = None if filters.limit is None else filters.skip + filters.limit
                among = _among(filters)
                hits = find_words(connection, filters.text, among, last, all_words=filters.all_words)[filters.skip :]
            else:
                names = f"SELECT rowid, {', '.join(_COLUMNS)} FROM builds"
                every = _selected(connection, names, filters)
                return [Hit(BuildRow._make(row[1:]), None, None, row[0]) for row in every]
            one = f"{sql} WHERE rowid = ?"
            rows = (connection.execute(one, (found.number,)).fetchone() for found in hits)
            return [Hit(BuildRow._make(row), *found[1:], found.number) for row, found in zip(rows, hits, strict=True)]

    def numbers(self, filters: Filters) -> list[int]:
        """Return the numbers of the builds that match all but the text, in the order of the filters.

        `numbered` reads them.
        """
        with self._finding(filters) as connection:
            return [row[0] for row in _selected(connection, "SELECT rowid FROM builds", filters)]

    def some(self, filters: Filters) -> list[int]:
        """Return the numbers of the builds that match, in their order; if more than the limit do, any so many of them.

        Without a text, they are the first.
        """
        if not filters.text:
            return self.numbers(filters)
        from adapterhub.library.store.words import find_words

        with self._finding(filters) as connection:
            all_words = filters.all_words
            found = find_words(
                connection, filters.text, _among(filters), filters.limit, all_words=all_words, any_of=True
            )
            return [one.number for one in found]

    def facts_of(self, numbers: Sequence[int]) -> list[BuildFacts]:
        """Return what the builds with these numbers have in common, and how many of them do."""
        columns = ", ".join(BuildFacts._fields[:-1])
        sql = (
            f"SELECT {columns}, count(*) FROM builds WHERE rowid IN (SELECT value FROM json_each(?)) GROUP BY {columns}"
        )
        with self._reading() as connection:
            return [BuildFacts._make(row) for row in connection.execute(sql, (json.dumps([*numbers]),))]

    @contextlib.contextmanager
    def _finding(self, filters: Filters) -> Iterator[sqlite3.Connection]:
        """As `_reading`, with the names that `filters` asks for."""

        def is_named(namespace: str, name: str) -> bool:
            return any(has_name(f"{namespace}/{name}" if namespace else name, name, one) for one in filters.names)

        with self._reading() as connection:
            connection.create_function("is_named", 2, is_named)
            yield connection

    def vectors_of(self, filters: Filters, model: str) -> list[tuple[int, bytes | None]]:
        """Return the numbers of the builds that match all but the text, each with its vectors of `model`, or None."""
        with self._reading() as connection:
            return vectors.vectors_of(connection, model, *conditions_of(filters))

    def without_vectors(self, model: str) -> list[int]:
        """Return the numbers of the builds that have no vectors of `model`."""
        with self._reading() as connection:
            return vectors.without_vectors(connection, model)

    def numbered(self, numbers: Iterable[int]) -> dict[int, BuildRow]:
        """Return the builds with these numbers that are still there, in this order."""
        wanted, found = list(numbers), dict[int, BuildRow]()
        with self._reading() as connection:
            for at in range(0, len(wanted), _AT_ONCE):  # one statement for each row takes four times as long
                some = wanted[at : at + _AT_ONCE]
                marks = ", ".join("?" * len(some))
                sql = f"SELECT rowid, {', '.join(_COLUMNS)} FROM builds WHERE rowid IN ({marks})"
                found |= {row[0]: BuildRow._make(row[1:]) for row in connection.execute(sql, some)}
        return {number: found[number] for number in wanted if number in found}

    @contextlib.contextmanager
    def looking(self) -> Iterator[named.NamedBuilds]:
        """Look builds up by their names, at a cost that does not grow with their number."""
        with self._reading() as connection:
            yield named.NamedBuilds(connection)

    def names(self) -> list[str]:
        """Every full name, once."""
        with self._reading() as connection:
            rows = connection.execute("SELECT DISTINCT namespace, name FROM builds ORDER BY name")
            return [f"{ns}/{name}" if ns else name for ns, name in rows]

    def names_from(self, beginning: str, most: int) -> list[str]:
        """At most `most` full names that begin like this, sorted; the others are not read."""
        namespace, slash, name = beginning.rpartition("/")
        last = "\U0010ffff"
        with self._reading() as connection:
            sql = (
                "SELECT DISTINCT name FROM builds WHERE namespace = ? AND name >= ? AND name < ? ORDER BY name LIMIT ?"
            )
            rows = connection.execute(sql, (namespace, name, name + last, most))
            found = [f"{namespace}/{row[0]}" if namespace else row[0] for row in rows]
            if not slash:
                sql = (
                    "SELECT DISTINCT namespace, name FROM builds WHERE namespace != '' AND namespace >= ?"
                    " AND namespace < ? ORDER BY namespace, name LIMIT ?"
                )
                rows = connection.execute(sql, (beginning, beginning + last, most))
                found += [f"{ns}/{name}" for ns, name in rows]
        return sorted(found)[:most]

    def of_digest(self, digest: str) -> BuildRow | None:
        """Return the first row by name of the builds with that digest."""
        sql = f"SELECT {', '.join(_COLUMNS)} FROM builds WHERE digest = ? ORDER BY {ORDER} LIMIT 1"
        with self._reading() as connection:
            row = connection.execute(sql, (digest,)).fetchone()
            return BuildRow._make(row) if row else None

    def children(self, digest: str) -> list[BuildRow]:
        """Return the builds whose manifests name that build as a parent, in the order of their names."""
        columns = ", ".join(f"builds.{name}" for name in _COLUMNS)
        sql = f"SELECT {columns} FROM made_from JOIN builds ON builds.rowid = child WHERE parent = ? ORDER BY {ORDER}"
        with self._reading() as connection:
            return [BuildRow._make(row) for row in connection.execute(sql, (digest,))]

    def newest_children(self, digest: str, of_name: int, most: int) -> tuple[list[BuildRow], int]:
        """Return the newest children of a build, at most so many of each name and in all, and how many there are."""
        columns = ", ".join(_COLUMNS)
        of_each = "row_number() OVER (PARTITION BY namespace, name ORDER BY added_at DESC, digest) AS place"
        made = "FROM made_from JOIN builds ON builds.rowid = child WHERE parent = ?"
        chosen = f"SELECT number FROM (SELECT child AS number, {of_each} {made}) WHERE place <= ?"
        sql = f"SELECT {columns} FROM builds WHERE rowid IN ({chosen}) ORDER BY {ORDER} LIMIT ?"
        with self._reading() as connection:
            rows = [BuildRow._make(row) for row in connection.execute(sql, (digest, of_name, most))]
            count = connection.execute("SELECT count(*) FROM made_from WHERE parent = ?", (digest,)).fetchone()[0]
            return rows, int(count)

    def parents(self) -> set[str]:
        """Return the digests of all that an installed build was made from."""
        with self._reading() as connection:
            return {row[0] for row in connection.execute("SELECT DISTINCT parent FROM made_from")}

    def parents_among(self, digests: Sequence[str]) -> set[str]:
        """Return those of some digests that an installed build was made from."""
        sql = "SELECT DISTINCT parent FROM made_from WHERE parent IN (SELECT value FROM json_each(?))"
        with self._reading() as connection:
            return {row[0] for row in connection.execute(sql, (json.dumps([*digests]),))}

    def per_base(self) -> list[BaseCount]:
        """Return how many builds declare each base, with the sum of their sizes."""
        with self._reading() as connection:
            return counts.per_base(connection)

    def of_images(self, numbers: Sequence[int]) -> tuple[bool, bool]:
        """Whether any of these builds has a family of image models, and whether any has words that trigger it."""
        with self._reading() as connection:
            family, triggers = (
                _any_in(connection, f"SELECT rowid FROM builds WHERE {one} > ''", (), numbers)
                for one in ("family", "triggers")
            )
            return family, triggers

    def has_any(self, numbers: Sequence[int], named: Iterable[tuple[str, str]]) -> bool:
        """Return whether any of these builds has one of the full names with the digest beside it."""
        sql = "SELECT rowid FROM builds WHERE digest = ? AND name = ? AND namespace = ?"
        keys = ((digest, *reversed(name.rpartition("/")[::2])) for name, digest in named)
        with self._reading() as connection:
            return any(_any_in(connection, sql, key, numbers) for key in keys)

    def licenses(self) -> list[str]:
        """Every licence of a build, once."""
        with self._reading() as connection:
            return [row[0] for row in connection.execute("SELECT DISTINCT license FROM builds WHERE license != ''")]

    def bases(self) -> list[BaseRow]:
        """Return the registered bases by alias."""
        columns = ", ".join(BaseRow._fields)
        with self._reading() as connection:
            return [BaseRow._make(row) for row in connection.execute(f"SELECT {columns} FROM bases ORDER BY alias")]

    def equivalents(self, weights: str) -> tuple[str, ...]:
        """Fingerprints declared by builds that are the registered base `weights`, in any precision or file layout."""
        with self._reading() as connection:
            rows = connection.execute("SELECT declared FROM matches WHERE registered = ? ORDER BY declared", (weights,))
            return (weights, *(row[0] for row in rows if row[0] != weights))

    def aliases(self) -> dict[str, str]:
        """Alias for every base fingerprint that is a registered base, in any precision or file layout."""
        # the base's own weights last, so that they win over a match with another registered base
        sql = (
            "SELECT declared, alias FROM matches JOIN bases ON registered = weights "
            "UNION ALL SELECT weights, alias FROM (SELECT * FROM bases ORDER BY alias DESC)"
        )
        with self._reading() as connection:
            return dict(connection.execute(sql).fetchall())

    def declared_bases(self) -> dict[str, str]:
        """Every base fingerprint that some build declares, with the digest of one such build."""
        with self._reading() as connection:
            one = f"SELECT digest FROM builds WHERE base_weights = weights ORDER BY {ORDER} LIMIT 1"
            sql = f"SELECT weights, ({one}) FROM per_base WHERE weights != ''"
            return dict(connection.execute(sql).fetchall())

    def declares(self, weights: str) -> bool:
        """Return whether a build declares the base `weights`; the bases that match it are then indexed."""
        if not self.path.exists():
            return False
        with self._reading(min(_UPGRADES)) as connection:  # a write, which follows, changes an older schema in place
            sql = "SELECT 1 FROM builds WHERE base_weights = ? LIMIT 1"
            return connection.execute(sql, (weights,)).fetchone() is not None

    def sketches(self, digests: Sequence[str] | None = None, *, of_older: bool = False) -> list[SketchRow]:
        """Every sketch that was made, and the builds that have none; with `digests` those of some builds.

        With `of_older` also those in a file of an older schema, which is about to be made again.
        """
        sql = f"SELECT {', '.join(SketchRow._fields)} FROM sketches"
        with self._reading(_SKETCHES_SINCE if of_older else SCHEMA_VERSION) as connection:
            if digests is not None:
                found = (connection.execute(f"{sql} WHERE digest = ?", (one,)).fetchone() for one in sorted(digests))
                return [SketchRow._make(row) for row in found if row is not None]
            rows = connection.execute(sql).fetchall()
        rows.sort()  # in a third of the time in which SQLite reads them by digest
        return [SketchRow._make(row) for row in rows]

    def count(self) -> int:
        """Return how many builds are indexed."""
        with self._reading() as connection:
            return counts.count(connection)

    # ------------------------------------------------------------ write
    @contextlib.contextmanager
    def _writing(self, path: Path | None = None) -> Iterator[sqlite3.Connection]:
        path = path or self.path
        connection: sqlite3.Connection | None = None
        try:
            make_folder(path.parent)
            connection = sqlite3.connect(path, timeout=_BUSY_MS / 1000)
            connection.execute("PRAGMA synchronous=OFF")  # a cache: the folders are the truth after a power cut
            connection.execute("PRAGMA recursive_triggers=ON")  # so that a replaced row leaves the full-text index, too
            with connection:
                _migrate(connection, path)
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise IndexUnusable(f"`{path}`: {error}", hint="`adapt doctor --rebuild-index` makes it again") from None
        finally:
            if connection is not None:
                connection.close()

    def upsert_builds(
        self,
        rows: Iterable[BuildRow],
        matches: Iterable[tuple[str, str]] = (),
        sketches: Iterable[SketchRow] = (),
        places: Iterable[PlaceChange] = (),
    ) -> None:
        """Add or replace builds, `(registered, declared)` pairs of fingerprints of one base, and sketches."""
        with self._writing() as connection:
            _put_builds(connection, rows)
            named.move_places(connection, places)
            _put(connection, "matches", _MATCH, matches)
            _put(connection, "sketches", SketchRow._fields, sketches)

    def upgrade(self) -> bool:
        """Give the file the current schema in place; False if it has one that only a rebuild replaces.

        The caller holds the lock `publish`.
        """
        with contextlib.suppress(IndexUnusable):
            with self._reading(min(_UPGRADES)):
                pass
            with self._writing():
                return True
        return False

    def upsert_base(self, row: BaseRow, matches: Iterable[tuple[str, str]] = ()) -> None:
        """Add or replace a registered base."""
        with self._writing() as connection:
            _put(connection, "bases", BaseRow._fields, [row])
            _put(connection, "matches", _MATCH, matches)

    def put_vectors(self, model: str, rows: Iterable[tuple[str, str, bytes]]) -> None:
        """Keep `(folder, digest, vectors)` of the builds that are still there."""
        with self._writing() as connection:
            vectors.put_vectors(connection, model, rows)

    def remove_builds(self, folders: Iterable[str], places: Iterable[PlaceChange] = ()) -> None:
        """Forget the builds in these folders, which are paths below the library's root."""
        with self._writing() as connection:
            for folder in folders:
                gone = connection.execute("SELECT digest FROM builds WHERE folder = ?", (folder,)).fetchall()
                connection.execute("DELETE FROM builds WHERE folder = ?", (folder,))
                connection.executemany(_FORGET_SKETCH, [(digest, digest) for (digest,) in gone])
            named.move_places(connection, places)

    def remove_base(self, alias: str) -> None:
        """Forget a registered base."""
        with self._writing() as connection:
            connection.execute("DELETE FROM bases WHERE alias = ?", (alias,))

    def rebuild(
        self,
        builds: Iterable[BuildRow],
        bases: Iterable[BaseRow],
        matches: Iterable[tuple[str, str]],
        sketches: Iterable[SketchRow] = (),
        places: Iterable[PlaceRow] = (),
    ) -> int:
        """Make the file from nothing and return how many builds it holds. The caller holds the lock `publish`.

        The new file takes the name of the old one when it is complete, so a reader gets one or the other. The vectors
        of builds that are still there go over, since each takes 20 ms to make.
        """
        fresh = self.path.with_suffix(".new")
        remove_sqlite(fresh)
        try:
            with self._writing(fresh) as connection:
                _put_builds(connection, builds)
                _put(connection, "bases", BaseRow._fields, bases)
                _put(connection, "matches", _MATCH, matches)
                connection.execute("INSERT INTO builds_fts (builds_fts) VALUES ('optimize')")
                _put(connection, "sketches", SketchRow._fields, sketches)
                _put(connection, "places", PlaceRow._fields, places)
                connection.execute("DELETE FROM sketches WHERE digest NOT IN (SELECT digest FROM builds)")
                for model, kept in groupby(self._kept_vectors(), itemgetter(0)):
                    vectors.put_vectors(connection, model, (row[1:] for row in kept))
                count = counts.count(connection)
        except IndexUnusable:
            remove_sqlite(fresh)  # the disk may be full
            raise
        remove_sqlite(self.path, only_beside=True)
        fresh.replace(self.path)
        return count

    def _kept_vectors(self) -> Iterator[tuple[str, str, str, bytes]]:
        """Model, folder, digest and vectors of each build in the present file, as far as it can be read."""
        sql = "SELECT model, folder, digest, vectors FROM meaning JOIN builds ON build = builds.rowid ORDER BY model"
        with contextlib.suppress(IndexUnusable), self._reading(min(_UPGRADES)) as connection:
            yield from connection.execute(sql)

    def set_aside(self) -> Path:
        """Move a newer index out of the way without changing it, and return its new path."""
        with contextlib.closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            schema = connection.execute("PRAGMA user_version").fetchone()[0]
        aside = self.path.with_name(f"{self.path.stem}.schema-{schema}.db")
        self.path.replace(aside)
        return aside

    def differences(
        self, builds: Iterable[BuildRow], others: Callable[[], tuple[list[BaseRow], list[tuple[str, str]]]]
    ) -> Differences:
        """Return the faults of the file beside the rows that it should hold; checks every page and the full-text index.

        `others` are the bases and the pairs that match, which it takes after the builds.

        Raises:
            IndexUnusable: it cannot be read at all.
        """
        problems: list[str] = []
        with self._reading() as connection, contextlib.closing(sqlite3.connect(":memory:")) as copy:
            connection.backup(copy)
            problems += [row[0] for row in copy.execute("PRAGMA integrity_check(5)") if row[0] != "ok"]
            if not problems:
                copy.execute("INSERT INTO builds_fts (builds_fts) VALUES ('integrity-check')")
                if wrong := counts.miscounted(copy):
                    problems.append(f"`per_base`: {wrong} counts wrong")
            sql = f"SELECT {', '.join(_LASTING)} FROM builds WHERE folder = ?"
            left = {row[0] for row in copy.execute("SELECT folder FROM builds")}
            differing = set()
            for row in builds:
                if copy.execute(sql, (row.folder,)).fetchone() != lasting_of(row):
                    differing.add(row.folder)
                left.discard(row.folder)
            bases, matches = others()
            wanted: set[Any]
            for table, names, wanted in (("bases", BaseRow._fields, {*bases}), ("matches", _MATCH, {*matches})):
                found = set(copy.execute(f"SELECT {', '.join(names)} FROM {table}"))
                if table == "matches":  # pairs of removed bases do no harm
                    found &= wanted
                if found != wanted:
                    problems.append(f"`{table}`: {len(wanted - found)} rows missing, {len(found - wanted)} wrong")
        return Differences(problems, differing, left)

    def lasting(self, folders: Iterable[str]) -> dict[str, tuple[Any, ...]]:
        """Return the rows of the builds in these folders, without the time of the folder."""
        sql = f"SELECT {', '.join(_LASTING)} FROM builds WHERE folder = ?"
        with self._reading() as connection:
            found = {folder: connection.execute(sql, (folder,)).fetchone() for folder in folders}
        return {folder: row for folder, row in found.items() if row is not None}


class Differences(NamedTuple):
    """What differs between the index and the folders: problems in words, and folders of builds.

    The rows of `differing` builds are missing or wrong; the folders of `left` rows hold no build.
    """

    problems: list[str]
    differing: set[str]
    left: set[str]


def lasting_of(row: BuildRow) -> tuple[Any, ...]:
    """Return a row without the time of the folder, which any program may change."""
    return tuple(getattr(row, name) for name in _LASTING)


def _started_at() -> float:
    """Return the time stamp of this machine's start; infinity where the system does not give it."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time() - time.clock_gettime(clock) if clock is not None else float("inf")


def _check_schema(version: int, path: Path, oldest: int = SCHEMA_VERSION) -> None:
    if version > SCHEMA_VERSION:
        raise IndexNewer(
            f"`{path}` has schema {version}, written by a newer adapterhub; this one knows {SCHEMA_VERSION}",
            hint="update adapterhub; until then commands read the folders, which is slower",
        )
    if version < oldest:
        raise IndexUnusable(
            f"`{path}` has schema {version}, this version reads {SCHEMA_VERSION}",
            hint="`adapt doctor --rebuild-index` makes a new one",
        )


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Give an empty file the current schema, and one of an older schema that too, where there are steps for it.

    The steps are a part of the caller's transaction: a kill leaves the file unchanged.

    Raises:
        IndexUnusable: the file has an older schema without steps; a rebuild replaces it.
        IndexNewer: it has a newer one.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION:
        return
    if version in _UPGRADES:
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]  # another process may have been first
        while version in _UPGRADES:
            for statement in _UPGRADES[version]:
                connection.execute(statement)
            version += 1
            connection.execute(f"PRAGMA user_version = {version}")
        return
    if version or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        _check_schema(version, path)
    import sqlite_utils

    from adapterhub.library.store import words

    database = sqlite_utils.Database(connection)
    integers, reals = {"rank", "parameters", "size_bytes", "parents", "has_tests"}, {"alpha", "added_at"}
    types = {c: int if c in integers else float if c in reals else str for c in _COLUMNS}
    builds = database["builds"]
    builds.create(
        types | {"version_order": bytes},
        pk="folder",
        not_null={"digest", "namespace", "name", "version", "base_weights"},
    )
    builds.create_index(["name", "namespace", "base_weights", "version_order"])
    builds.create_index(["namespace", "name"])
    builds.create_index(["digest"])
    builds.create_index(["weights_file"])
    for statement in (*_ORDERED, *words.SCHEMA):
        database.execute(statement)
    database["bases"].create({name: int if name == "parameters" else str for name in BaseRow._fields}, pk="alias")
    database["matches"].create(dict.fromkeys(_MATCH, str), pk=_MATCH)
    for statement in (*_FACETS, *counts.SCHEMA, *vectors.SCHEMA, *named.SCHEMA, *_LINEAGE):
        database.execute(statement)
    columns = {"digest": str, "norm": float, "flags": str, "sketch": bytes}
    database["sketches"].create(columns, pk="digest", not_null=set(columns))
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _put(
    connection: sqlite3.Connection,
    table: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str | float | bytes | None]],
) -> None:
    """Add rows; each replaces one with the same key."""
    marks = ", ".join("?" * len(columns))
    sql = f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
    connection.executemany(sql, rows)


def _selected(connection: sqlite3.Connection, select: str, filters: Filters) -> sqlite3.Cursor:
    """Return the values of `select` for the builds that match all but the text, in their order."""
    where, values = conditions_of(filters)
    if filters.method:  # which SQLite finds no key for
        having = [one for one in _methods(connection) if filters.method.lower() in one.lower().split(",")]
        where, values = [*where, f"builds.method IN ({', '.join('?' * len(having))})"], [*values, *having]
    which = f" WHERE {' AND '.join(where)}" if where else ""
    if filters.limit is not None and where and not (filters.name or filters.weights_file or filters.names):
        # SQLite would sort all builds of a base, or read the row of each to find the few that match
        probe = f"SELECT count(*) FROM (SELECT 1 FROM builds{which} LIMIT {_FEW})"
        if connection.execute(probe, values).fetchone()[0] < _FEW:
            which = f" WHERE rowid IN (SELECT rowid FROM builds{which})"
        else:
            select += f" INDEXED BY by_{_walked(filters)}"
    sql = f"{select}{which} ORDER BY {order_of(filters)} LIMIT ? OFFSET ?"
    return connection.execute(sql, (*values, -1 if filters.limit is None else filters.limit, filters.skip))


def _among(filters: Filters) -> WhereClause:
    """Return the conditions and the order of a search for words."""
    from adapterhub.library.store.words import WhereClause

    where, values = conditions_of(filters)
    walked = "" if filters.sort == "name" else f" INDEXED BY by_{filters.sort}"
    return WhereClause(where, values, filters.bases, order_of(filters), walked)


def _walked(filters: Filters) -> str:
    """Return the index that has very many matching builds in their order, with the fewest others between them."""
    if filters.sort != "name":
        return filters.sort
    return "base" if len(filters.bases or ()) == 1 else "task" if filters.task else "name"


def _methods(connection: sqlite3.Connection) -> Iterator[str]:
    """Every `method` of a build, once; each is one step in its index."""
    found = connection.execute("SELECT min(method) FROM builds").fetchone()[0]
    while found is not None:
        yield found
        found = connection.execute("SELECT min(method) FROM builds WHERE method > ?", (found,)).fetchone()[0]


def _any_in(connection: sqlite3.Connection, sql: str, values: Sequence[str], numbers: Sequence[int]) -> bool:
    """Return whether a query finds one of these rows; their set is made only where it finds any."""
    found = [row[0] for row in connection.execute(sql, values)]
    return bool(found) and not set(numbers).isdisjoint(found)


def _put_builds(connection: sqlite3.Connection, rows: Iterable[BuildRow]) -> None:
    from adapterhub.library.store.words import put_words

    rows = list(rows)
    _put(connection, "builds", (*_COLUMNS, "version_order"), [(*row, version_order(row.version)) for row in rows])
    put_words(connection, rows)
    made = [(parent, row.folder) for row in rows for parent in row.made_from.splitlines()]
    connection.executemany("INSERT INTO made_from SELECT ?, rowid FROM builds WHERE folder = ?", made)
