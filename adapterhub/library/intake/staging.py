"""Staging of one build for a library: known files are linked, the rest is hashed while it is written."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from adapterhub.core.digests import Digest, Progress, digest_of
from adapterhub.core.disk.files import NO_LINKS, is_sound, make_folder, sync_folder, write_file
from adapterhub.core.disk.root import absolute
from adapterhub.core.errors import (
    BaseMismatch,
    DigestMismatch,
    RefusedAdapter,
    RemoteUnreachable,
    SignatureRefused,
    explained_by,
    shown,
)
from adapterhub.formats.base.comparison import Judge
from adapterhub.formats.manifest import MEDIA_TYPES, SIGNATURE_FILE, WEIGHTS_FILE, FileEntry, Manifest
from adapterhub.formats.release import Release
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.store.blobs import Store, WriteIntent
from adapterhub.trust.findings import Finding
from adapterhub.trust.signing.appraisal import read_signature
from adapterhub.trust.verify import Report, Subject, open_subject, verify
from adapterhub.trust.verify.subject import Entry

if TYPE_CHECKING:
    from adapterhub.library.installed import Added
    from adapterhub.library.store.catalog import Installed

_LINK = ".link"
"""A name in the staging folder that no file of an adapter has."""


def stage_files(
    store: Store, intent: WriteIntent, subject: Subject, taken: Sequence[Entry], progress: Progress | None
) -> list[FileEntry]:
    """Copy the files of an adapter folder into the intent's folder; returns their entries for the manifest.

    Weights that the library wrote itself, into its own `tmp`, are linked: one pass hashes them and reads their numbers.

    Raises:
        RefusedAdapter: a file grew meanwhile.
    """
    folder, entries = subject.folder, []
    is_own = Path(absolute(folder)).is_relative_to(Path(absolute(store.root), "tmp"))
    for file in taken:
        name = file.name
        if is_own and name == WEIGHTS_FILE and _is_linked(store, file.path, intent.folder / name):
            _ = subject.numbers  # the pass
            digest, size = file.held.digest, file.held.size_bytes
            entries.append(FileEntry(path=name, sha256=digest, size_bytes=size, media_type=MEDIA_TYPES[name]))
            continue
        try:
            with file.open() as source:
                digest, size = store.stage_file(source, intent.folder / name, progress, file.size_bytes)
        except ValueError:  # it grew: without this bound a growing file would fill the disk
            found = ("E_CONTAINER", f"{name}: grew while it was read")
            raise RefusedAdapter(f"refused `{shown(str(folder), 200)}`. Nothing was stored", [found]) from None
        entries.append(FileEntry(path=name, sha256=digest, size_bytes=size, media_type=MEDIA_TYPES[name]))
    return entries


class Staging:
    """The staging folder of one build; see `transfer.Receiver`. `publish` installs the staged files."""

    def __init__(self, store: Store, intent: WriteIntent, release: Release, publish: Callable[[], Added]) -> None:
        self._store = store
        self._staging = intent.folder
        self._release = release
        self._publish = publish
        self._signature: bytes | None = None
        self.added: Added | None = None

    @property
    def folder(self) -> Path:
        """The files that were taken so far, as they will be installed."""
        return self._staging

    def has(self, entry: FileEntry) -> bool:
        """Link the file from the store, if its bytes are there and correct; a damaged object goes into quarantine."""
        store, target = self._store, self._staging / entry.path
        if not os.path.lexists(store.blob_path(entry.sha256)):
            return False
        if not is_sound(store.blob_path(entry.sha256), entry.sha256):
            store.quarantine(store.blob_path(entry.sha256))
            return False
        if not target.exists():
            store.link(entry.sha256, target)
        return True

    def put(self, entry: FileEntry, stream: IO[bytes], progress: Progress | None = None) -> None:
        """Stage one file and hash it while it is written, continuing after the bytes of an earlier try.

        If the earlier bytes are bad, the whole file is fetched again.
        """
        begun = self._continued(self._store.part_path(entry.sha256), stream)
        digest = self._stage(entry, begun, progress)
        if digest != entry.sha256 and begun is not stream:
            stream.seek(0)
            digest = self._stage(entry, stream, progress)
        if digest != entry.sha256:
            raise DigestMismatch(
                f"{self._release.full_name} {entry.path} from {self._release.origin}",
                expected=entry.sha256,
                actual=digest,
                hint="nothing was stored; ask the operator of the source",
            )

    def _stage(self, entry: FileEntry, stream: IO[bytes], progress: Progress | None) -> Digest:
        """Write a file and return its digest; after an interruption the bytes are kept for the next try."""
        target = self._staging / entry.path
        try:
            digest, _ = self._store.stage_file(stream, target, progress, limit_bytes=entry.size_bytes)
        except ValueError as error:
            raise DigestMismatch(entry.path, expected=f"{entry.size_bytes} bytes", actual=str(error)) from None
        except (RemoteUnreachable, KeyboardInterrupt, SystemExit):
            with contextlib.suppress(OSError):
                target.rename(self._store.part_path(entry.sha256))
            raise
        return digest

    def _continued(self, part: Path, stream: IO[bytes]) -> IO[bytes]:
        """Return the stream, preceded by the bytes of an earlier try if it can seek."""
        begun = self._staging / part.name
        if not stream.seekable():
            return stream
        try:
            part.rename(begun)  # ours alone from here on
            return cast("IO[bytes]", Continued(begun.open("rb"), stream))
        except OSError:
            return stream

    def sign(self, signature: bytes) -> bool:
        """Stage the signature, which the caller has checked."""
        with self._store.os_errors_as_refusals():
            write_file(self._staging / SIGNATURE_FILE, signature)
        self._signature = signature
        return True

    def publish(self) -> None:
        """Verify and install; again where another process removes the build that was there already."""
        self.added = self._publish()
        while not (self.added.created or self._mend(self.added.build)):
            self.added = self._publish()
        if self._signature is not None and not self.added.created:
            attach_signature(self._store, self.added.build.folder, self._signature)

    def _mend(self, build: Installed) -> bool:
        """Restore lost objects in the store and the folder of a build that is installed already; False if it is not."""
        store = self._store
        for entry in build.manifest.files:
            blob, file, fresh = store.blob_path(entry.sha256), build.folder / entry.path, self._staging / _LINK
            if blob.exists() and (_is_same(file, blob) or is_sound(file, entry.sha256)):
                continue
            with store.lock("publish", exclusive=True), store.os_errors_as_refusals():  # no `remove` runs meanwhile
                if not build.folder.is_dir():
                    return False
                store.adopt(self._staging / entry.path, entry.sha256)
                if not os.path.lexists(self._staging / entry.path):  # another publish may need it
                    store.link(entry.sha256, self._staging / entry.path)
                if is_sound(file, entry.sha256):
                    continue
                if os.path.lexists(file):
                    store.quarantine(file)
                store.link(entry.sha256, fresh)
                fresh.replace(file)
        return build.folder.is_dir()


def _is_linked(store: Store, file: Path, target: Path) -> bool:
    """Link `target` to a file; False if the file system has no links."""
    with store.os_errors_as_refusals():
        try:
            os.link(file, target)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return False
    return True


def _is_same(file: Path, blob: Path) -> bool:
    """Return whether both are one file; False if `file` is a link, or a `remove` took it meanwhile."""
    try:
        return os.path.samestat(file.lstat(), blob.lstat())
    except FileNotFoundError:
        return False


class Continued(io.RawIOBase):
    """`begun`, then the rest of the stream after as many bytes."""

    def __init__(self, begun: IO[bytes], rest: IO[bytes]) -> None:
        super().__init__()
        self._begun, self._rest = begun, rest
        self._is_begun = True

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # io types it by a protocol that 3.10 lacks
        """Fill a part of `buffer`; 0 at the end."""
        if self._is_begun:
            data = self._begun.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            self._rest.seek(self._begun.tell())
            self._begun.close()
            self._is_begun = False
        data = self._rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def signature_objects(folder: Path) -> list[Digest]:
    """Return the digest of the signature in a folder, if there is one: an object to keep.

    Raises:
        SignatureRefused: `model.sig` is not a signature file.
    """
    path = folder / SIGNATURE_FILE
    try:
        raw = read_signature(path) if os.path.lexists(path) else None
    except SignatureRefused as error:
        hint = "`adapt doctor --repair` moves it to quarantine, and fetches the signature again where it can"
        raise SignatureRefused(error.what, error.clause, reason=error.reason, hint=hint) from None
    return [] if raw is None else [digest_of(raw)]


def link_signature(store: Store, staged: Path, view: Path) -> None:
    """Link the signature staged in one folder, if there is one, into another."""
    for digest in signature_objects(staged):
        store.adopt(staged / SIGNATURE_FILE, digest)
        store.link(digest, view / SIGNATURE_FILE)


def attach_signature(store: Store, folder: Path, raw: bytes) -> None:
    """Give an installed build this signature; at any moment it has the old or the new one."""
    with store.intent("sign") as intent:
        intent.need([digest_of(raw)])
        with store.os_errors_as_refusals():
            write_file(intent.folder / SIGNATURE_FILE, raw)
            view = intent.folder / "view"
            make_folder(view)
        link_signature(store, intent.folder, view)
        with store.lock("publish", exclusive=True), store.os_errors_as_refusals():
            (view / SIGNATURE_FILE).replace(folder / SIGNATURE_FILE)
            sync_folder(folder)


def checked(
    folder: Path,
    manifest: Manifest,
    base: BaseRecord | None,
    seen: Sequence[Finding],
    scanned: Subject | None = None,
    *,
    judge: Judge,
) -> Report:
    """Run every check on a folder that should match `manifest`; `scanned` and `judge` as for `open_subject`."""
    subject, findings = open_subject(
        folder,
        base_tensors=base.weights if base else None,
        base_fingerprint=base.fingerprint if base else None,
        base_type=base.hints.model_type if base else None,
        manifest=manifest,
        scanned=scanned,
        judge=judge,
    )
    found = [*seen, *findings]
    return Report.of(found) if subject is None else verify(subject, seen=found)


def ensure_no_errors(what: str, findings: Sequence[Finding]) -> None:
    """Raise `refused` if a finding is an error."""
    if "error" in map(attrgetter("severity"), findings):
        raise refused(what, findings)


def refused(what: str, findings: Sequence[Finding]) -> RefusedAdapter | BaseMismatch:
    """Return the exception for the errors among `findings`."""
    errors = [f for f in findings if f.severity == "error"]
    hint = next((f.hint for f in errors if f.hint), explained_by(errors[0].code) if errors else "")
    head = f"refused `{shown(what.strip('`'), 200)}`. Nothing was stored"
    if errors and all(f.code == "E_BASE_MISMATCH" for f in errors):
        return BaseMismatch("\n".join([f"{head}: it does not fit the base", *(f"  {f}" for f in errors)]), hint=hint)
    return RefusedAdapter(head, [(f.code, str(f).removeprefix(f"[{f.code}] ")) for f in errors], hint=hint)
