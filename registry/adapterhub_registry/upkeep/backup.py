"""Copies a registry to a folder while its servers run, and its files to a bucket where one is named.

A backup is a registry in one folder, whatever it was made of: a SQLite database, and the files by their digests. The
database is read in one snapshot, and no writer waits: a SQLite file some pages at a time, PostgreSQL by its rows, which
needs no program of its version. Then come the files that the snapshot names and the copy has not. The new database
takes its place at the end, so the copy is whole at each moment: that of the last backup, or of this one. A backup that
was interrupted goes on when it is repeated.

The database of a backup has the table `backup`: the digest of the rows of each table, and the heads of the logs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import inspect, select
from sqlalchemy.engine import Connection

from adapterhub.core.dates import Moment
from adapterhub.core.disk.files import SQLITE_ENDS, remove_sqlite, sync_folder
from adapterhub.core.errors import Conflict, DigestMismatch, Malformed, shown
from adapterhub.formats.administration import BackedUp
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import Database, log_entries, now_ms
from adapterhub_registry.database.schema import check_current, leave_as_it_is, readable, revision_of
from adapterhub_registry.database.steps import Progress, batches, silent
from adapterhub_registry.settings import S3Place
from adapterhub_registry.storage.blobs import BlobStore, DiskBlobs
from adapterhub_registry.storage.stores import bucket_at
from adapterhub_registry.treelog import PUBLIC, head_of_entries
from adapterhub_registry.upkeep.holdings import MOST_PROBLEMS, problem_of, wanted_blobs
from adapterhub_registry.upkeep.moving import COPIED_AT_ONCE, copy_blob
from adapterhub_registry.upkeep.rows import TableRows, copy_rows, rows_of

DATABASE: Final = "registry.db"
NEW: Final = "registry.db.new"
BESIDE: Final = ("secret", "place")
"""What a server needs to go on with a copy: the secret of upload links, and the mark of the folder of its files."""
PAGES: Final = 2048
"""How many pages of the database are copied in one step."""
TOGETHER: Final = 200
"""How many files wait for the disk together."""
_PLACES: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupFacts:
    """The facts about a finished backup, kept in it. `files` is the place of its files if not in its folder."""

    made_at: Moment
    schema: str
    rows: Mapping[str, TableRows]
    logs: Mapping[int, tuple[int, str]]
    files: S3Place | None

    def write(self, path: Path) -> None:
        """Keep it in the database at `path`."""
        files = None
        if self.files is not None:
            files = {name: getattr(self.files, name) for name in ("bucket", "prefix", "endpoint", "region")}
        about = {"made_at": self.made_at, "schema": self.schema, "rows": self.rows, "logs": self.logs}
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("DROP TABLE IF EXISTS backup")  # a server ran on a backup, and this is one of it
            connection.execute("CREATE TABLE backup (about TEXT NOT NULL)")
            connection.execute("INSERT INTO backup VALUES (?)", [json.dumps({**about, "files": files})])

    @classmethod
    def read(cls, path: Path) -> BackupFacts | None:
        """Those in the database at `path`, without a write to it; None without any.

        Raises:
            Malformed: the file is not a database, or its facts are damaged.
        """
        with (
            readable(str(path)),
            contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as file,
        ):
            if file.execute("SELECT 1 FROM sqlite_master WHERE name = 'backup'").fetchone() is None:
                return None
            (text,) = file.execute("SELECT about FROM backup").fetchone()
        try:
            about = json.loads(text)
            return cls(
                made_at=Moment(about["made_at"]),
                schema=str(about["schema"]),
                rows={name: TableRows(*rows) for name, rows in about["rows"].items()},
                logs={int(log): (int(size), str(root)) for log, (size, root) in about["logs"].items()},
                files=None if about["files"] is None else S3Place(**about["files"]),
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Malformed(
                f"`{shown(str(path), 200)}`: its table `backup` is damaged: {shown(str(error), 200)}",
                hint="restore another backup",
            ) from None


def back_up(
    registry: Registry,
    target: Path,
    *,
    files: S3Place | None = None,
    reads: bool = False,
    progress: Progress = silent,
) -> BackedUp:
    """Copy the registry to the folder `target`, which is new, empty, or has an earlier backup.

    Its files come to the bucket `files` where that is given. With `reads`, those that are there are read, and copied
    again where their bytes are wrong.

    Raises:
        Conflict: the target is the registry itself, or holds something else.
        UsageProblem: the schema of the database on a server is that of another version.
        DigestMismatch: the rows of the copy are not those that were read.
        DiskFull: no room is left; the last backup stays.
    """
    root = registry.settings.root
    _check_target(root, target)
    if files is not None and files == registry.settings.s3:
        raise Conflict(
            f"s3://{files.bucket}/{files.prefix} is the registry itself; nothing was written",
            hint="choose another folder or bucket",
        )
    if registry.db.is_shared:
        with registry.db.read() as connection:
            check_current(connection)
    target.mkdir(parents=True, exist_ok=True)
    target.chmod(0o700)
    read = _snapshot(registry, target / NEW, progress)
    store: BlobStore = DiskBlobs(target) if files is None else bucket_at(files)
    with contextlib.closing(Database(f"sqlite:///{target / NEW}", schema=leave_as_it_is)) as snapshot:
        with snapshot.read() as connection:
            schema, rows, logs = str(revision_of(connection)), rows_of(connection), heads_of(connection)
        check_rows(rows, read or rows, "the copy")
        copied, number, size, problems = _copy_files(registry, snapshot, store, progress, reads=reads)
    if not problems:
        facts = BackupFacts(made_at=Moment(now_ms()), schema=schema, rows=rows, logs=logs, files=files)
        facts.write(target / NEW)
        for name in BESIDE:
            if (root / name).is_file():
                shutil.copyfile(root / name, target / name)
                (target / name).chmod(0o600)
        take_place(target)
    return BackedUp(
        blobs=number,
        bytes=size,
        copied=copied,
        rows=sum(table.number for table in rows.values()),
        schema=schema,
        log_size=logs.get(PUBLIC, (0, ""))[0],
        problems=tuple(problems),
    )


def heads_of(connection: Connection) -> dict[int, tuple[int, str]]:
    """Return the size and the root of each log, made of its entries.

    Raises:
        Malformed: a log lacks an entry, or keeps other hashes than those of its entries.
    """
    if not inspect(connection).has_table(log_entries.name):
        return {}
    try:
        logs = connection.scalars(select(log_entries.c.log).distinct()).all()
        found = {log: head_of_entries(connection, log) for log in logs}
    except LookupError as error:
        raise Malformed(f"the database is damaged: {error}", hint="restore another backup") from None
    return {log: (size, root.hex()) for log, (size, root) in found.items()}


def check_rows(found: Mapping[str, TableRows], expected: Mapping[str, TableRows], whose: str) -> None:
    """Raise `DigestMismatch` where tables hold other rows than expected."""
    wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if wrong:
        first = wrong[0]
        one, other = (dict(known).get(first, TableRows(0, "")) for known in (expected, found))
        raise DigestMismatch(
            f"table {first} of {whose}, and {len(wrong) - 1} more" if len(wrong) > 1 else f"table {first} of {whose}",
            expected=f"{one.number} rows, {one.digest or 'no table'}",
            actual=f"{other.number} rows, {other.digest or 'no table'}",
        )


def _snapshot(registry: Registry, target: Path, progress: Progress) -> dict[str, TableRows] | None:
    """Copy one moment of the database to a new file; the rows that were read, None for a copy of pages."""
    remove_sqlite(target)
    if not registry.db.is_shared:
        _copy_pages(Path(str(registry.db.engine.url.database)), target, progress)
        return None
    with (
        contextlib.closing(Database(f"sqlite:///{target}")) as new,
        registry.db.read() as old,
        new.begin() as connection,
    ):
        target.chmod(0o600)
        return copy_rows(old, connection, progress)


def _check_target(root: Path, target: Path) -> None:
    if target.resolve() == root.resolve():
        raise Conflict(
            f"`{shown(str(target), 200)}` is the registry itself; nothing was written",
            hint="choose another folder or bucket",
        )
    known = {DATABASE, *(f"{NEW}{end}" for end in SQLITE_ENDS), "blobs", "uploads", *BESIDE}
    if target.exists():
        other = (
            next((one.name for one in sorted(target.iterdir()) if one.name not in known), None)
            if target.is_dir()
            else ""
        )
        if other is not None:
            what = f"holds `{shown(other, 200)}`" if other else "is no folder"
            raise Conflict(
                f"`{shown(str(target), 200)}` {what}, which no backup wrote; nothing was written",
                hint="name a new folder, or one with an earlier backup that no server runs on",
            )


def _copy_pages(source: Path, target: Path, progress: Progress) -> None:
    """Copy one snapshot of a SQLite database that servers write to."""

    def copied(_status: int, left: int, total: int) -> None:
        progress("database", total - left, total)

    with (
        readable(str(source)),
        contextlib.closing(sqlite3.connect(source, isolation_level=None)) as old,
        contextlib.closing(sqlite3.connect(target, isolation_level=None)) as new,
    ):
        # while this transaction is open, the pages stay those of one moment; otherwise each push would begin the copy
        # from the first page again
        old.execute("BEGIN")
        old.execute("SELECT count(*) FROM sqlite_master").fetchone()
        old.backup(new, pages=PAGES, progress=copied)
    target.chmod(0o600)


def _copy_files(
    registry: Registry, snapshot: Database, target: BlobStore, progress: Progress, *, reads: bool
) -> tuple[int, int, int, list[str]]:
    """Copy the files that the target has not; how many that were, the number and bytes of all, and the problems."""
    copied = number = size = 0
    problems: list[str] = []
    for window in wanted_blobs(snapshot):
        for some in batches(window, TOGETHER):
            held = target.holds({one.sha256: one.size for one in some})
            if reads:
                held = {
                    one.sha256 for one in some if one.sha256 in held and not problem_of(target, one, read_bytes=True)
                }
            lacking = [one for one in some if one.sha256 not in held]
            with target.together() as put, ThreadPoolExecutor(COPIED_AT_ONCE) as pool:
                done = list(pool.map(lambda one, put=put: copy_blob(registry.blobs, one, put), lacking))
            copied += done.count(None)
            problems += [problem for problem in done if problem is not None][: MOST_PROBLEMS - len(problems)]
            number, size = number + len(some), size + sum(one.size for one in some)
            progress("files", int(some[-1].sha256[:4], 16), _PLACES)
    return copied, number, size, problems


def take_place(target: Path) -> None:
    """Let the new database of a backup replace the one before."""
    with contextlib.closing(sqlite3.connect(target / NEW, isolation_level=None)) as new:
        new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        new.execute("PRAGMA journal_mode=DELETE")  # one file, which a reader need not be able to write beside
    for name in (NEW, DATABASE):
        remove_sqlite(target / name, only_beside=True)
    with (target / NEW).open("rb") as stream:
        os.fsync(stream.fileno())
    (target / NEW).replace(target / DATABASE)
    sync_folder(target)
