"""One local root: the store, the installed folders, the index over them and the base records.

An adapter is installed when its folder exists:

    adapters/<12 hex of the base, or unknown>/<[namespace--]name>/<version>[-r<rank>]/

a plain PEFT folder of hard links into the store, usable by PEFT, vLLM and llama.cpp tools as it is. The index is a
cache over these folders. A library is a `Source` and a `Destination` (`transfer.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from adapterhub.core.digests import Digest, Progress, canonical_json, hex_of, strict_json
from adapterhub.core.disk.claims import claim, living
from adapterhub.core.disk.files import read_plain, sync_folder, write_file
from adapterhub.core.disk.real_folder import make_folder
from adapterhub.core.errors import (
    AdapterNotFound,
    BaseMismatch,
    MalformedManifest,
    NotAllowed,
    RefusedAdapter,
    StoreLocked,
    shown,
)
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.base.fingerprint import BaseFingerprint, compare
from adapterhub.formats.card import card_for
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, MEDIA_TYPES, BaseRef, FileEntry, Manifest
from adapterhub.formats.release import Provenance, Release
from adapterhub.library.bases.records import BaseRecord, Bases
from adapterhub.library.intake.description import Description, describe
from adapterhub.library.intake.refusals import checked, ensure_no_errors, exists_otherwise, refused
from adapterhub.library.intake.staging import Staging
from adapterhub.library.store.blobs import Store, WriteIntent
from adapterhub.library.store.catalog import Broken, Catalog, Installed, Swept, build_folders, folder_below
from adapterhub.library.store.origins import Origin, Origins
from adapterhub.library.store.signatures import link_signature, signature_objects
from adapterhub.library.store.sweep import GRACE_S, sweep
from adapterhub.trust.signing.provenance import provenance_of
from adapterhub.trust.verify import Finding, Report, open_subject, verify_folder

UNKNOWN_BASE = "unknown"
_OWN_MANIFEST = ".manifest"
"""Where the manifest is staged, under a name that no file of an adapter has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What `add` or an install did; `created` is False when the build was there already."""

    build: Installed
    report: Report
    created: bool


Names = Callable[["Library", AdapterSpec], "Installed | None"]
"""What a name means where somebody works, before the newest build by that name: in a project, what it locks."""


class Library:
    """The library under `root`. Cheap to make; nothing is written until something is added."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)
        self.bases = Bases(root / "bases", root / "cache" / "fingerprints")
        self.catalog = Catalog(self.store, self.bases, self.installed)
        self.origins = Origins(self.store)
        self.names: Names | None = None

    @property
    def label(self) -> str:
        """The library in words."""
        return f"library `{self.root}`"

    @property
    def place(self) -> str:
        """Where it can be found again."""
        return os.path.abspath(self.root)  # noqa: PTH100 - `resolve` would lose the user's own name for it

    # ------------------------------------------------------------ what is installed
    def installed(self, *names: str) -> Iterator[Installed]:
        """Every installed build, read from the folders; `broken` lists those that cannot be read.

        `names` are patterns for the names of folders, such as `acme--*`.
        """
        for folder in build_folders(self.root, *names):
            with contextlib.suppress(FileNotFoundError, MalformedManifest):  # removed since it was listed, or broken
                yield self.read_build(folder)

    def broken(self) -> list[Broken]:
        """Folders that should hold a build and do not say which, with the reason."""
        found = [Broken(folder=path, reason="is a link") for path in build_folders(self.root, links=True)]
        for folder in build_folders(self.root):
            try:
                build = self.read_build(folder)
            except MalformedManifest as error:
                found.append(Broken(folder=folder, reason="; ".join(error.problems)))
                continue
            except OSError as error:
                if os.path.lexists(folder):
                    found.append(Broken(folder=folder, reason=f"`{MANIFEST_FILE}`: {error.strerror}"))
                continue
            if build.folder != self.folder_for(build.manifest, build.namespace):
                found.append(Broken(folder=folder, reason=f"holds `{build.spec}`, which belongs elsewhere"))
            elif not self.store.has_manifest(build.manifest.digest) and os.path.lexists(folder):
                reason = f"its manifest {build.manifest.digest} is not one that the store has"
                found.append(Broken(folder=folder, reason=reason))
        return found

    def builds_named(self, name: str, namespace: str | None = None) -> list[Installed]:
        """Installed builds by that name; without a namespace, those of every namespace."""
        found = []
        for folder in build_folders(self.root, *([f"{namespace}--{name}"] if namespace else [name, f"*--{name}"])):
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                found.append(self.read_build(folder))
        return found

    def releases(self, spec: AdapterSpec) -> list[Release]:
        """This library as a source."""
        return [
            Release(manifest=build.manifest, namespace=build.namespace, origin=self.label, published_at=build.added_at)
            for build in self.builds_named(spec.name, spec.namespace)
        ]

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:  # noqa: ARG002 - the Source protocol
        """One file of a build."""
        return self.store.open_blob(entry.sha256)

    def provenance(self, release: Release) -> Provenance:
        """The signature beside an installed build."""
        return provenance_of(self.folder_for(release.manifest, release.namespace))

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

    def read_build(self, folder: Path) -> Installed:
        """The build in an installed folder."""
        path = folder / MANIFEST_FILE
        manifest = Manifest.read(path)
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
        ensure_no_errors(str(folder), findings)
        taken = [subject.listing.taken[name] for name in sorted(subject.listing.taken.keys() & MEDIA_TYPES.keys())]
        self.store.need_room(sum(entry.size_bytes for entry in taken))
        with self.store.intent(f"add {description.name}") as intent:
            entries = []
            for file in taken:
                name = file.name
                try:
                    with file.open() as source:
                        digest, size = self.store.stage_file(source, intent.folder / name, progress, file.size_bytes)
                except ValueError:  # longer than it was: without this bound a file that grows would fill the disk
                    found = ("E_CONTAINER", f"{name}: became longer while it was read")
                    raise RefusedAdapter(f"refused `{shown(str(folder), 200)}`. Nothing was stored", [found]) from None
                entries.append(FileEntry(path=name, sha256=digest, size_bytes=size, media_type=MEDIA_TYPES[name]))
            manifest = describe(subject, entries, description, base)
            release = Release(manifest=manifest, namespace=namespace, origin=str(folder))
            added = self.publish_staged(intent, release, base, findings)
        self.note_origin(added.build, os.path.abspath(folder))  # noqa: PTH100 - as in `place`
        return added

    @contextlib.contextmanager
    def receive(self, release: Release, base: BaseRecord | None = None) -> Iterator[Staging]:
        """This library as a destination; see `transfer.Destination`.

        `base` is what the build is checked against when it declares no fingerprint, or one not registered here.
        """
        missing = [entry for entry in release.manifest.files if not self.store.has_blob(entry.sha256)]
        self.store.need_room(sum(entry.size_bytes for entry in missing))
        with self.store.intent(f"install {release.full_name}") as intent:
            intent.need(_objects_of(release.manifest))
            fingerprint = release.manifest.base.fingerprint
            declared = self.bases.by_fingerprint(fingerprint) if fingerprint else None
            held_against = declared or base
            yield Staging(self.store, intent, release, lambda: self.publish_staged(intent, release, held_against))

    def note_origin(self, build: Installed, place: str) -> None:
        """Remember that `build` can be had at `place`, a URL or an absolute path."""
        if Path(place).is_relative_to(self.place):  # a merge, made in a folder that is gone
            return
        with contextlib.suppress(NotAllowed):  # only a help: an install that changed nothing needs no right to write
            self.origins.record(Origin(adapter=build.manifest.digest, name=build.full_name, place=place))

    def publish_staged(
        self, intent: WriteIntent, release: Release, base: BaseRecord | None, seen: Sequence[Finding] = ()
    ) -> Added:
        """Check the staged files against the manifest and make them an installed build."""
        manifest, namespace = release.manifest, release.namespace
        report = checked(intent.folder, manifest, base, seen)
        ensure_no_errors(release.origin, report.findings)
        final = self.folder_for(manifest, namespace)
        if present := self._present(final, manifest):
            return Added(build=present, report=report, created=False)
        intent.need([*_objects_of(manifest), *signature_objects(intent.folder)])
        # the slow part, bytes to the disk, comes before the lock that all writers share
        for entry in manifest.files:
            self.store.adopt(intent.folder / entry.path, entry.sha256)
        with self.store.os_errors_as_refusals():
            write_file(intent.folder / _OWN_MANIFEST, manifest.to_bytes())
        self.store.adopt_manifest(intent.folder / _OWN_MANIFEST, manifest.digest)
        with self.store.lock("publish", exclusive=True):
            if present := self._present(final, manifest):
                return Added(build=present, report=report, created=False)
            with self.catalog.changing():
                self._link_folder(manifest, intent.folder / "view", final)
                build = self.read_build(final)
                self.catalog.put(build)
        return Added(build=build, report=report, created=True)

    def _present(self, final: Path, manifest: Manifest) -> Installed | None:
        """What is installed in that folder, if it is the very same.

        Raises:
            ReleaseExists: it is something else.
            MalformedManifest: it cannot be read any more.
        """
        if not os.path.lexists(final):
            return None
        try:
            existing = self.read_build(final)
        except FileNotFoundError:
            if not os.path.lexists(final):  # removed since
                return None
            hint = "`adapt doctor --repair` mends what it can"
            raise MalformedManifest(str(final), [f"{MANIFEST_FILE}: is missing"], hint=hint) from None
        if existing.manifest.digest != manifest.digest:
            raise exists_otherwise(existing, manifest)
        return existing

    def _link_folder(self, manifest: Manifest, view: Path, final: Path) -> None:
        """The plain PEFT folder of links, complete before it gets its name."""
        with self.store.os_errors_as_refusals():
            make_folder(view)
            for entry in manifest.files:
                self.store.link(entry.sha256, view / entry.path)
            self.store.link_manifest(manifest.digest, view / MANIFEST_FILE)
            write_file(view / CARD_FILE, card_for(manifest).encode())
            link_signature(self.store, view.parent, view)
            make_folder(final.parent)
            view.rename(final)
            try:
                # The one sync of a folder: journals keep the order of names, so the objects' own names and the links
                # in this folder, all made earlier, are on the disk with it.
                sync_folder(final.parent)
            except OSError:
                final.rename(view)  # nobody knows what is on the disk: a failed sync is a failed add
                raise

    # ------------------------------------------------------------ remove, gc, pin
    def remove(self, builds: Sequence[Installed]) -> None:
        """Take builds out of the library; their bytes stay in the store until `gc`."""
        with self.store.staging() as trash, self.store.lock("publish", exclusive=True):
            self._refuse_leased(builds)
            with self.catalog.changing(), self.store.os_errors_as_refusals():
                for number, build in enumerate(builds):
                    with contextlib.suppress(FileNotFoundError):  # somebody else was quicker
                        build.folder.rename(trash / str(number))
                    with contextlib.suppress(OSError):  # other versions are still there
                        build.folder.parent.rmdir()
                        build.folder.parent.parent.rmdir()
                self.catalog.forget(builds)

    def _refuse_leased(self, builds: Sequence[Installed]) -> None:
        leases = living(self._leases)
        for build in builds:
            holders = [str(c.holder) for c in leases if c.what == folder_below(self.root, build)]
            if holders:
                raise StoreLocked(
                    f"`{build.full_name}` {build.manifest.label} is in use by {', '.join(holders)}. "
                    "Nothing was removed",
                    hint="stop that process first, or remove the adapter later",
                )

    @contextlib.contextmanager
    def lease(self, build: Installed) -> Iterator[Path]:
        """The build's folder, kept as it is while the block runs: `remove` refuses it and `gc` spares its objects.

        For processes that read it for long. The lease is a file in `leases/` that the process holds by `flock`, so it
        ends with the process however that ends; children made by fork hold it, too.

        Raises:
            AdapterNotFound: it is not installed any more.
            NotAllowed: the library cannot be written.
        """
        with contextlib.ExitStack() as stack:
            # both locks shared: no remove and no gc is between its look at the leases and what it does then
            with (
                self.store.lock("store", exclusive=False),
                self.store.lock("publish", exclusive=False),
                self.store.os_errors_as_refusals(),
            ):
                if not (build.folder / MANIFEST_FILE).is_file():
                    raise self.not_installed(build.full_name)
                stack.enter_context(claim(self._leases, folder_below(self.root, build), _objects_of(build.manifest)))
            yield build.folder

    @property
    def _leases(self) -> Path:
        return self.root / "leases"

    def gc(self, *, grace_s: float = GRACE_S, dry_run: bool = False, wait_s: float = 30.0) -> Swept:
        """Delete objects that no installed build, project, running add or lease names, sparing those under `grace_s`.

        It waits for nobody who is at work for long: what they need is written in their claims.
        """
        from adapterhub.library.store.roots import (  # reads recipes, for which no other use waits
            KnownProjects,
            roots_of,
        )

        with self.store.lock("store", exclusive=True, wait_s=wait_s):
            # claims before folders: one that ends in between has made its folder by then
            claims = (*living(self.root / "intents"), *living(self._leases))
            keep = {digest for one in claims for digest in one.digests} | roots_of(KnownProjects(self.root).all())
            for build in self.installed():
                keep.update([*_objects_of(build.manifest), *signature_objects(build.folder)])
            gone, spared = sweep(self.store, keep, grace_s=grace_s, dry_run=dry_run)
        return Swept(gone=tuple(gone), spared=tuple(spared), claims=claims)

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
        ensure_no_errors(build.full_name, checked(build.folder, build.manifest, base, ()).findings)
        self.store.write(self._pin_path(build.manifest), canonical_json(base.fingerprint.to_json()))
        name, digest = build.manifest.name, build.manifest.digest
        with self.store.lock("publish", exclusive=True), self.catalog.changing():
            for same in self.installed(name, f"*--{name}"):  # the pin holds under every full name
                if same.manifest.digest == digest:
                    self.catalog.put(same)
        return replace(build, base=self._pinned(build.manifest))

    def allow_mismatch(self, build: Installed, base: BaseRecord) -> None:
        """Record that somebody chose to run `build` on `base`, which has other weights of the same shapes."""
        note = {"adapter": build.manifest.digest, "base": base.fingerprint.weights, "named": base.label}
        self.store.write(self._mismatch_path(build.manifest, base.fingerprint), canonical_json(note))

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
            value = strict_json(read_plain(path, 64 << 20), limit_bytes=64 << 20)
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


def _objects_of(manifest: Manifest) -> list[Digest]:
    """Everything in the store that a build is made of."""
    return [manifest.digest, *(entry.sha256 for entry in manifest.files)]
