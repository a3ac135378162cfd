"""One local root: the store, the installed folders, the index over them and the base records.

An adapter is installed when its folder exists:

    adapters/<12 hex of the base, or unknown>/<[namespace--]name>/<version>[-r<rank>]/

a plain PEFT folder of hard links into the store, usable by PEFT, vLLM and llama.cpp tools as it is. The index is a
cache over these folders. A library is a `Source` and a `Destination` (`transfer.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, cast

from adapterhub.bases import BaseRecord, Bases
from adapterhub.cards import card_for
from adapterhub.catalog import Catalog, Installed
from adapterhub.description import Description, describe
from adapterhub.digests import Digest, Progress, canonical_json, copy_hashed, hex_of, strict_json
from adapterhub.errors import (
    AdapterNotFound,
    BaseMismatch,
    DigestMismatch,
    MalformedManifest,
    RefusedAdapter,
    ReleaseExists,
    RemoteUnreachable,
    shown,
)
from adapterhub.fingerprint import BaseFingerprint, compare
from adapterhub.manifest import CARD_FILE, MANIFEST_FILE, MEDIA_TYPES, BaseRef, FileEntry, Manifest
from adapterhub.specs import AdapterSpec
from adapterhub.store import GRACE_S, Store, sync_folder, write_durably
from adapterhub.transfer import Continued, Release
from adapterhub.verify import Finding, Report, open_subject, verify_folder

UNKNOWN_BASE = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What `add` or an install did; `created` is False when the build was there already."""

    build: Installed
    report: Report
    created: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What `gc` took, or would take, and what it spared for being young; sizes in bytes."""

    gone: tuple[tuple[Path, int], ...]
    spared: tuple[tuple[Path, int], ...]


class Library:
    """The library under `root`. Cheap to make; nothing is written until something is added."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)
        self.bases = Bases(root / "bases", root / "cache" / "fingerprints")
        self.catalog = Catalog(self.store, self.bases, self.installed)

    @property
    def label(self) -> str:
        """The library in words."""
        return f"library `{self.root}`"

    # ------------------------------------------------------------ what is installed
    def installed(self) -> Iterator[Installed]:
        """Every installed build, read from the folders."""
        for path in sorted((self.root / "adapters").glob(f"*/*/*/{MANIFEST_FILE}")):
            yield self._read(path.parent)

    def builds_named(self, name: str, namespace: str | None = None) -> list[Installed]:
        """Installed builds by that name; without a namespace, those of every namespace."""
        patterns = [f"*/{namespace}--{name}"] if namespace else [f"*/{name}", f"*/*--{name}"]
        root = self.root / "adapters"
        return [self._read(p.parent) for g in patterns for p in sorted(root.glob(f"{g}/*/{MANIFEST_FILE}"))]

    def releases(self, spec: AdapterSpec) -> list[Release]:
        """This library as a source."""
        return [
            Release(manifest=build.manifest, namespace=build.namespace, origin=self.label)
            for build in self.builds_named(spec.name, spec.namespace)
        ]

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:  # noqa: ARG002 - the Source protocol
        """One file of a build."""
        return self.store.open_blob(entry.sha256)

    def not_installed(self, name: str) -> AdapterNotFound:
        """The refusal for a name that is not installed, with the nearest one that is."""
        hint = self.nearest(name) or "`adapt list` shows what is installed"
        return AdapterNotFound(f"no adapter `{shown(name)}` is installed here", hint=hint)

    def nearest(self, name: str) -> str:
        """A question with the installed name nearest to `name`; "" when none is near."""
        import difflib

        near = difflib.get_close_matches(name, self.catalog.read(lambda index: index.names()), n=1)
        return f"did you mean `{near[0]}`?" if near else ""

    def base_label(self, base: BaseRef) -> str:
        """A base as one would type it after `@` here: its alias, else its digest, else its Hub id; "" if unknown."""
        if base.fingerprint is None:
            return base.hints.hub_id or ""
        record = self.bases.by_fingerprint(base.fingerprint)
        return record.alias if record else base.fingerprint.weights[:19]

    def _read(self, folder: Path) -> Installed:
        path = folder / MANIFEST_FILE
        manifest = Manifest.parse(path.read_bytes(), str(path))
        namespace, _, _name = folder.parent.name.rpartition("--")
        return Installed(
            manifest=manifest,
            namespace=namespace or None,
            folder=folder,
            base=self._pinned(manifest),
            added_at=folder.stat().st_mtime,
        )

    def folder_for(self, manifest: Manifest, namespace: str | None) -> Path:
        """Where a build is or would be installed."""
        fingerprint = manifest.base.fingerprint
        base = hex_of(fingerprint.weights)[:12] if fingerprint else UNKNOWN_BASE
        name = f"{namespace}--{manifest.name}" if namespace else manifest.name
        rank = f"-r{manifest.rank}" if manifest.rank else ""
        return self.root / "adapters" / base / name / f"{manifest.version}{rank}"

    # ------------------------------------------------------------ add
    def add(
        self,
        folder: Path,
        description: Description,
        *,
        base: BaseRecord | None = None,
        namespace: str | None = None,
        progress: Progress | None = None,
    ) -> Added:
        """Take a PEFT output folder in, under the name and version in `description`.

        With `base`, its fingerprint is recorded as what the adapter was made for; without, the base that the config
        names is kept as a hint and the fingerprint stays unknown until it is pinned.

        Raises:
            RefusedAdapter: the findings say why; nothing was stored.
            BaseMismatch: it does not fit `base`.
            ReleaseExists: the name and version exist with other bytes.
        """
        subject, findings = open_subject(folder, base_tensors=base.tensors if base else None)
        if subject is None:
            raise refused(str(folder), findings)
        refuse_errors(str(folder), findings)
        with self._locked_for_adding(), self.store.staging() as staging:
            entries = []
            for name in sorted(subject.listing.taken.keys() & MEDIA_TYPES.keys()):
                with subject.listing.taken[name].open() as source:
                    digest, size = self.stage_file(source, staging / name, progress)
                entries.append(FileEntry(path=name, sha256=digest, size_bytes=size, media_type=MEDIA_TYPES[name]))
            manifest = describe(subject, entries, description, base)
            release = Release(manifest=manifest, namespace=namespace, origin=str(folder))
            return self.publish_staged(staging, release, base, findings)

    def stage_file(
        self, source: IO[bytes], target: Path, progress: Progress | None, limit_bytes: int | None = None
    ) -> tuple[Digest, int]:
        """Copy into the staging folder; digest and size in bytes."""
        try:
            with target.open("wb") as sink:
                return copy_hashed(source, sink, progress, limit_bytes=limit_bytes)
        except OSError as error:
            raise self.store.explain(error) from error

    @contextlib.contextmanager
    def receive(self, release: Release, base: BaseRecord | None = None) -> Iterator[Incoming]:
        """This library as a destination; see `transfer.Destination`.

        `base` is what the build is checked against when it declares no fingerprint, or one not registered here.
        """
        with self._locked_for_adding(), self.store.staging() as staging:
            fingerprint = release.manifest.base.fingerprint
            declared = self.bases.by_fingerprint(fingerprint) if fingerprint else None
            yield Incoming(self, staging, release, declared or base)

    def _locked_for_adding(self) -> contextlib.AbstractContextManager[None]:
        # shared: any number of adders at once, but none while gc runs
        return self.store.lock("store", exclusive=False)

    def publish_staged(
        self, staging: Path, release: Release, base: BaseRecord | None, seen: Sequence[Finding] = ()
    ) -> Added:
        """Check the staged files against the manifest and make them an installed build; the lock `store` is held."""
        manifest, namespace = release.manifest, release.namespace
        report = _checked(staging, manifest, base, seen)
        refuse_errors(release.origin, report.findings)
        final = self.folder_for(manifest, namespace)
        with self.store.lock("publish", exclusive=True):
            if final.exists():
                existing = self._read(final)
                if existing.manifest.digest == manifest.digest:
                    return Added(build=existing, report=report, created=False)
                raise _exists(existing, manifest)
            for entry in manifest.files:
                self.store.adopt(staging / entry.path, entry.sha256, entry.size_bytes)
            self.store.put_manifest(manifest)
            with self.catalog.changing():
                self._link_folder(manifest, final)
                build = self._read(final)
                self.catalog.put(build)
        return Added(build=build, report=report, created=True)

    def _link_folder(self, manifest: Manifest, final: Path) -> None:
        with self.store.staging() as view:
            for entry in manifest.files:
                self.store.link(entry.sha256, view / entry.path)
            (view / MANIFEST_FILE).write_bytes(manifest.to_bytes())
            (view / CARD_FILE).write_text(card_for(manifest), encoding="utf-8")
            sync_folder(view)
            try:
                final.parent.mkdir(parents=True, exist_ok=True)
                view.rename(final)
            except OSError as error:
                raise self.store.explain(error) from error
            sync_folder(final.parent)

    # ------------------------------------------------------------ remove, gc, pin
    def remove(self, builds: Sequence[Installed]) -> None:
        """Take builds out of the library; their bytes stay in the store until `gc`."""
        with self.store.lock("publish", exclusive=True), self.catalog.changing(), self.store.staging() as trash:
            for number, build in enumerate(builds):
                build.folder.rename(trash / str(number))
                with contextlib.suppress(OSError):  # other versions are still there
                    build.folder.parent.rmdir()
                    build.folder.parent.parent.rmdir()
            digests = [build.manifest.digest for build in builds]
            self.catalog.forget(digests)

    def gc(self, *, grace_s: float = GRACE_S, dry_run: bool = False) -> Swept:
        """Delete objects that no installed build names, sparing those younger than `grace_s` seconds."""
        with self.store.lock("store", exclusive=True):
            keep: set[Digest] = set()
            for build in self.installed():
                keep.add(build.manifest.digest)
                keep.update(entry.sha256 for entry in build.manifest.files)
            gone, spared = self.store.sweep(keep, grace_s=grace_s, dry_run=dry_run)
        return Swept(gone=tuple(gone), spared=tuple(spared))

    def pin(self, build: Installed, base: BaseRecord) -> Installed:
        """Record that `build`, which declares no fingerprint, was made for `base`; the manifest stays as it is.

        Raises:
            BaseMismatch: it declares another base, or its tensors do not fit this one.
        """
        verdict = compare(build.base.fingerprint, base.fingerprint).verdict
        if build.base.fingerprint is not None and not verdict.allows_attach:
            raise BaseMismatch(
                f"`{build.full_name}` {build.manifest.version} is for base {build.base.label}, not `{base.alias}`"
            )
        refuse_errors(build.full_name, _checked(build.folder, build.manifest, base, ()).findings)
        write_durably(self._pin_path(build.manifest), canonical_json(base.fingerprint.to_json()))
        pinned = replace(build, base=self._pinned(build.manifest))
        with self.store.lock("publish", exclusive=True), self.catalog.changing():
            self.catalog.put(pinned)
        return pinned

    def allow_mismatch(self, build: Installed, base: BaseRecord) -> None:
        """Record that somebody chose to run `build` on `base`, which has other weights of the same shapes."""
        note = {"adapter": build.manifest.digest, "base": base.fingerprint.weights, "named": base.label}
        write_durably(self._mismatch_path(build.manifest, base.fingerprint), canonical_json(note))

    def mismatch_allowed(self, build: Installed, base: BaseFingerprint) -> bool:
        """Whether `allow_mismatch` was recorded for this build and these weights."""
        return self._mismatch_path(build.manifest, base).is_file()

    def _mismatch_path(self, manifest: Manifest, base: BaseFingerprint) -> Path:
        return self.root / "mismatches" / f"{hex_of(manifest.digest)}-{hex_of(base.weights)[:12]}.json"

    def _pin_path(self, manifest: Manifest) -> Path:
        return self.root / "pins" / f"{hex_of(manifest.digest)}.json"

    def _pinned(self, manifest: Manifest) -> BaseRef:
        if manifest.base.fingerprint is not None:
            return manifest.base
        path = self._pin_path(manifest)
        try:
            value = strict_json(path.read_bytes(), limit_bytes=64 << 20)
            fingerprint = BaseFingerprint.from_json(value, "pin")
        except FileNotFoundError:
            return manifest.base
        except ValueError as error:
            raise MalformedManifest(str(path), [str(error)], hint="delete it and pin the base again") from None
        return BaseRef(fingerprint=fingerprint, hints=manifest.base.hints)

    # ------------------------------------------------------------ verify
    def verify(self, build: Installed, base: BaseRecord | None = None, progress: Progress | None = None) -> Report:
        """Every check over an installed build, against `base` or the registered base it was made for."""
        fingerprint = build.base.fingerprint
        record = base or (self.bases.by_fingerprint(fingerprint) if fingerprint else None)
        manifest = build.manifest.with_base(build.base)
        return verify_folder(
            build.folder,
            base_tensors=record.tensors if record else None,
            base_fingerprint=record.fingerprint if record else None,
            manifest=manifest,
            progress=progress,
        )


