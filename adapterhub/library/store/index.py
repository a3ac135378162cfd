"""The index: installed builds by base, task and rank, and by the words of what they say of themselves.

The SQLite file is only a cache: the installed folders and the base records hold everything in it. Reads and writes use
`sqlite3` (11 ms to import). Only the schema needs sqlite_utils, which costs 150 ms and numpy. Its upserts are not used:
it probes SQLite's features by making a table, and mistakes a full disk for an old SQLite, whose `INSERT OR IGNORE` then
loses the row without an error.

The file is never synced to the disk. A killed writer leaves a rollback journal or the mark `index.stale`, and the age
of the file shows whether a power cut may have torn it (`is_current`). In each case the next reader makes it again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from adapterhub.core.disk.files import make_folder
from adapterhub.core.errors import Malformed
from adapterhub.library.store import vectors
from adapterhub.library.store.rows import BaseRow, BuildRow, Filters, Hit, SketchRow, conditions_of

SCHEMA_VERSION = 5
_BUSY_MS = 30_000
_UNSURE_S = 120.0


class IndexUnusable(Malformed):
    """The index is missing, damaged, or of another schema; rebuild it."""


class IndexNewer(IndexUnusable):
    """A newer adapterhub wrote the index: it stays unchanged, and the folders are read instead."""


_COLUMNS = BuildRow._fields
_LASTING = tuple(name for name in _COLUMNS if name != "added_at")
_MATCH = ("registered", "declared")


class Index:
    """The SQLite file at `path` about the library under `root`, by default the folder that it lies in."""

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path = path
        self._root = root or path.parent
        self.stale_mark = path.with_suffix(".stale")

    @property
    def is_current(self) -> bool:
        """Whether the file exists, no change to the folders is left half-indexed, and no power cut tore it."""
        try:
            written_at = self.path.stat().st_mtime
        except OSError:
            return False
        # The kernel writes its buffers within half a minute; what was written just before a restart of the machine may
        # have been lost in part.
        age_at_boot_s = _started_at() - written_at
        return not self.stale_mark.exists() and not 0 <= age_at_boot_s < _UNSURE_S

    # ------------------------------------------------------------ read
    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_MS / 1000)
            _check_schema(connection.execute("PRAGMA user_version").fetchone()[0], self.path)
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
        """Whether a build has a signature now: it may get one at any time."""
        from adapterhub.formats.manifest import SIGNATURE_FILE

        return os.path.lexists(os.path.join(self._root, folder, SIGNATURE_FILE))  # noqa: PTH118 - for each row

    def search(self, filters: Filters) -> list[BuildRow]:
        """Builds that match every filter: by relevance for a text, else by name, then newest first."""
        return [hit.row for hit in self.find(filters)]

    def find(self, filters: Filters) -> list[Hit]:
        """The builds of `search`, and why each matches the text."""
        where, values = conditions_of(filters)
        sql = f"SELECT {', '.join('builds.' + c for c in _COLUMNS)} FROM builds"
        with self._reading() as connection:
            if filters.text:
                from adapterhub.library.store.words import WhereClause, find_words

                connection.execute("BEGIN")  # a row that was found is there to be read
                among = WhereClause(where, values, filters.bases)
                hits = find_words(connection, filters.text, among, filters.limit, all_words=filters.all_words)
                one = f"{sql} WHERE rowid = ?"
                rows = (connection.execute(one, (found.number,)).fetchone() for found in hits)
                return [Hit(BuildRow._make(row), *found[1:]) for row, found in zip(rows, hits, strict=True)]
            if where:
                sql += " WHERE " + " AND ".join(where)
            sql += " ORDER BY builds.name, builds.namespace, builds.added_at DESC, builds.digest LIMIT ?"
            limit = -1 if filters.limit is None else filters.limit
            return [Hit(BuildRow._make(row), None, None) for row in connection.execute(sql, (*values, limit))]

    def vectors_of(self, filters: Filters, model: str) -> list[tuple[int, bytes | None]]:
        """The numbers of the builds that match all but the text, each with its vectors of `model`, or None."""
        with self._reading() as connection:
            return vectors.vectors_of(connection, model, *conditions_of(filters))

    def without_vectors(self, model: str) -> list[int]:
        """The numbers of the builds that have no vectors of `model`."""
        with self._reading() as connection:
            return vectors.without_vectors(connection, model)

    def numbered(self, numbers: Iterable[int]) -> dict[int, BuildRow]:
        """The builds with these numbers that are still there, in this order."""
        sql = f"SELECT {', '.join(_COLUMNS)} FROM builds WHERE rowid = ?"
        with self._reading() as connection:
            found = {number: connection.execute(sql, (number,)).fetchone() for number in numbers}
        return {number: BuildRow._make(row) for number, row in found.items() if row is not None}

    def names(self) -> list[str]:
        """Every full name, once."""
        with self._reading() as connection:
            rows = connection.execute("SELECT DISTINCT namespace, name FROM builds ORDER BY name")
            return [f"{ns}/{name}" if ns else name for ns, name in rows]

    def licenses(self) -> list[str]:
        """Every licence of a build, once."""
        with self._reading() as connection:
            return [row[0] for row in connection.execute("SELECT DISTINCT license FROM builds WHERE license != ''")]

    def bases(self) -> list[BaseRow]:
        """Registered bases by alias."""
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
            sql = "SELECT base_weights, min(digest) FROM builds WHERE base_weights != '' GROUP BY base_weights"
            return dict(connection.execute(sql).fetchall())

    def declares(self, weights: str) -> bool:
        """Whether a build declares the base `weights`; the bases that match it are then indexed."""
        if not self.path.exists():
            return False
        with self._reading() as connection:
            sql = "SELECT 1 FROM builds WHERE base_weights = ? LIMIT 1"
            return connection.execute(sql, (weights,)).fetchone() is not None

    def sketches(self) -> list[SketchRow]:
        """Every sketch that was made, and the builds that have none."""
        with self._reading() as connection:
            rows = connection.execute(f"SELECT {', '.join(SketchRow._fields)} FROM sketches").fetchall()
        rows.sort()  # in a third of the time in which SQLite reads them by digest
        return [SketchRow._make(row) for row in rows]

    def sketches_that(self, choose: Callable[[bytes], Iterable[int]]) -> list[SketchRow]:
        """Some sketches: `choose` gets all that were made, one after the other, and gives the places of those.

        It spares the making of a row for each, which takes four times as long as the reading of all.
        """
        sql = f"SELECT {', '.join(SketchRow._fields)} FROM sketches WHERE rowid = ?"
        with self._reading() as connection:
            connection.execute("BEGIN")  # what is chosen is there to be read
            made = connection.execute("SELECT rowid, sketch FROM sketches WHERE sketch != x''").fetchall()
            chosen = choose(b"".join([row[1] for row in made]))
            return [SketchRow._make(connection.execute(sql, (made[at][0],)).fetchone()) for at in chosen]

    def count(self) -> int:
        """How many builds are indexed."""
        with self._reading() as connection:
            return int(connection.execute("SELECT count(*) FROM builds").fetchone()[0])

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
    ) -> None:
        """Add or replace builds, `(registered, declared)` pairs of fingerprints of one base, and sketches."""
        with self._writing() as connection:
            _put_builds(connection, rows)
            _put(connection, "matches", _MATCH, matches)
            _put(connection, "sketches", SketchRow._fields, sketches)

    def upsert_base(self, row: BaseRow, matches: Iterable[tuple[str, str]] = ()) -> None:
        """Add or replace a registered base."""
        with self._writing() as connection:
            _put(connection, "bases", BaseRow._fields, [row])
            _put(connection, "matches", _MATCH, matches)

    def put_vectors(self, model: str, rows: Iterable[tuple[str, str, bytes]]) -> None:
        """Keep `(folder, digest, vectors)` of the builds that are still there."""
        with self._writing() as connection:
            vectors.put_vectors(connection, model, rows)

    def remove_builds(self, folders: Iterable[str]) -> None:
        """Forget the builds in these folders, which are paths below the library's root."""
        with self._writing() as connection:
            connection.executemany("DELETE FROM builds WHERE folder = ?", [(folder,) for folder in folders])
            connection.execute("DELETE FROM sketches WHERE digest NOT IN (SELECT digest FROM builds)")

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
    ) -> int:
        """Make the file from nothing and return how many builds it holds. The caller holds the lock `publish`.

        The new file takes the name of the old one when it is complete, so a reader gets one or the other.
        """
        fresh = self.path.with_suffix(".new")
        _remove(fresh)
        try:
            with self._writing(fresh) as connection:
                _put_builds(connection, builds)
                _put(connection, "bases", BaseRow._fields, bases)
                _put(connection, "matches", _MATCH, matches)
                connection.execute("INSERT INTO builds_fts (builds_fts) VALUES ('optimize')")
                _put(connection, "sketches", SketchRow._fields, sketches)
                connection.execute("DELETE FROM sketches WHERE digest NOT IN (SELECT digest FROM builds)")
                count = int(connection.execute("SELECT count(*) FROM builds").fetchone()[0])
        except IndexUnusable:
            _remove(fresh)  # the disk may be full
            raise
        _remove(self.path, only_beside=True)
        fresh.replace(self.path)
        return count

    def set_aside(self) -> Path:
        """Move a newer index out of the way without changing it, and return its new path."""
        with contextlib.closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            schema = connection.execute("PRAGMA user_version").fetchone()[0]
        aside = self.path.with_name(f"{self.path.stem}.schema-{schema}.db")
        self.path.replace(aside)
        return aside

    def differences(
        self, builds: Iterable[BuildRow], bases: Iterable[BaseRow], matches: Iterable[tuple[str, str]]
    ) -> list[str]:
        """Problems in the file, compared with the rows it should hold; checks every page and the full-text index.

        Raises:
            IndexUnusable: it cannot be read at all.
        """
        problems: list[str] = []
        with self._reading() as connection, contextlib.closing(sqlite3.connect(":memory:")) as copy:
            connection.backup(copy)
            problems += [row[0] for row in copy.execute("PRAGMA integrity_check(5)") if row[0] != "ok"]
            if not problems:
                copy.execute("INSERT INTO builds_fts (builds_fts) VALUES ('integrity-check')")
            for table, names, wanted in (
                # without `added_at`, the time of a folder, which any program may change
                ("builds", _LASTING, {tuple(getattr(row, name) for name in _LASTING) for row in builds}),
                ("bases", BaseRow._fields, {tuple(row) for row in bases}),
                ("matches", _MATCH, set(matches)),
            ):
                columns = ", ".join(names)
                found = set(copy.execute(f"SELECT {columns} FROM {table}"))
                if table == "matches":  # pairs of removed bases do no harm
                    found &= wanted
                if found != wanted:
                    problems.append(f"`{table}`: {len(wanted - found)} rows missing, {len(found - wanted)} wrong")
        return problems


