"""One local root: the store, the installed folders, the index over them and the base records.

An adapter is installed when its folder exists:

    adapters/<12 hex of the base, or unknown>/<[namespace--]name>/<version>[-r<rank>]/

a plain PEFT folder of hard links into the store, which PEFT, vLLM and llama.cpp tools can read. The index is a cache
over these folders. A library is a `Source` and a `Destination` (`transfer.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.core.digests import Digest, Progress
from adapterhub.core.disk.files import make_folder, sync_folder, write_file
from adapterhub.core.disk.root import absolute
from adapterhub.core.errors import BaseMismatch, MalformedManifest, NotAllowed, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, MEDIA_TYPES, SIGNATURE_FILE, Manifest
from adapterhub.formats.release import Release
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import Added, InstalledBuilds
from adapterhub.library.intake.clashes import Bump, check_naming, exists_otherwise
from adapterhub.library.store.blobs import WriteIntent, settle_objects
from adapterhub.library.store.catalog import Installed, Swept, build_folder_names, objects_of
from adapterhub.library.store.leases import Leases
from adapterhub.library.store.origins import Origin
from adapterhub.library.store.sweep import GRACE_S, Steps, objects_of_folders, sweep

if TYPE_CHECKING:
    from adapterhub.formats.alias import Alias
    from adapterhub.library.intake.description import Description
    from adapterhub.library.intake.staging import Staging
    from adapterhub.trust.findings import Finding
    from adapterhub.trust.verify import Report, Subject

_MOST_NAMED = 3  # builds of the same weights
_OWN_MANIFEST = ".manifest"  # the name of the staged one, which no file of an adapter has


NameResolver = Callable[["Library", AdapterSpec], "Installed | None"]
"""Finds the build that a name means in some context, such as the build that a project locks; None: no such meaning."""


class Library(InstalledBuilds):
    """The library under `root`. Cheap to make; the first write makes the folder."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._leases = Leases(self.store)
        self.resolve_name: NameResolver | None = None
        self.project_alias: Callable[[AdapterSpec], Alias | None] = lambda _spec: None  # its aliases come first
        self.note_choice: Callable[[str], None] = lambda _text: None  # the face of the library says it
        self.warn_of_choice: Callable[[str], None] = lambda _text: None

    def __reduce__(self) -> tuple[object, ...]:
        """Go to another process as the library of the same folder."""
        return type(self), (self.root,)

    def past_damage(self) -> Library:
        """Open the same folder for a check of everything, which goes on past damaged records of bases."""
        library = Library(self.root)
        library.bases.passes_over_damage = True
        return library

    # ------------------------------------------------------------ add
    def add(
        self,
        folder: Path,
        description: Description,
        *,
        base: BaseRecord | None = None,
        namespace: str | None = None,
        bump: Bump | None = None,
        variant: bool = False,
        guess_base: bool = True,
        progress: Progress | None = None,
    ) -> Added:
        """Install a PEFT output folder under the name and version in `description`.

        The manifest records the fingerprint of `base`. Without `base` it keeps the base that the config names as a
        hint, and the fingerprint stays unknown until it is pinned; a config that names a folder is then refused, unless
        `guess_base` is False: the caller leaves the base unknown. With `bump`, a name that has builds for this base
        gets its next version. With `variant`, a build of another rank joins the version.

        Raises:
            RefusedAdapter: the findings give the reasons; nothing was stored.
            BaseMismatch: it does not fit `base`.
            ReleaseExists: the name and version exist for this base with other bytes, or without `variant` at another
                rank.
            UsageProblem: `bump` and `variant` are both given, or the description holds what no manifest may.
            MalformedManifest: its metrics or annotations are no JSON.
        """
        from adapterhub.library.intake.description import base_declared, check_description, describe
        from adapterhub.library.intake.staging import ensure_no_errors, refused, stage_files
        from adapterhub.trust.verify import open_subject

        check_naming(bump, variant=variant)
        check_description(description)
        tensors = base.weights if base else None
        kind = base.hints.model_type if base else None
        subject, findings = open_subject(
            folder, base_tensors=tensors, base_type=kind, base_named=not guess_base, progress=progress
        )
        if subject is None:
            raise refused(str(folder), findings)
        subject = subject.read_as(description.dialect)
        ensure_no_errors(str(folder), findings)
        base = base and base.narrowed((p.module for p in subject.keys.pairs), description.annotations)
        fingerprint, rank = base_declared(subject.config, description, base).fingerprint, subject.facts.rank
        is_made_here = Path(absolute(folder)).is_relative_to(self.place)  # a merge, in a folder that goes at once
        what = ("the result" if is_made_here else f"`{shown(str(folder), 200)}`") + (f" (rank {rank})" if rank else "")
        there = self.namesakes(description.name, namespace, fingerprint)
        if bump is None:
            there.ensure_room(description.version, what, rank=rank, variant=variant)
        taken = [subject.listing.taken[name] for name in sorted(subject.listing.taken.keys() & MEDIA_TYPES.keys())]
        self.store.need_room(sum(entry.size_bytes for entry in taken))
        with self.store.intent(f"add {description.name}") as intent:
            entries = stage_files(self.store, intent, subject, taken, progress)
            manifest = describe(subject, entries, description, base)
            if bump is not None:
                manifest = there.named(manifest, bump)
            there.ensure_is_new(manifest, what, variant=variant)  # the checks of the numbers take longer
            still_new = partial(there.ensure_is_new, manifest, what, variant=variant)
            release = Release(manifest=manifest, namespace=namespace, origin=str(folder))
            added = self.publish_staged(intent, release, base, findings, still_new, scanned=subject)
        self.note_origin(added.build, absolute(folder))
        return added

    @contextlib.contextmanager
    def receive(self, release: Release, base: BaseRecord | None = None) -> Iterator[Staging]:
        """Take a build in: this library as a destination; see `transfer.Destination`.

        The build is checked against `base` if it declares no fingerprint, or one of no registered base.
        """
        from adapterhub.library.intake.staging import Staging

        files = release.manifest.files
        self.store.need_room(sum(entry.size_bytes for entry in files if not self.store.has_blob(entry.sha256)))
        with self.store.intent(f"install {release.full_name}") as intent:
            intent.need(objects_of(release.manifest))
            fingerprint = release.manifest.base.fingerprint
            declared = self.bases.by_fingerprint(fingerprint)
            checked_against = declared or base
            yield Staging(self.store, intent, release, partial(self.publish_staged, intent, release, checked_against))

    def note_origin(self, build: Installed, place: str, repository: str = "") -> None:
        """Record that `place`, a URL or an absolute path, offers `build`, and in which repository of a server."""
        with contextlib.suppress(NotAllowed):  # optional: an install that changes nothing also works read-only
            if Path(place).is_relative_to(self.place):  # a merge, whose folder is deleted at once
                self.origins.record_made_here(build.manifest.digest, build.full_name)
                return
            digest, name = build.manifest.digest, build.full_name
            self.origins.record(Origin(adapter=digest, name=name, place=place, repository=repository))

    def publish_staged(
        self,
        intent: WriteIntent,
        release: Release,
        base: BaseRecord | None,
        earlier: Sequence[Finding] = (),
        still_allowed: Callable[[], None] | None = None,
        *,
        scanned: Subject | None = None,
        durable: bool = True,
    ) -> Added:
        """Check the staged files against the manifest and make them an installed build.

        `still_allowed` runs while no other process can publish, and may raise. `scanned` as for `open_subject`. Without
        `durable` a power cut may leave a part of it, until `settle`.
        """
        from adapterhub.library.intake.staging import checked, ensure_no_errors, signature_objects

        manifest, namespace = release.manifest, release.namespace
        Manifest.parse(manifest.to_bytes(), release.origin)  # no build is published that cannot be read back
        report = checked(intent.folder, manifest, base, earlier, scanned, judge=self.bases.judged)
        ensure_no_errors(release.origin, report.findings)
        final = self.folder_for(manifest, namespace)
        if present := self._present(final, manifest):
            return Added(build=present, report=report, created=False)
        intent.need([*objects_of(manifest), *signature_objects(intent.folder)])
        # the slow part, bytes to the disk, comes before the lock that all writers share
        for entry in manifest.files:
            self.store.adopt(intent.folder / entry.path, entry.sha256, durable=durable)
        with self.store.os_errors_as_refusals():
            write_file(intent.folder / _OWN_MANIFEST, manifest.to_bytes())
        self.store.adopt(intent.folder / _OWN_MANIFEST, manifest.digest, is_manifest=True, durable=durable)
        with self.store.lock("publish", exclusive=True):
            final = self.folder_for(manifest, namespace)  # another process may have published an equal version
            if present := self._present(final, manifest):
                return Added(build=present, report=report, created=False)
            if still_allowed is not None:
                still_allowed()
            with self.catalog.changing(final.parent):
                self._link_folder(manifest, intent.folder / "view", final, durable=durable)
                build = self.read_build(final)
                self.catalog.put(build)
        same = self.catalog.with_weights(build, _MOST_NAMED)
        words = (f"{namespace}/{name} {version}".removeprefix("/") for namespace, name, version in same)
        return Added(build=build, report=report, created=True, same_as=tuple(words))

    def _present(self, final: Path, manifest: Manifest) -> Installed | None:
        """Return the build in that folder if it is the same one; None if the folder does not exist.

        Raises:
            ReleaseExists: the folder holds another build.
            MalformedManifest: its manifest is missing or damaged.
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
        with contextlib.suppress(NotAllowed):  # an object is lost, which the caller mends
            self.settle(existing)
        return existing

    def settle(self, build: Installed, *, look: bool = True) -> None:
        """Make a build durable that was published without; with `look`, only if its bytes are still right.

        Raises:
            DigestMismatch: a power cut left only a part of a file.
            NotAllowed: it is gone, or the disk failed.
        """
        paths = {self.store.manifest_path(build.manifest.digest): build.manifest.digest}
        paths |= {self.store.blob_path(digest): digest for digest in build.manifest.digests.values()}
        with self.store.os_errors_as_refusals():
            settle_objects(paths, build.folder.parent, look=look)

    def _link_folder(self, manifest: Manifest, view: Path, final: Path, *, durable: bool = True) -> None:
        """Make the plain PEFT folder of links; it is complete before it gets its name."""
        from adapterhub.formats.cards.card import make_card  # a fifth of the start of a command that adds nothing
        from adapterhub.library.intake.staging import link_signature

        with self.store.os_errors_as_refusals():
            make_folder(view)
            for entry in manifest.files:
                self.store.link(entry.sha256, view / entry.path)
            self.store.link(manifest.digest, view / MANIFEST_FILE, is_manifest=True)
            write_file(
                view / CARD_FILE, make_card(manifest, base_hub_id=self.bases.hub_id_of(manifest.base)).text.encode()
            )
            link_signature(self.store, view.parent, view)
            make_folder(final.parent)
            view.rename(final)
            if not durable:
                return
            try:
                # The only sync of a folder: journals keep the order of names, so the names of objects and the links
                # in this folder, all made earlier, reach the disk with it.
                sync_folder(final.parent)
            except OSError:
                final.rename(view)  # the state on the disk is unknown: a failed sync is a failed add
                raise

    # ------------------------------------------------------------ remove, gc, pin
    def remove(self, builds: Sequence[Installed], /) -> None:
        """Remove installed builds; their bytes stay in the store until `gc`."""
        with self.store.staging() as trash, self.store.lock("publish", exclusive=True):
            self._leases.ensure_none(builds)
            self.aliases.ensure_none(builds)
            changing = self.catalog.changing(*(build.folder.parent for build in builds))
            with changing, self.store.os_errors_as_refusals():
                for number, build in enumerate(builds):
                    with contextlib.suppress(FileNotFoundError):  # another process removed it
                        build.folder.rename(trash / str(number))
                    with contextlib.suppress(OSError):  # other versions are still there
                        build.folder.parent.rmdir()
                        build.folder.parent.parent.rmdir()
                self.catalog.forget(builds)

    @contextlib.contextmanager
    def lease(self, build: Installed) -> Iterator[Path]:
        """Keep the build's folder unchanged while the block runs: `remove` refuses it and `gc` spares its objects.

        Meant for processes that read the folder for a long time.

        Raises:
            AdapterNotFound: it is not installed any more.
            NotAllowed: the library cannot be written.
        """
        with self._leases.hold(build) as is_here:
            if not is_here:
                raise self.not_installed(build.full_name)
            yield build.folder

    def gc(
        self,
        *,
        grace_s: float = GRACE_S,
        dry_run: bool = False,
        wait_s: float = 30.0,
        steps: Steps = lambda _done, _of: None,
    ) -> Swept:
        """Delete objects that no installed build, project, running add or lease needs, except those under `grace_s`.

        Long-running writers do not delay it: their claims list the objects that they need.

        Raises:
            Malformed: the record of a project is damaged; nothing was deleted.
        """
        return sweep(self.store, self._needed, grace_s=grace_s, dry_run=dry_run, wait_s=wait_s, steps=steps)

    def _needed(self, steps: Steps) -> Iterator[Digest]:
        """Yield the objects that the installed builds are made of."""
        from adapterhub.library.intake.staging import signature_objects

        folders = build_folder_names(self.root)
        yield from objects_of_folders(folders, self.store, steps)
        for folder in folders:
            if os.path.lexists(f"{folder}/{SIGNATURE_FILE}"):
                yield from signature_objects(Path(folder))

    def pin_base(self, build: Installed, base: BaseRecord) -> Installed:
        """Record that `build`, which declares no fingerprint, was made for `base`; its manifest does not change.

        Raises:
            BaseMismatch: it declares another base, or its tensors do not fit this one.
        """
        from adapterhub.library.intake.staging import checked, ensure_no_errors

        verdict = self.bases.judged(build.base.fingerprint, base.fingerprint).verdict
        if build.base.fingerprint is not None and not verdict.allows_attach:
            raise BaseMismatch(
                f"`{build.full_name}` {build.manifest.version} is for base {build.base.label}, not `{base.alias}`"
            )
        ensure_no_errors(
            build.full_name, checked(build.folder, build.manifest, base, (), judge=self.bases.judged).findings
        )
        self._pins.pin(build.manifest, base)
        name, digest = build.manifest.name, build.manifest.digest
        with self.store.lock("publish", exclusive=True), self.catalog.changing():
            for same in self.installed(name, f"*--{name}"):  # the pin holds under every full name
                if same.manifest.digest == digest:
                    self.catalog.put(same)
        return replace(build, base=self._pins.base_of(build.manifest))

    def allow_mismatch(self, build: Installed, base: BaseRecord) -> None:
        """Record that the user chose to run `build` on `base`, which has other weights of the same shapes."""
        self._pins.allow_mismatch(build.manifest, base)

    def mismatch_allowed(self, build: Installed, base: BaseFingerprint) -> bool:
        """Return whether `allow_mismatch` was called for this build and these weights."""
        return self._pins.mismatch_allowed(build.manifest, base)

    # ------------------------------------------------------------ verify
    def verify_build(
        self, build: Installed, base: BaseRecord | None = None, progress: Progress | None = None
    ) -> Report:
        """Run every check on an installed build, against `base` or the registered base that it was made for."""
        from adapterhub.trust.verify import verify_folder

        record = base or self.bases.by_fingerprint(build.base.fingerprint)
        manifest = build.manifest.with_base(build.base)
        return verify_folder(
            build.folder,
            base_tensors=record.known_weights if record else None,
            base_fingerprint=record.fingerprint if record else None,
            base_type=record.hints.model_type if record else None,
            manifest=manifest,
            progress=progress,
            judge=self.bases.judged,
        )