class Incoming:
    """One build on its way into a library; see `transfer.Receiver`."""

    def __init__(self, library: Library, staging: Path, release: Release, base: BaseRecord | None) -> None:
        self._library = library
        self._staging = staging
        self._release = release
        self._base = base
        self.added: Added | None = None

    def has(self, entry: FileEntry) -> bool:
        """Take the bytes from the store, if they are there."""
        if not self._library.store.has_blob(entry.sha256):
            return False
        target = self._staging / entry.path
        if not target.exists():
            self._library.store.link(entry.sha256, target)
        return True

    def put(self, entry: FileEntry, stream: IO[bytes], progress: Progress | None = None) -> None:
        """Stage one file, hashed while it flows; what an earlier try left is not asked for again."""
        target, part = self._staging / entry.path, self._library.store.part_path(entry.sha256)
        try:
            digest, _ = self._library.stage_file(
                self._continued(part, stream), target, progress, limit_bytes=entry.size_bytes
            )
        except ValueError as error:
            raise DigestMismatch(entry.path, expected=f"{entry.size_bytes} bytes", actual=str(error)) from None
        except (RemoteUnreachable, KeyboardInterrupt, SystemExit):
            with contextlib.suppress(OSError):
                target.rename(part)
            raise
        if digest != entry.sha256:
            raise DigestMismatch(
                f"{self._release.full_name} {entry.path} from {self._release.origin}",
                expected=entry.sha256,
                actual=digest,
                hint="nothing was stored; ask whoever runs the source",
            )

    def _continued(self, part: Path, stream: IO[bytes]) -> IO[bytes]:
        """The stream, begun with what an earlier try left, where the stream can go on from there."""
        begun = self._staging / part.name
        if not stream.seekable():
            return stream
        try:
            part.rename(begun)  # ours alone from here on
            return cast("IO[bytes]", Continued(begun.open("rb"), stream))
        except OSError:
            return stream

    def publish(self) -> None:
        """Verify and install."""
        self.added = self._library.publish_staged(self._staging, self._release, self._base)


