"""The content-addressed store: blobs and manifests by sha256, written once, read-only, checkable with `sha256sum`.

    blobs/sha256/ab/<64 hex>       files of adapters
    manifests/sha256/<64 hex>.json canonical JSON of manifests
    tmp/                           where writes begin; leftovers of a crash have no name in the store
    intents/                       the objects that running writers need, and their folder of tmp/ (`claims.py`)
    quarantine/                    damaged objects, moved out of the way and never deleted
    locks/                         advisory locks (flock): they vanish with the process that holds them

Order of a write: temp file, fsync, rename to the final name, and one fsync of the folder that makes a build visible,
after all its objects have theirs. An interruption at any point leaves the old or the new state.

Links may lead to the root, but not replace folders below it: commands that change anything refuse them. No other user
can write to the files and folders made here, whatever the umask.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from adapterhub.core.digests import Digest, Progress, copy_hashed, hex_of
from adapterhub.core.disk.files import (
    NO_LINKS,
    RealFolder,
    clone_or_copy,
    digest_of_file,
    is_sound,
    make_folder,
    open_plain,
    read_plain,
    sync_file,
    sync_folder,
    write_new,
)
from adapterhub.core.disk.held_file import REPAIR_HINT
from adapterhub.core.disk.root import Held, Root, claim, finished
from adapterhub.core.errors import BlobNotFound, DigestMismatch
from adapterhub.formats.manifest import LIMIT_BYTES, Manifest


@dataclass(frozen=True)
class WriteIntent:
    """A running writer: its staging folder, and the objects it will need, which no sweep deletes."""

    _store: Store
    _held: Held
    folder: Path

    def need(self, digests: Iterable[Digest]) -> None:
        """Declare the objects that the writer needs; from now on no sweep deletes them.

        Raises:
            StoreLocked: a sweep is running and did not end.
        """
        with self._store.lock("store", exclusive=False), self._store.os_errors_as_refusals():
            self._held.write(digests)


def settle_objects(objects: Mapping[Path, Digest], folder: Path | None = None, *, look: bool = False) -> None:
    """Make objects durable whose mode says that they are not yet, with the names in `folder`; then change the mode.

    Raises:
        DigestMismatch: with `look`, one of those has not the bytes that it should have.
        OSError: one is gone, or the disk failed.
    """
    pending = [path for path in objects if path.stat().st_mode & stat.S_IWUSR]
    for path in pending:
        if look and (found := digest_of_file(path)[0]) != objects[path]:
            raise DigestMismatch(str(path), expected=objects[path], actual=found, hint=REPAIR_HINT)
        sync_file(path)
    if pending and folder is not None:
        sync_folder(folder)
    for path in pending:
        path.chmod(0o444)


class Store(Root):
    """Objects under `root`. Cheap to make; folders appear with the first write."""

    # ------------------------------------------------------------ names
    def blob_path(self, digest: Digest) -> Path:
        """Return the path of a blob, whether it exists or not."""
        return Path(self.blob_name(digest))

    def blob_name(self, digest: Digest) -> str:
        """Return the same as text, for thousands of lookups: a `Path` costs as much as a `stat`."""
        name = hex_of(digest)
        return f"{self.root}/blobs/sha256/{name[:2]}/{name}"

    def manifest_path(self, digest: Digest) -> Path:
        """Return the path of a manifest, whether it exists or not."""
        return Path(self.manifest_name(digest))

    def manifest_name(self, digest: Digest) -> str:
        """Return the same as text."""
        return f"{self.root}/manifests/sha256/{hex_of(digest)}.json"

    def part_path(self, digest: Digest) -> Path:
        """Return the file that keeps the beginning of an interrupted blob; `gc` deletes old ones."""
        return self.root / "tmp" / f"part-{hex_of(digest)}"

    def has_blob(self, digest: Digest) -> bool:
        """Return whether the blob exists; its bytes are not checked."""
        return self.blob_path(digest).is_file()

    def has_manifest(self, digest: Digest) -> bool:
        """Return whether the manifest exists."""
        return self.manifest_path(digest).is_file()

    # ------------------------------------------------------------ write
    def adopt(self, path: Path, digest: Digest, *, is_manifest: bool = False, durable: bool = True) -> None:
        """Make the finished file `path` (on the store's own file system) the blob `digest`, which its bytes have.

        An existing blob stays, so that hard links keep sharing it; a damaged one goes into quarantine. With
        `is_manifest`, it is the canonical JSON of a manifest. Without `durable`, it stays writable for its owner until
        `settle` or another writer that needs it makes it durable.
        """
        final = self.manifest_path(digest) if is_manifest else self.blob_path(digest)
        with self.os_errors_as_refusals():
            if final.exists() and (final.samefile(path) or is_sound(final, digest)):
                os.utime(final)  # young again, so that a sweep on another host spares it
                if durable:
                    settle_objects({final: digest})
                return
            if os.path.lexists(final):
                self.quarantine(final)
            if durable:
                sync_file(path, mode=0o444)  # before the name: a power cut must leave no name on half the bytes
            make_folder(final.parent)
            path.rename(final)

    def quarantine(self, path: Path) -> Path:
        """Move a damaged file of the store into quarantine, and return its new path. Nothing there is ever deleted."""
        folder = self.root / "quarantine"
        self.ensure_real_folders()
        with self.os_errors_as_refusals():
            make_folder(folder)
            target = folder / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(3).hex()}-{path.name}"
            path.rename(target)
        return target

    @contextlib.contextmanager
    def intent(self, what: str) -> Iterator[WriteIntent]:
        """Provide a fresh folder on the store's file system, for the objects of an add; gone when the block ends.

        The leftovers of killed writers are deleted first, so that a full disk does not stay full.

        Raises:
            StoreLocked: a sweep is running and did not end.
        """
        import shutil  # 2 ms of the start of a command that only reads

        self.ensure_real_folders()
        for path in finished(self.root / "intents"):
            shutil.rmtree(self.root / "tmp" / path.name, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink()
        folder: Path | None = None
        with contextlib.ExitStack() as stack:
            try:  # from before the folder is there: a signal may end us at any line
                with self.lock("store", exclusive=False), self.os_errors_as_refusals():  # between two looks of a sweep
                    held = stack.enter_context(claim(self.root / "intents", what))
                    folder = self.root / "tmp" / held.path.name
                    make_folder(folder)
                yield WriteIntent(self, held, folder)
            finally:
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """Provide a fresh folder on the store's file system for unfinished objects; deleted when the block ends."""
        with self.intent("scratch") as intent:
            yield intent.folder

    def stage_file(
        self, source: IO[bytes], target: Path, progress: Progress | None, limit_bytes: int | None = None
    ) -> tuple[Digest, int]:
        """Copy into the staging folder; digest and size in bytes."""
        with self.os_errors_as_refusals(), write_new(target) as sink:
            return copy_hashed(source, sink, progress, limit_bytes=limit_bytes)

    # ------------------------------------------------------------ read
    def open_blob(self, digest: Digest) -> IO[bytes]:
        """Return the blob's bytes as a stream."""
        try:
            return open_plain(self.blob_path(digest))
        except FileNotFoundError:
            raise BlobNotFound(f"the store has no object {digest}", hint="`adapt verify --all` lists damage") from None

    def read_manifest(self, digest: Digest) -> Manifest:
        """Return the manifest, parsed and checked against its digest."""
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
    def link(
        self, digest: Digest, target: str | Path, *, into: RealFolder | None = None, is_manifest: bool = False
    ) -> None:
        """Make `target` the blob, or the manifest: by a hard link, or a copy-on-write clone, or a copy.

        With `into`, `target` is a name in it.
        """
        source = self.manifest_name(digest) if is_manifest else self.blob_name(digest)
        try:
            os.link(source, target, dst_dir_fd=into.handle if into else None)
        except FileNotFoundError:
            raise BlobNotFound(f"the store has no object {digest}") from None
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise self.explain(error) from error
            with self.os_errors_as_refusals():
                clone_or_copy(Path(source), target, into=into)
