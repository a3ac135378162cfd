"""The content-addressed store: blobs and manifests by sha256, written once, read-only, checkable with `sha256sum`.

    blobs/sha256/ab/<64 hex>       files of adapters
    manifests/sha256/<64 hex>.json canonical JSON of manifests
    tmp/                           where writes begin; whatever a crash leaves here has no name in the store
    locks/                         advisory locks (flock): they vanish with the process that holds them

Order of a write: temp file, fsync, rename to the final name, fsync of the folder. Any stop leaves old or new.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from adapterhub.digests import CHUNK_BYTES, Digest, hex_of
from adapterhub.errors import AdapterHubError, BlobNotFound, DigestMismatch, DiskFull, NotAllowed, StoreLocked
from adapterhub.manifest import Manifest

GRACE_S = 3600.0
"""Objects younger than this are spared by `sweep`: a writer on another host (no shared locks) may name them next."""


class Store:
    """Objects under `root`. Cheap to make; folders appear with the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # ------------------------------------------------------------ names
    def blob_path(self, digest: Digest) -> Path:
        """Where the blob lies or would lie."""
        name = hex_of(digest)
        return self.root / "blobs" / "sha256" / name[:2] / name

    def manifest_path(self, digest: Digest) -> Path:
        """Where the manifest lies or would lie."""
        return self.root / "manifests" / "sha256" / f"{hex_of(digest)}.json"

    def part_path(self, digest: Digest) -> Path:
        """Where the beginning of a blob is kept when its way here was cut; `sweep` takes it when it is old."""
        return self.root / "tmp" / f"part-{hex_of(digest)}"

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is there; its bytes are not looked at."""
        return self.blob_path(digest).is_file()

    def has_manifest(self, digest: Digest) -> bool:
        """Whether the manifest is there."""
        return self.manifest_path(digest).is_file()

    # ------------------------------------------------------------ write
    def adopt(self, path: Path, digest: Digest, size_bytes: int) -> None:
        """Make the finished file `path` (on the store's own file system) the blob `digest`, which its bytes have.

        A blob that is there already stays, so that hard links keep sharing it; one of another size is replaced.
        """
        final = self.blob_path(digest)
        try:
            if final.is_file() and final.stat().st_size == size_bytes:
                os.utime(final)  # young again: a sweep must not take what is being named right now
                return
            with path.open("rb") as handle:
                os.fchmod(handle.fileno(), 0o444)
                os.fsync(handle.fileno())
            final.parent.mkdir(parents=True, exist_ok=True)
            path.rename(final)
            sync_folder(final.parent)
        except OSError as error:
            raise self.explain(error) from error

    def put_manifest(self, manifest: Manifest) -> Digest:
        """Store a manifest under its digest."""
        digest = manifest.digest
        path = self.manifest_path(digest)
        try:
            if path.is_file():
                os.utime(path)
            else:
                write_durably(path, manifest.to_bytes(), mode=0o444)
        except OSError as error:
            raise self.explain(error) from error
        return digest

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A fresh folder on the store's file system for things in the making; gone when the block ends."""
        folder = self.root / "tmp" / f"{os.getpid()}-{secrets.token_hex(6)}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise self.explain(error) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

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

    # ------------------------------------------------------------ read
    def open_blob(self, digest: Digest) -> IO[bytes]:
        """The blob's bytes as a stream."""
        try:
            return self.blob_path(digest).open("rb")
        except FileNotFoundError:
            raise BlobNotFound(f"the store has no object {digest}", hint="`adapt verify --all` lists damage") from None

    def read_manifest(self, digest: Digest) -> Manifest:
        """The manifest, parsed and checked against its digest."""
        path = self.manifest_path(digest)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise BlobNotFound(f"the store has no manifest {digest}") from None
        manifest = Manifest.parse(raw, str(path))
        if manifest.digest != digest:
            raise DigestMismatch(str(path), expected=digest, actual=manifest.digest)
        return manifest

    # ------------------------------------------------------------ out
    def link(self, digest: Digest, target: Path) -> None:
        """Make `target` the blob: hard link, else a copy-on-write clone, else a copy."""
        source = self.blob_path(digest)
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise BlobNotFound(f"the store has no object {digest}") from None
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise self.explain(error) from error
            clone_or_copy(source, target)

    # ------------------------------------------------------------ gc and locks
    def sweep(
        self, keep: Collection[Digest], *, grace_s: float = GRACE_S, dry_run: bool = False
    ) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
        """Delete what is not in `keep` and older than `grace_s`, stale temp files too.

        The caller holds the exclusive lock. Gives what went and what only its youth saved, each with sizes in bytes.
        """
        names = {hex_of(d) for d in keep}
        oldest_kept = time.time() - grace_s
        gone: list[tuple[Path, int]] = []
        spared: list[tuple[Path, int]] = []
        for pattern in ("blobs/sha256/*/*", "manifests/sha256/*.json", "tmp/*"):
            for path in sorted(self.root.glob(pattern)):
                facts = path.lstat()
                if path.name.split(".")[0] in names:
                    continue
                if facts.st_mtime > oldest_kept:
                    spared.append((path, facts.st_size))
                    continue
                gone.append((path, facts.st_size))
                if not dry_run:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        return gone, spared

    @contextlib.contextmanager
    def lock(self, name: str, *, exclusive: bool, wait_s: float = 30.0) -> Iterator[None]:
        """Hold the advisory lock `name`, shared or exclusive, for the length of a `with` block.

        Raises:
            StoreLocked: another process held it for all of `wait_s` seconds.
        """
        path = self.root / "locks" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self.explain(error) from error
        try:
            self._acquire(handle, name, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, wait_s)
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
                    raise StoreLocked(
                        f"another process has held the `{name}` lock of `{self.root}` for {wait_s:.0f} s",
                        hint="wait for it, or look with `fuser` who holds it; the lock ends with its process",
                    ) from None
                time.sleep(pause)
                pause = min(pause * 2, 0.2)
            else:
                return


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data`: temp file beside it, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        # private until it is whole: what is written may be a token
        with os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as sink:
            sink.write(data)
            sink.flush()
            os.fchmod(sink.fileno(), mode)
            os.fsync(sink.fileno())
        temp.rename(path)
        sync_folder(path.parent)
    finally:
        temp.unlink(missing_ok=True)


_FICLONE = 0x40049409  # linux/fs.h: share the extents of another file (btrfs, xfs, bcachefs)


def clone_or_copy(source: Path, target: Path) -> None:
    """A read-only copy of `source` at `target`, sharing its disk blocks where the file system can."""
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            shutil.copyfileobj(reader, writer, CHUNK_BYTES)
        writer.flush()
        os.fchmod(writer.fileno(), 0o444)
        os.fsync(writer.fileno())
