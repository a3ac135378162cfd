"""Makes a registry of a backup, at an empty place: a folder, or a database and a bucket.

Nothing is written before the backup was read: the rows of each table have the digests of their backup, and the logs
reach the heads that this machine knows. Then come the files, each hashed on its way, and the rows at the end, all or
none. The restored rows are compared with the backup once more. The backup stays unchanged.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import select
from sqlalchemy.engine import Connection

from adapterhub.core.disk.files import SQLITE_ENDS, read_json, read_plain, remove_sqlite, sync_folder
from adapterhub.core.errors import CHECK_FILE, Conflict, LogMismatch, Malformed, NotFound, UsageProblem, shown
from adapterhub.formats.administration import Restored
from adapterhub.formats.treelog import Head, LogKey, opened_note
from adapterhub_registry.database.db import Database, facts, lock_name
from adapterhub_registry.database.schema import HEAD, KNOWN, check_current, leave_as_it_is
from adapterhub_registry.database.steps import Progress, silent
from adapterhub_registry.settings import S3Place, Settings
from adapterhub_registry.storage.blobs import DiskBlobs
from adapterhub_registry.storage.stores import bucket_at, stores_of
from adapterhub_registry.treelog import PUBLIC, TreeLog, root_at, size_of
from adapterhub_registry.upkeep.backup import BESIDE, DATABASE, NEW, BackupFacts, check_rows, heads_of
from adapterhub_registry.upkeep.holdings import wanted_blobs
from adapterhub_registry.upkeep.moving import copy_blobs
from adapterhub_registry.upkeep.rows import check_empty, copy_rows, rows_of

_NOTE_BYTES: Final = 64 << 10
_HEADS_BYTES: Final = 16 << 20
_LEFT: Final = frozenset({*BESIDE, *(f"{NEW}{end}" for end in SQLITE_ENDS), "blobs", "uploads"})
"""What an interrupted restore leaves in a folder, which the next one takes up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownHead:
    """A signed head of a log that somebody saw, and where it is kept; `key` is that of the library that kept it."""

    where: str
    note: str
    key: LogKey | None = None


def known_heads(library: Path, file: Path | None) -> list[KnownHead]:
    """Return the heads that a library keeps of the registries that it met, and the one in a file.

    Raises:
        NotFound: the file cannot be read.
    """
    found = []
    for path in sorted((library / "logs").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            value = read_json(path, _HEADS_BYTES)
            key = LogKey.parse(value["key"])
            found += [KnownHead(where=str(path), note=str(note), key=key) for note in value["heads"].values()]
    if file is not None:
        try:
            note = read_plain(file, _NOTE_BYTES).decode("utf-8", "replace")
        except OSError as error:
            raise NotFound(
                f"no head `{shown(str(file), 200)}`: {error.strerror}; nothing was written", hint=CHECK_FILE
            ) from None
        found.append(KnownHead(where=str(file), note=note))
    return found


def restore(
    folder: Path,
    settings: Settings,
    *,
    files: S3Place | None = None,
    known: Sequence[KnownHead] = (),
    accepts_older: bool = False,
    progress: Progress = silent,
) -> Restored:
    """Make a registry of the backup in `folder`, at the empty place that `settings` describe.

    The files come from the bucket `files`, or from where the backup put them. With `accepts_older`, the logs may end
    before heads that are `known`, but never differ from them.

    Raises:
        NotFound: the folder has no backup.
        Conflict: its backup was interrupted before its end, a server ran on it, or the target is not empty.
        UsageProblem: a newer version made the backup.
        DigestMismatch: its rows are not those of its end.
        LogMismatch: a log ends before a known head, or has another past.
        BlobsDamaged: files are missing or damaged. The target has no row.
    """
    about = _facts_of(folder)
    _check_target(settings)
    with _scratch(settings) as scratch:
        shutil.copyfile(folder / DATABASE, scratch)
        with contextlib.closing(Database(f"sqlite:///{scratch}", schema=leave_as_it_is)) as copy, copy.read() as read:
            check_rows(rows_of(read), about.rows, "the backup")
            if heads_of(read) != about.logs:
                raise Malformed("the logs of the backup are not those of its end", hint="restore another backup")
        with contextlib.closing(Database(f"sqlite:///{scratch}")) as source:  # of the present schema from here on
            with source.read() as connection:
                _check_heads(source, connection, known, accepts_older=accepts_older)
            place = files or about.files
            store = DiskBlobs(folder) if place is None else bucket_at(place)
            target, _ = stores_of(settings)
            number, size = copy_blobs(store, target, wanted_blobs(source), progress, reads=True)
            _place_beside(folder, settings.root)  # before the rows, which make the target a registry
            rows = _place_rows(source, scratch, settings, progress)
    return Restored(
        made_at=about.made_at,
        blobs=number,
        bytes=size,
        rows=rows,
        schema=HEAD,
        log_size=about.logs.get(PUBLIC, (0,))[0],
    )


def _place_beside(folder: Path, root: Path) -> None:
    for name in BESIDE:
        if (folder / name).is_file() and not (root / name).exists():
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.copyfile(folder / name, root / name)
            (root / name).chmod(0o600)


def _facts_of(folder: Path) -> BackupFacts:
    path = folder / DATABASE
    name = f"`{shown(str(folder), 200)}`"
    if not path.exists():
        if (folder / NEW).exists():
            raise Conflict(
                f"{name} has a backup that was interrupted before its end; nothing was written",
                hint="run `adapt registry backup` on it again, or restore another backup",
            )
        raise NotFound(f"{name} has no backup", hint="`adapt registry backup FOLDER` makes one")
    about = BackupFacts.read(path)
    used = next((end for end in ("serving.lock", f"{DATABASE}-wal") if (folder / end).exists()), None)
    if used is not None:
        raise Conflict(
            f"{name} has `{used}`: a server ran on it, so it is not a backup now; nothing was written",
            hint="serve it where it is, or copy it by `adapt registry backup` or `move`",
        )
    if about is None:
        raise Conflict(
            f"{name} has a database that no backup finished; nothing was written",
            hint="`adapt registry move` takes the folder of a registry to another database",
        )
    if about.schema not in KNOWN:
        raise UsageProblem(
            f"the backup has schema {shown(about.schema)}, this version knows those up to {HEAD}; nothing was written",
            hint="upgrade the program: `pip install -U adapterhub`",
        )
    return about


def _check_target(settings: Settings) -> None:
    """Raise unless the target is empty; what an interrupted restore left there is taken up."""
    if settings.database_url is not None:
        with (
            contextlib.closing(Database(settings.database, schema=leave_as_it_is)) as target,
            target.read() as connection,
        ):
            check_empty(connection)
    if (settings.database_url is None or settings.s3 is None) and settings.root.exists():
        other = next((one.name for one in sorted(settings.root.iterdir()) if one.name not in _LEFT), None)
        if other is not None:
            raise Conflict(
                f"`{shown(str(settings.root), 200)}` is not empty: it has `{shown(other, 200)}`; nothing was written",
                hint="name a new folder, or remove this one",
            )


@contextlib.contextmanager
def _scratch(settings: Settings) -> Iterator[Path]:
    """Provide a place for a copy of the backup's database: the new folder, or a temporary one for another database."""
    if settings.database_url is None:
        settings.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = settings.root / NEW
        remove_sqlite(path)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="adapt-restore-") as name:
        yield Path(name) / NEW


