"""The content-addressed store: blobs and manifests by sha256, written once, read-only, checkable with `sha256sum`.

    blobs/sha256/ab/<64 hex>       files of adapters
    manifests/sha256/<64 hex>.json canonical JSON of manifests
    tmp/                           where writes begin; whatever a crash leaves here has no name in the store
    intents/                       what running writers will name, and which folder of tmp/ is theirs (`claims.py`)
    quarantine/                    damaged objects, moved out of the way and never deleted
    locks/                         advisory locks (flock): they vanish with the process that holds them

Order of a write: temp file, fsync, rename to the final name, and one fsync of the folder that makes a build visible,
after all its objects have theirs. Any stop leaves old or new.

The root may be reached by links; the folders below it are real ones, and a command that would change anything refuses a
link in their place. Nobody else may write in what is made here, whatever the umask.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from adapterhub.claims import Held, claim, finished, holder_facts, read_holder
from adapterhub.digests import CHUNK_BYTES, Digest, digest_of_file, hex_of, open_plain, read_plain
from adapterhub.errors import AdapterHubError, BlobNotFound, DigestMismatch, DiskFull, NotAllowed, StoreLocked
from adapterhub.home import FOLDERS
from adapterhub.manifest import LIMIT_BYTES, Manifest
from adapterhub.real_folder import RealFolder, make_folder

NO_LINKS: Final = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)
"""Answers of file systems that make no hard link here."""

_RESERVE_BYTES: Final = 16 << 20


class Intent:
    """A writer at work: the folder it stages files in, and the objects it will name, which no sweep takes."""

    def __init__(self, store: Store, held: Held, folder: Path) -> None:
        self.folder = folder
        self._store, self._held = store, held

    def need(self, digests: Iterable[Digest]) -> None:
        """Say which objects will be named; from here on no sweep takes them.

        Raises:
            StoreLocked: a sweep is running and did not end.
        """
        with self._store.lock("store", exclusive=False), self._store.explaining():
            self._held.write(digests)


class Store:
    """Objects under `root`. Cheap to make; folders appear with the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # ------------------------------------------------------------ names
    def blob_path(self, digest: Digest) -> Path:
        """Where the blob lies or would lie."""
        return Path(self.blob_name(digest))

    def blob_name(self, digest: Digest) -> str:
        """The same as text, for those who look at thousands: a `Path` costs as much as a `stat`."""
        name = hex_of(digest)
        return f"{self.root}/blobs/sha256/{name[:2]}/{name}"

    def manifest_path(self, digest: Digest) -> Path:
        """Where the manifest lies or would lie."""
        return Path(self.manifest_name(digest))

    def manifest_name(self, digest: Digest) -> str:
        """The same as text."""
        return f"{self.root}/manifests/sha256/{hex_of(digest)}.json"

    def part_path(self, digest: Digest) -> Path:
        """Where the beginning of a blob is kept when its way here was cut; `gc` takes it when it is old."""
        return self.root / "tmp" / f"part-{hex_of(digest)}"

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is there; its bytes are not looked at."""
        return self.blob_path(digest).is_file()

    def has_manifest(self, digest: Digest) -> bool:
        """Whether the manifest is there."""
        return self.manifest_path(digest).is_file()

    # ------------------------------------------------------------ write
    def adopt(self, path: Path, digest: Digest) -> None:
        """Make the finished file `path` (on the store's own file system) the blob `digest`, which its bytes have.

        A blob that is there already stays, so that hard links keep sharing it; a damaged one is put in quarantine.
        """
        self._adopt(path, digest, self.blob_path(digest))

    def adopt_manifest(self, path: Path, digest: Digest) -> None:
        """The same for a manifest's canonical JSON."""
        self._adopt(path, digest, self.manifest_path(digest))

    def _adopt(self, path: Path, digest: Digest, final: Path) -> None:
        with self.explaining():
            if final.exists() and (final.samefile(path) or is_sound(final, digest)):
                os.utime(final)  # young again: a sweep on another host must not take what is being named right now
                return
            if os.path.lexists(final):
                self.quarantine(final)
            sync_file(path, mode=0o444)  # before the name: a power cut must leave no name on half the bytes
            make_folder(final.parent)
            path.rename(final)

    def quarantine(self, path: Path) -> Path:
        """Move a damaged file of the store out of the way; where it lies now. Nothing in quarantine is ever deleted."""
        folder = self.root / "quarantine"
        self.refuse_links()
        with self.explaining():
            make_folder(folder)
            target = folder / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}-{path.name}"
            path.rename(target)
        return target

    @contextlib.contextmanager
    def intent(self, what: str) -> Iterator[Intent]:
        """A fresh folder on the store's file system, for the objects of an add; gone when the block ends.

        What a killed writer left is cleared away first, so that a full disk does not stay full.

        Raises:
            StoreLocked: a sweep is running and did not end.
        """
        self.refuse_links()
        self._clear_finished()
        folder: Path | None = None
        with contextlib.ExitStack() as stack:
            try:  # from before the folder is there: a signal may end us at any line
                with self.lock("store", exclusive=False), self.explaining():  # between two looks of a sweep
                    held = stack.enter_context(claim(self.root / "intents", what))
                    folder = self.root / "tmp" / held.path.name
                    make_folder(folder)
                yield Intent(self, held, folder)
            finally:
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)

    def need_room(self, size_bytes: int) -> None:
        """See beforehand that `size_bytes` fit, and a reserve for what else is written here.

        Raises:
            DiskFull: they do not.
        """
        usage = shutil.disk_usage(next(p for p in (self.root, *self.root.absolute().parents) if p.exists()))
        reserve = min(_RESERVE_BYTES, usage.total // 100)
        if usage.free < size_bytes + reserve:
            raise DiskFull(
                f"no room in `{self.root}`: {size_bytes:,} bytes are needed and {reserve:,} kept in reserve, "
                f"{usage.free:,} are free. Nothing was stored",
                hint="`adapt gc` frees what no installed adapter uses",
            )

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A fresh folder on the store's file system for things in the making; gone when the block ends."""
        with self.intent("scratch") as intent:
            yield intent.folder

    def _clear_finished(self) -> None:
        for path in finished(self.root / "intents"):
            shutil.rmtree(self.root / "tmp" / path.name, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink()

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Whatever the operating system refuses in the block, as a plain refusal."""
        try:
            yield
        except OSError as error:
            raise self.explain(error) from error

    def explain(self, error: OSError) -> AdapterHubError:
        """The plain refusal for an operating-system error met while writing below the root."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(self.root if self.root.exists() else self.root.parent).free
            return DiskFull(
                f"no room to write in `{self.root}` ({error.strerror}; {free:,} bytes free). Nothing was stored",
                hint="`adapt gc` frees what no installed adapter uses",
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return NotAllowed(
                f"cannot write in `{self.root}`: {error.strerror}. Nothing was stored",
                hint="choose another home with `--root DIR` or ADAPTERHUB_HOME",
            )
        return NotAllowed(
            f"`{error.filename or self.root}`: {error.strerror}. Nothing was stored",
            hint="`adapt doctor` checks the store",
        )

    def write(self, path: Path, data: bytes, *, mode: int = 0o644, sync: bool = True) -> None:
        """Replace a small record of the library; see `write_durably`.

        Raises:
            NotAllowed, DiskFull: it cannot be written; what was there is there.
        """
        self.refuse_links()
        with self.explaining():
            write_durably(path, data, mode=mode, sync=sync)

    def refuse_links(self) -> None:
        """Whether every folder of the library is one of its own, so that what is done below it is done in the library.

        Raises:
            NotAllowed: one is a link.
        """
        for name in FOLDERS:
            place = f"{self.root}/{name}"
            if os.path.islink(place):  # noqa: PTH114 - twenty for each lock
                raise NotAllowed(
                    f"`{place}` is a link; the folders of a library are real ones. Nothing was changed",
                    hint="put the folder itself there; a library that should lie elsewhere is moved, or linked, whole",
                )

    # ------------------------------------------------------------ read
    def open_blob(self, digest: Digest) -> IO[bytes]:
        """The blob's bytes as a stream."""
        try:
            return open_plain(self.blob_path(digest))
        except FileNotFoundError:
            raise BlobNotFound(f"the store has no object {digest}", hint="`adapt verify --all` lists damage") from None

    def read_manifest(self, digest: Digest) -> Manifest:
        """The manifest, parsed and checked against its digest."""
        path = self.manifest_path(digest)
        try:
            raw = read_plain(path, LIMIT_BYTES)
        except FileNotFoundError:
            raise BlobNotFound(f"the store has no manifest {digest}") from None
        manifest = Manifest.parse(raw, str(path))
        if manifest.digest != digest:
            raise DigestMismatch(str(path), expected=digest, actual=manifest.digest)
        return manifest

    # ------------------------------------------------------------ out
    def link(self, digest: Digest, target: str | Path, *, into: RealFolder | None = None) -> None:
        """Make `target` the blob: hard link, else a copy-on-write clone, else a copy. With `into`, a name in it."""
        self._link(self.blob_name(digest), target, digest, into)

    def link_manifest(self, digest: Digest, target: str | Path, *, into: RealFolder | None = None) -> None:
        """The same for a manifest."""
        self._link(self.manifest_name(digest), target, digest, into)

    def _link(self, source: str, target: str | Path, digest: Digest, into: RealFolder | None) -> None:
        try:
            os.link(source, target, dst_dir_fd=into.handle if into else None)
        except FileNotFoundError:
            raise BlobNotFound(f"the store has no object {digest}") from None
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise self.explain(error) from error
            with self.explaining():
                clone_or_copy(Path(source), target, into=into)

    # ------------------------------------------------------------ locks
    @contextlib.contextmanager
    def lock(self, name: str, *, exclusive: bool, wait_s: float = 30.0) -> Iterator[None]:
        """Hold the advisory lock `name`, shared or exclusive, for the length of a `with` block.

        Raises:
            StoreLocked: another process held it for all of `wait_s` seconds; the message says which.
        """
        self.refuse_links()
        path = self.root / "locks" / name
        with self.explaining():
            make_folder(path.parent)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._acquire(handle, name, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, wait_s)
            if exclusive:
                with contextlib.suppress(OSError):  # only for the message of those who wait
                    data = json.dumps(holder_facts()).encode()
                    os.ftruncate(handle, os.pwrite(handle, data, 0))
            yield
        finally:
            os.close(handle)

    def _acquire(self, handle: int, name: str, mode: int, wait_s: float) -> None:
        deadline, pause = time.monotonic() + wait_s, 0.005
        while True:
            try:
                fcntl.flock(handle, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise self._locked(handle, name, wait_s) from None
                time.sleep(pause)
                pause = min(pause * 2, 0.2)
            except OSError as error:
                raise self.explain(error) from error
            else:
                return

    def _locked(self, handle: int, name: str, wait_s: float) -> StoreLocked:
        holder = read_holder(handle)
        return StoreLocked(
            f"another process has held the `{name}` lock of `{self.root}` for {wait_s:.0f} s"
            + (f"; the last to take it alone was {holder}" if holder else ""),
            hint=f"wait for it, or look with `fuser {self.root / 'locks' / name}` who holds it; "
            "the lock ends with its process",
        )


def is_sound(path: Path, digest: Digest) -> bool:
    """Whether `path` is a plain file whose bytes have that digest; every byte is read."""
    try:
        return not path.is_symlink() and path.is_file() and digest_of_file(path)[0] == digest
    except OSError:
        return False


def sync_file(path: Path, *, mode: int | None = None) -> None:
    """Make a file's bytes durable, and its mode `mode`."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if mode is not None:
            os.fchmod(handle, mode)
        os.fsync(handle)
    finally:
        os.close(handle)


def write_new(path: Path) -> IO[bytes]:
    """A file of the library to write from its beginning; a link in its place is refused, and nobody else may write it.

    Raises:
        OSError: it cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o644), "wb")


def write_file(path: Path, data: bytes) -> None:
    """As `write_new`, all at once."""
    with write_new(path) as sink:
        sink.write(data)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, data: bytes, *, mode: int = 0o644, sync: bool = True) -> None:
    """Replace `path` by `data`: temp file beside it, fsync, rename, fsync of the folder.

    Without `sync` a crash of the process still leaves old or new, but a power cut may lose it.
    """
    make_folder(path.parent)
    temp = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        # private until it is whole: what is written may be a token
        with os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as sink:
            sink.write(data)
            sink.flush()
            os.fchmod(sink.fileno(), mode)
            if sync:
                os.fsync(sink.fileno())
        temp.rename(path)
        if sync:
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)


_FICLONE = 0x40049409  # linux/fs.h: share the extents of another file (btrfs, xfs, bcachefs)


def clone_or_copy(source: Path, target: str | Path, *, into: RealFolder | None = None) -> None:
    """A read-only copy of `source` at `target`, sharing its disk blocks where the file system can."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    handle = os.open(target, flags, 0o600, dir_fd=into.handle if into else None)
    with source.open("rb") as reader, os.fdopen(handle, "wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            shutil.copyfileobj(reader, writer, CHUNK_BYTES)
        writer.flush()
        os.fchmod(writer.fileno(), 0o444)
        os.fsync(writer.fileno())