def _remove(path: Path, *, only_beside: bool = False) -> None:
    for suffix in ("-wal", "-shm", "-journal", *(() if only_beside else ("",))):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _started_at() -> float:
    """The time stamp of this machine's start; infinity where the system does not give it."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time() - time.clock_gettime(clock) if clock is not None else float("inf")


def _check_schema(version: int, path: Path) -> None:
    if version > SCHEMA_VERSION:
        raise IndexNewer(
            f"`{path}` has schema {version}, written by a newer adapterhub; this one knows {SCHEMA_VERSION}",
            hint="update adapterhub; until then commands read the folders, which is slower",
        )
    if version != SCHEMA_VERSION:
        raise IndexUnusable(f"`{path}` has schema {version}, this version reads {SCHEMA_VERSION}")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Give an empty file the current schema.

    Raises:
        IndexUnusable: the file has an older schema; a rebuild replaces it.
        IndexNewer: it has a newer one.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION:
        return
    if version or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        _check_schema(version, path)
    import sqlite_utils

    from adapterhub.library.store import words

    database = sqlite_utils.Database(connection)
    integers, reals = {"rank", "parameters", "size_bytes", "parents", "has_tests"}, {"alpha", "added_at"}
    types = {c: int if c in integers else float if c in reals else str for c in _COLUMNS}
    builds = database["builds"]
    builds.create(types, pk="folder", not_null={"digest", "name", "version", "base_weights"})
    builds.create_index(["base_weights", "task", "rank"])
    builds.create_index(["name", "namespace"])
    builds.create_index(["task", "rank"])
    builds.create_index(["rank"])
    for statement in words.SCHEMA:
        database.execute(statement)
    database["bases"].create({name: int if name == "parameters" else str for name in BaseRow._fields}, pk="alias")
    database["matches"].create(dict.fromkeys(_MATCH, str), pk=_MATCH)
    for statement in vectors.SCHEMA:
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


def _put_builds(connection: sqlite3.Connection, rows: Iterable[BuildRow]) -> None:
    from adapterhub.formats.relevance import Wording
    from adapterhub.library.store.words import put_words

    rows = list(rows)
    _put(connection, "builds", _COLUMNS, rows)
    texts = (Wording(row.name, row.task, row.says, row.prompts) for row in rows)
    put_words(connection, ((row.folder, row.base_weights, text) for row, text in zip(rows, texts, strict=True)))