def _check_heads(source: Database, connection: Connection, known: Sequence[KnownHead], *, accepts_older: bool) -> None:
    """Raise when a log of the backup ends before a head that somebody saw, or has another past."""
    logs = TreeLog(source)
    if not logs.has_key(connection):  # no client asked for a head yet, and the first one who does makes the key
        known = [one for one in known if one.key is None]
    if not known:
        return
    public = logs.signer(PUBLIC).key
    names: Mapping[str, int] = {logs.signer(log).key.name: log for log in {PUBLIC, *heads_of(connection)}}
    for one in known:
        if one.key is not None and one.key.public != public.public:
            continue  # of another registry
        origin = one.note.partition("\n")[0]
        try:
            head: Head = opened_note(one.note, LogKey(origin, public.public))
        except ValueError as error:
            raise LogMismatch(
                f"the head in `{shown(one.where, 200)}` {error} of the backup's registry; nothing was written",
                hint="this head belongs to another registry, or the backup does",
            ) from None
        log = names.get(origin)
        size = 0 if log is None else size_of(connection, log)
        if log is None or size < head.size:
            if accepts_older:
                continue
            raise LogMismatch(
                f"the log of the backup has {size} entries, and `{shown(one.where, 200)}` has seen {head.size}: later "
                "releases are not in this backup; nothing was written",
                hint="restore a later backup; with `--accept-older`, clients that saw later heads refuse the registry",
            )
        if head.size and root_at(connection, log, head.size) != head.root:
            raise LogMismatch(
                f"the log of the backup has another past than `{shown(one.where, 200)}` has seen; nothing was written",
                hint="the backup is not of this registry, or one of both was changed by hand",
            )


def _place_rows(source: Database, scratch: Path, settings: Settings, progress: Progress) -> int:
    """Let the rows come to their database, all or none; how many they are."""
    with source.read() as old:
        expected = rows_of(old)
    if settings.database_url is None:
        source.close()
        with contextlib.closing(sqlite3.connect(scratch, isolation_level=None)) as new:
            new.execute("DROP TABLE backup")
            new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        _check_placed(scratch, expected)
        with scratch.open("rb") as stream:
            os.fsync(stream.fileno())
        scratch.chmod(0o600)
        try:
            os.link(scratch, settings.root / DATABASE)  # a server that started meanwhile keeps its own
        except FileExistsError:
            raise Conflict(
                f"a server began in `{shown(str(settings.root), 200)}` meanwhile; no row was written",
                hint="stop it, and restore into a new folder",
            ) from None
        remove_sqlite(scratch)
        sync_folder(settings.root)
    else:
        with contextlib.closing(Database(settings.database, schema=check_current)) as target, target.begin() as new_:
            lock_name(new_, "first token")  # a server that starts now waits for the tokens
            check_empty(new_)
            with source.read() as old:
                copy_rows(old, new_, progress)
            check_rows(rows_of(new_), expected, "the new database")
    return sum(table.number for table in expected.values())


def _check_placed(path: Path, expected: Mapping[str, object]) -> None:
    with contextlib.closing(Database(f"sqlite:///{path}", schema=leave_as_it_is)) as made, made.read() as connection:
        check_rows(rows_of(connection), expected, "the new database")  # type: ignore[arg-type]


def needs_secret(settings: Settings) -> bool:
    """Return whether servers of the restored database need a secret that is not in its folder."""
    if settings.database_url is None or (settings.root / "secret").exists():
        return False
    with contextlib.closing(Database(settings.database, schema=leave_as_it_is)) as target, target.read() as connection:
        return connection.scalar(select(facts.c.value).where(facts.c.name == "secret")) is not None