def _checked(folder: Path, manifest: Manifest, base: BaseRecord | None, seen: Sequence[Finding]) -> Report:
    """Every check over a folder that is meant to be `manifest`."""
    report = verify_folder(
        folder,
        base_tensors=base.tensors if base else None,
        base_fingerprint=base.fingerprint if base and manifest.base.fingerprint else None,
        manifest=manifest,
    )
    return Report.of([*seen, *report.findings], report.facts)


def refuse_errors(what: str, findings: Sequence[Finding]) -> None:
    """Raise `refused` when a finding is an error."""
    if any(f.severity == "error" for f in findings):
        raise refused(what, findings)


def refused(what: str, findings: Sequence[Finding]) -> RefusedAdapter | BaseMismatch:
    """The refusal that the errors among `findings` call for."""
    errors = [f for f in findings if f.severity == "error"]
    hint = next((f.hint for f in errors if f.hint), "`adapt verify FOLDER` shows every finding")
    head = f"refused `{shown(what, 200)}`. Nothing was stored"
    if errors and all(f.code == "E_BASE_MISMATCH" for f in errors):
        return BaseMismatch("\n".join([f"{head}: it does not fit the base", *(f"  {f}" for f in errors)]), hint=hint)
    return RefusedAdapter(head, [(f.code, str(f).removeprefix(f"[{f.code}] ")) for f in errors], hint=hint)


def _exists(existing: Installed, manifest: Manifest) -> ReleaseExists:
    old, new = existing.manifest.to_json(), manifest.to_json()
    differs = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return ReleaseExists(
        f"`{existing.full_name}` {manifest.version} exists with other content (differs in: {', '.join(differs)}); "
        f"a release never changes. Nothing was stored",
        hint="give the new one its own `--version`, or `adapt remove` the old one first",
    )
