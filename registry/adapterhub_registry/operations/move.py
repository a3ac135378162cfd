"""From one folder to the database and the bucket that several servers share: blobs first, then all rows at once.

Blobs that are there already are passed over, so a move that was cut off goes on when it is run again; rows are one
transaction, so the target holds all of them or none. The source is only read.
"""

from __future__ import annotations

import contextlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Table, func, insert, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from adapterhub.core.errors import AdapterHubError, Conflict, Malformed, UsageProblem, shown
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import Database, lock_name, metadata
from adapterhub_registry.database.schema import readable
from adapterhub_registry.operations.holdings import named_blobs
from adapterhub_registry.storage.blobs import BlobStore, DiskBlobs

ROWS = 1000
AT_ONCE = 8


class BlobsDamaged(AdapterHubError):
    """Files that rows name cannot be moved; `problems` holds a sentence for each."""

    exit_code = 12

    def __init__(self, problems: list[str]) -> None:
        message = f"{len(problems)} files cannot be moved; no row was written"
        hint = "restore them from a backup, then run it again: what was copied is not copied twice"
        super().__init__("\n".join([message, *(f"  {problem}" for problem in problems)]), hint=hint)
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What stands at the target now."""

    blobs: int
    bytes: int
    rows: int


def move_registry(root: Path, target: Registry) -> Moved:
    """Copy the registry in the folder `root`, whose server was stopped, to `target`.

    Raises:
        Conflict: a server runs on the folder, or the target's database holds something.
        BlobsDamaged: blobs of the folder are missing or are not what their digests say. No row was written.
        Malformed: the folder's database is not that of a registry, or the target's refuses a row. No row was written.
        UsageProblem: the target's database is that of the folder.
    """
    url = f"sqlite:///{root / 'registry.db'}"
    if target.settings.database == url:
        raise UsageProblem(
            "a move needs another database than the one in the folder",
            hint="`--database postgresql://user@host/name` names it, `--blobs s3://bucket` the place of the files",
        )
    with readable(root / "registry.db"):
        _refuse_running(root)
        return _move(url, root, target)


def _move(url: str, root: Path, target: Registry) -> Moved:
    with contextlib.closing(Database(url)) as source, source.begin() as old:  # nobody else writes meanwhile
        with target.db.read() as new:
            _refuse_filled(new)
        blobs = named_blobs(old)
        _copy_blobs(DiskBlobs(root), target.blobs, blobs)
        with target.db.begin() as new:
            lock_name(new, "first token")  # a server that starts now waits, and finds tokens
            _refuse_filled(new)
            rows = sum(_copy_rows(old, new, table) for table in metadata.sorted_tables)
            if new.dialect.name == "postgresql":
                _go_on_counting(old, new)
    return Moved(blobs=len(blobs), bytes=sum(blobs.values()), rows=rows)


def _refuse_running(root: Path) -> None:
    # a server keeps connections open, and beside another connection this mode gets no lock
    with contextlib.closing(sqlite3.connect(root / "registry.db", timeout=0, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            raise Conflict(
                f"`{shown(str(root))}` is in use; what is pushed during a move would be lost, so nothing was moved",
                hint="stop its server first, and let it stay stopped",
            ) from None
        is_ours = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'facts'").fetchone()
        connection.execute("ROLLBACK")
    if is_ours is None:
        raise Malformed(f"`{shown(str(root / 'registry.db'), 200)}` holds no tables of a registry; no row was written")


def _refuse_filled(connection: Connection) -> None:
    filled = [
        table.name
        for table in metadata.sorted_tables
        if connection.execute(select(*table.primary_key).limit(1)).first() is not None
    ]
    if filled:
        names = ", ".join(filled)
        raise Conflict(
            f"the database to move to holds rows already ({names}); expected an empty one, no row was written",
            hint="make a new one with `createdb`, and start servers on it after the move only",
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
    """Rows came with their numbers: the next ones are above them, and above those that were given and are gone."""
    given = {row.name: row.seq for row in old.execute(text("SELECT name, seq FROM sqlite_sequence"))}
    for table in metadata.sorted_tables:
        number: Any = table.autoincrement_column
        if number is not None:
            last = max(given.get(table.name, 0), new.scalar(select(func.max(number))) or 0)
            if last:
                new.execute(select(func.setval(func.pg_get_serial_sequence(table.name, number.name), last)))
