"""Copies a registry from a folder to a database and a bucket that several servers share: blobs first, then all rows.

It skips blobs that the target has, so an interrupted move continues on the next run. One transaction writes the rows,
so the target gets all of them or none. The source stays unchanged.
"""

from __future__ import annotations

import contextlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Table, func, insert, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from adapterhub.core.errors import AdapterHubError, Conflict, Malformed, UsageProblem, shown
from adapterhub.formats.administration import MovedRegistry
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import Database, lock_name, metadata
from adapterhub_registry.database.schema import readable
from adapterhub_registry.operations.holdings import named_blobs
from adapterhub_registry.storage.blobs import BlobStore
from adapterhub_registry.storage.disk_blobs import DiskBlobs

ROWS = 1000
AT_ONCE = 8


class BlobsDamaged(AdapterHubError):
    """Some files that rows name cannot be copied; `problems` holds a sentence for each."""

    exit_code = 12

    def __init__(self, problems: list[str]) -> None:
        message = f"{len(problems)} files cannot be copied; no row was written"
        hint = "restore them from a backup, then run the command again: it skips copied files"
        super().__init__("\n".join([message, *(f"  {problem}" for problem in problems)]), hint=hint)
        self.problems = tuple(problems)


def move_registry(root: Path, target: Registry) -> MovedRegistry:
    """Copy the registry in the folder `root` to `target`; stop its server first.

    Raises:
        Conflict: a server uses the folder, or the target's database is not empty.
        BlobsDamaged: blobs of the folder are missing or damaged. No row was written.
        Malformed: the folder's database is not a registry's, or the target's refuses a row. No row was written.
        UsageProblem: source and target have the same database.
    """
    url = f"sqlite:///{root / 'registry.db'}"
    if target.settings.database == url:
        raise UsageProblem(
            "the target is the database in the folder; a move needs another one",
            hint="name the target with `--database postgresql://user@host/name` and `--blobs s3://bucket`",
        )
    with readable(str(root / "registry.db")):
        _check_stopped(root)
        return _move(url, root, target)


def _move(url: str, root: Path, target: Registry) -> MovedRegistry:
    with contextlib.closing(Database(url)) as source, source.begin() as old:  # blocks other writers
        with target.db.read() as new:
            _check_empty(new)
        blobs = named_blobs(old)
        _copy_blobs(DiskBlobs(root), target.blobs, blobs)
        with target.db.begin() as new:
            lock_name(new, "first token")  # a server that starts now waits for the tokens
            _check_empty(new)
            rows = sum(_copy_rows(old, new, table) for table in metadata.sorted_tables)
            if new.dialect.name == "postgresql":
                _go_on_counting(old, new)
    return MovedRegistry(blobs=len(blobs), bytes=sum(blobs.values()), rows=rows)


def _check_stopped(root: Path) -> None:
    """Raise when a server uses the folder, or its database is not a registry's."""
    # a server keeps connections open, and this mode gets no lock while another connection exists
    with contextlib.closing(sqlite3.connect(root / "registry.db", timeout=0, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            raise Conflict(
                f"`{shown(str(root))}` is in use; the move would lose concurrent pushes, so nothing was copied",
                hint="stop its server, and keep it stopped",
            ) from None
        is_ours = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'facts'").fetchone()
        connection.execute("ROLLBACK")
    if is_ours is None:
        raise Malformed(f"`{shown(str(root / 'registry.db'), 200)}` has no tables of a registry; no row was written")


def _check_empty(connection: Connection) -> None:
    """Raise unless every table is empty."""
    filled = [
        table.name
        for table in metadata.sorted_tables
        if connection.execute(select(*table.primary_key).limit(1)).first() is not None
    ]
    if filled:
        names = ", ".join(filled)
        raise Conflict(
            f"the target database has rows ({names}); expected an empty one, no row was written",
            hint="create a new one with `createdb`, and start servers on it only after the move",
        )


def _copy_blobs(source: BlobStore, target: BlobStore, wanted: dict[str, int]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(partial(_copy_blob, source, target), wanted.items()))
    problems = [problem for problem in found if problem]
    if problems:
        raise BlobsDamaged(problems)


def _copy_blob(source: BlobStore, target: BlobStore, blob: tuple[str, int]) -> str | None:
    sha256, size = blob
    try:
        if not target.holds({sha256: size}):
            target.put(source.open(sha256), sha256, size)
    except AdapterHubError as error:
        return f"blob {sha256}: {error.message}"
    return None


def _copy_rows(old: Connection, new: Connection, table: Table) -> int:
    count = 0
    for rows in old.execution_options(yield_per=ROWS).execute(select(table)).mappings().partitions(ROWS):
        try:
            new.execute(insert(table), [dict(row) for row in rows])
        except SQLAlchemyError as error:
            why = str(getattr(error, "orig", error)).partition("\n")[0]
            raise Malformed(f"table {table.name}: {shown(why, 200)}; no row was written") from error
        count += len(rows)
    return count


def _go_on_counting(old: Connection, new: Connection) -> None:
    """Continue the numbers of the source: the next ones exceed those of all rows, removed ones included."""
    given = {row.name: row.seq for row in old.execute(text("SELECT name, seq FROM sqlite_sequence"))}
    for table in metadata.sorted_tables:
        number: Any = table.autoincrement_column
        if number is not None:
            last = max(given.get(table.name, 0), new.scalar(select(func.max(number))) or 0)
            if last:
                new.execute(select(func.setval(func.pg_get_serial_sequence(table.name, number.name), last)))
