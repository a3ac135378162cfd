"""Copies a registry to another place: a folder to another database and bucket.

A move skips blobs that the target has, so an interrupted move continues on the next run. One transaction writes the
rows, so the target gets all of them or none. The source stays unchanged.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from adapterhub.core.errors import AdapterHubError, Conflict, DiskFull, Malformed, UsageProblem, shown
from adapterhub.formats.administration import MovedRegistry
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import Database, lock_name
from adapterhub_registry.database.schema import readable
from adapterhub_registry.database.steps import Progress, silent
from adapterhub_registry.storage.blobs import BlobReader, BlobStore, DiskBlobs, PutNext
from adapterhub_registry.upkeep.holdings import MOST_PROBLEMS, WantedBlob, problem_of, wanted_blobs
from adapterhub_registry.upkeep.rows import check_empty, copy_rows

COPIED_AT_ONCE = 8


class BlobsDamaged(AdapterHubError):
    """Some files that rows name cannot be copied; `problems` holds a sentence for each."""

    exit_code = 12

    def __init__(self, problems: list[str]) -> None:
        message = f"{len(problems)} files cannot be copied; no row was written"
        hint = "restore them from a backup, then run the command again: it skips copied files"
        super().__init__("\n".join([message, *(f"  {problem}" for problem in problems)]), hint=hint)
        self.problems = tuple(problems)


def move_registry(root: Path, target: Registry, *, progress: Progress = silent) -> MovedRegistry:
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
        return _move(url, root, target, progress)


def _move(url: str, root: Path, target: Registry, progress: Progress) -> MovedRegistry:
    with contextlib.closing(Database(url)) as source, source.begin() as old:  # blocks other writers
        with target.db.read() as new:
            check_empty(new)
        number, size = copy_blobs(DiskBlobs(root), target.blobs, wanted_blobs(source), progress)
        with target.db.begin() as new:
            lock_name(new, "first token")  # a server that starts now waits for the tokens
            check_empty(new)
            rows = sum(table.number for table in copy_rows(old, new, progress).values())
    return MovedRegistry(blobs=number, bytes=size, rows=rows)


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
        raise Malformed(
            f"`{shown(str(root / 'registry.db'), 200)}` has no tables of a registry; no row was written",
            hint="check the address of the database",
        )


def copy_blobs(
    source: BlobReader,
    target: BlobStore,
    wanted: Iterable[list[WantedBlob]],
    progress: Progress,
    *,
    reads: bool = False,
) -> tuple[int, int]:
    """Copy those that the target has not, and return how many are there now, and their bytes.

    With `reads`, those that are there count only where their bytes are right.

    Raises:
        BlobsDamaged: the source lacks some, or has other bytes.
    """
    problems: list[str] = []
    number = size = 0
    with ThreadPoolExecutor(COPIED_AT_ONCE) as pool:
        for some in wanted:
            found = list(pool.map(partial(_copied, source, target, reads=reads), some))
            problems += [problem for problem in found if problem][: MOST_PROBLEMS - len(problems)]
            number, size = number + len(some), size + sum(one.size for one in some)
            progress("files", int(some[-1].sha256[:4], 16) if some else 0, 1 << 16)
    if problems:
        raise BlobsDamaged(problems)
    return number, size


def _copied(source: BlobReader, target: BlobStore, blob: WantedBlob, *, reads: bool) -> str | None:
    there = target.holds({blob.sha256: blob.size}) and not (reads and problem_of(target, blob, read_bytes=True))
    return None if there else copy_blob(source, blob, target.put)


def copy_blob(source: BlobReader, blob: WantedBlob, put: PutNext) -> str | None:
    """Copy a blob, and return the problem of one that the source lacks, has damaged, or cannot read.

    Raises:
        DiskFull: the target has no room.
    """
    try:
        put(source.open(blob.sha256), blob.sha256, blob.size)
    except DiskFull:
        raise
    except AdapterHubError as error:
        return f"blob {blob.sha256}: {error.message}"
    except OSError as error:
        return f"blob {blob.sha256}: cannot be read: {error.strerror or error}"
    return None
