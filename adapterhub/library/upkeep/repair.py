"""Mend a library: move damaged files into quarantine, fetch their bytes again, rebuild the index.

Bytes come from the store, then from other installed folders, then from the places that offered the builds. All are
hashed before use. Nothing is deleted: damaged files lie in `quarantine/`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated, TypeVar

from adapterhub.core.digests import Digest, copy_hashed
from adapterhub.core.disk.files import digest_of_file, is_sound, make_folder, write_durably, write_file, write_new
from adapterhub.core.errors import AdapterHubError, AdapterNotFound, Malformed, SignatureRefused
from adapterhub.core.specs import AdapterName, AdapterSpec
from adapterhub.formats.cards.card import make_card
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, MEDIA_TYPES, SIGNATURE_FILE, FileEntry, Manifest
from adapterhub.library.intake.description import Description, describe
from adapterhub.library.intake.staging import attach_signature, signature_objects
from adapterhub.library.library import Library
from adapterhub.library.store.blobs import WriteIntent
from adapterhub.library.store.catalog import Broken, Installed, build_folders
from adapterhub.library.store.origins import Origin
from adapterhub.library.store.rows import BuildRow, Filters
from adapterhub.library.transfer import Source
from adapterhub.library.upkeep.damage import damaged_index, damaged_objects
from adapterhub.trust.verify import open_subject
from adapterhub.trust.verify.subject import Entry, list_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Documented, keys="action path detail mended=is_mended", title="RepairStep"):
    """One step of a repair, taken or planned. `is_mended` is False if damage remains."""

    action: Annotated[str, "such as `restored` or `quarantined`"]
    path: Annotated[Path, "a path on this machine"]
    detail: Annotated[str, "details, as text"]
    is_mended: Annotated[bool, "whether the damage is gone"] = True


def repair(
    library: Library, find_source: FindSource, sources: Sequence[Source] = (), *, dry_run: bool = False
) -> list[Step]:
    """Mend what can be mended and return the steps; with `dry_run`, change nothing.

    `sources` are tried after the place that offered a build. Damaged records of bases are passed over.
    """
    if not library.root.exists():
        return []
    library = library.past_damage()
    if dry_run:
        return list(_Repair(library, find_source, sources, None).steps())
    with library.store.intent("doctor --repair") as intent:
        return list(_Repair(library, find_source, sources, intent).steps())


class _Repair:
    """One run; without an intent it changes nothing."""

    def __init__(
        self, library: Library, find_source: FindSource, sources: Sequence[Source], intent: WriteIntent | None
    ) -> None:
        self._library, self._store = library, library.store
        self._places = Places(library, find_source, sources)
        self._intent = intent
        self._manifests_at: dict[tuple[int, int], Digest] = {}
        self._indexed = self._rows_by_folder()
        self._needed: set[Digest] = set()

    def _rows_by_folder(self) -> dict[str, BuildRow]:
        """Return the index rows by folder: the only trace of a manifest that is lost everywhere else."""
        try:
            rows = self._library.catalog.index.search(Filters())
            return {os.fspath(self._library.root / row.folder): row for row in rows}
        except AdapterHubError:
            return {}

    def steps(self) -> Iterator[Step]:
        yield from self._objects()
        yield from self._no_folders()
        for broken in self._library.broken():
            yield from self._manifest_of(broken)
        for build in list(self._library.installed()):
            yield from self._files_of(build)
            yield from self._signature_of(build)
            yield from self._strays_of(build)
        yield from self._index()

    # ------------------------------------------------------------ objects
    def _objects(self) -> Iterator[Step]:
        for damage in list(damaged_objects(self._library)):
            if damage.kind == "writable":
                if self._intent:
                    damage.path.chmod(0o444)
                yield Step(action="made read-only", path=damage.path, detail="")
            elif damage.kind == "bytes":
                if damage.digest is not None and damage.path.suffix == ".json":
                    facts = damage.path.lstat()
                    self._manifests_at[facts.st_dev, facts.st_ino] = damage.digest
                yield self._quarantine(damage.path, damage.message)

    def _quarantine(self, path: Path, why: str) -> Step:
        where = self._store.quarantine(path).relative_to(self._library.root) if self._intent else "quarantine/"
        return Step(action="quarantined", path=path, detail=f"{why}; now `{where}`")

    def _no_folders(self) -> Iterator[Step]:
        """Move away links and files that stand where folders of adapters belong: they block installs."""
        level = [self._library.root / "adapters"]
        for _ in ("base", "name"):
            level = [path for folder in level if folder.is_dir() for path in sorted(folder.glob("[!.]*"))]
            for path in level:
                if path.is_symlink() or not path.is_dir():
                    yield self._quarantine(path, "is not a folder")
            level = [path for path in level if not path.is_symlink()]

    # ------------------------------------------------------------ manifests
    def _manifest_of(self, broken: Broken) -> Iterator[Step]:
        """Restore the manifest of a folder."""
        path = broken.folder / MANIFEST_FILE
        wanted = self._wanted_manifest(broken.folder)
        if broken.folder.is_symlink() or not broken.folder.is_dir():
            yield self._quarantine(broken.folder, "is not a folder")
            if wanted is None:
                return
            if self._intent:
                with self._store.os_errors_as_refusals():
                    make_folder(broken.folder)
        if wanted is None:
            yield Step(action="not mended", path=broken.folder, detail=broken.reason, is_mended=False)
            return
        manifest, origin = self._manifest(wanted)
        if manifest is None and (manifest := self._made_again(broken.folder, wanted)) is not None:
            origin = "made again from its files"
        if manifest is None:
            yield Step(action="not mended", path=path, detail=f"{broken.reason}; {wanted}: {origin}", is_mended=False)
            return
        if self._intent:
            staged = self._intent.folder / ".manifest"
            with self._store.os_errors_as_refusals():
                write_file(staged, manifest.to_bytes())
            self._need(wanted)
            self._store.adopt(staged, wanted, is_manifest=True)
        if is_sound(path, wanted):
            yield Step(action="restored", path=self._store.manifest_path(wanted), detail=origin)
        else:
            yield from self._replace(path, wanted, self._store.manifest_path(wanted), broken.reason, origin)

    def _wanted_manifest(self, folder: Path) -> Digest | None:
        """Return the digest of the folder's manifest, found by the damaged shared object, the index, or the store."""
        with contextlib.suppress(OSError):
            facts = (folder / MANIFEST_FILE).lstat()
            if (shared := self._manifests_at.get((facts.st_dev, facts.st_ino))) is not None:
                return shared
        if (indexed := self._indexed.get(os.fspath(folder))) is not None:
            return Digest(indexed.digest)
        namespace = folder.parent.name.rpartition("--")[0] or None
        for path in sorted((self._library.root / "manifests" / "sha256").glob("[!.]*.json")):
            with contextlib.suppress(AdapterHubError):
                manifest = self._store.read_manifest(Digest(f"sha256:{path.stem}"))
                if self._library.folder_for(manifest, namespace) == folder:
                    return manifest.digest
        return self._own_manifest(folder)

    def _own_manifest(self, folder: Path) -> Digest | None:
        """Return the digest of the folder's own manifest, if it belongs in this folder and all files match it."""
        try:
            manifest = Manifest.read(folder / MANIFEST_FILE)
        except (OSError, Malformed):
            return None
        namespace = folder.parent.name.rpartition("--")[0] or None
        is_here = self._library.folder_for(manifest, namespace) == folder
        is_whole = all(is_sound(folder / e.path, e.sha256) for e in manifest.files)
        return manifest.digest if is_here and is_whole else None

    def _manifest(self, wanted: Digest) -> tuple[Manifest | None, str]:
        with contextlib.suppress(AdapterHubError, OSError):
            return self._store.read_manifest(wanted), "from the store"
        for path in (folder / MANIFEST_FILE for folder in build_folders(self._library.root)):
            with contextlib.suppress(AdapterHubError, OSError):
                manifest = Manifest.read(path)
                if manifest.digest == wanted:
                    return manifest, f"from `{path.parent}`"

        def released(source: Source, spec: AdapterSpec) -> Manifest | None:
            return next((r.manifest for r in source.releases(spec) if r.digest == wanted), None)

        return self._places.first_with(released, wanted)

    def _made_again(self, folder: Path, wanted: Digest) -> Manifest | None:
        """Return the manifest as `adapt add` made it, if it has the digest `wanted`.

        It is made from the files, the index, the base records, the licence in our card, and the author's own card,
        which is read from the folder that was added.
        """
        row = self._indexed.get(os.fspath(folder))
        subject, _ = open_subject(folder)
        if row is None or subject is None:
            return None
        about = Description(
            name=AdapterName(row.name), version=row.version, task=row.task or None, description=row.description
        )
        bases = [record for record in self._library.bases.list() if record.fingerprint.weights == row.base_weights]
        origin = self._library.origins.of(wanted)
        added = None if origin is None or origin.is_server else open_subject(Path(origin.place))[0]
        with contextlib.suppress(AdapterHubError, OSError):
            entries = [_entry(file) for name, file in subject.listing.taken.items() if name in MEDIA_TYPES]
            for base in (*bases, None):
                ours = describe(subject, entries, about, base)
                cards = ["", *([describe(added, entries, about, base).card] if added else [])]
                asked = row.prompts.splitlines()
                for made in (replace(each, card=card) for each in (ours, ours.with_examples(asked)) for card in cards):
                    if made.digest == wanted:
                        return made
        return None

    # ------------------------------------------------------------ files
    def _files_of(self, build: Installed) -> Iterator[Step]:
        """Restore the blobs and the files of one build."""
        for entry in build.manifest.files:
            blob, file = self._store.blob_path(entry.sha256), build.folder / entry.path
            is_blob_sound = is_sound(blob, entry.sha256)
            is_one = is_blob_sound and file.exists() and file.samefile(blob) and not file.is_symlink()
            is_file_sound = is_one or is_sound(file, entry.sha256)
            if is_blob_sound and is_file_sound:
                continue
            why = f"`{build.full_name}` {build.manifest.label}"
            origin = "from the store"
            if not is_blob_sound:
                is_back, origin = self._fetch(build, entry, file if is_file_sound else None)
                if not is_back:
                    yield Step(action="not mended", path=file, detail=f"{why}: {origin}", is_mended=False)
                    continue
                yield Step(action="restored", path=blob, detail=f"{entry.sha256} {origin}")
            if not is_file_sound:
                yield from self._replace(file, entry.sha256, blob, why, origin)

    def _fetch(self, build: Installed, entry: FileEntry, whole: Path | None) -> tuple[bool, str]:
        """Restore a blob: whether that worked, and where the bytes came from, or why it failed."""
        copies = [whole] if whole else [
            other.folder / e.path
            for other in self._library.installed()
            for e in other.manifest.files
            if e.sha256 == entry.sha256 and other.folder != build.folder
        ]  # fmt: skip
        for copy in copies:
            if is_sound(copy, entry.sha256):
                with copy.open("rb") as stream:
                    self._take(stream, entry)
                return True, f"from `{copy}`"

        def taken(source: Source, spec: AdapterSpec) -> bool:
            return self._from(source, spec, build.manifest.digest, entry)

        is_back, origin = self._places.first_with(taken, build.manifest.digest, build.full_name)
        return bool(is_back), origin

    def _signature_of(self, build: Installed) -> Iterator[Step]:
        """Move away a `model.sig` that is not a signature file; a sweep would stop at it."""
        path = build.folder / SIGNATURE_FILE
        try:
            signature_objects(build.folder)
        except SignatureRefused as error:
            yield self._quarantine(path, error.clause)
        else:
            return

        def attached(source: Source, spec: AdapterSpec) -> bool:
            same = [r for r in source.releases(spec) if r.digest == build.manifest.digest]
            with contextlib.suppress(OSError):
                raw = source.provenance(same[0]).signature if same else None
                if raw is not None and self._intent:
                    attach_signature(self._store, build.folder, raw)
                return raw is not None
            return False

        is_back, origin = self._places.first_with(attached, build.manifest.digest, build.full_name)
        if is_back:
            yield Step(action="restored", path=path, detail=f"{origin}; `adapt verify` shows who signed")

    def _strays_of(self, build: Installed) -> Iterator[Step]:
        """Move away links and folders that have the name of an adapter's file which the build does not have."""
        own = {MANIFEST_FILE, SIGNATURE_FILE, *(entry.path for entry in build.manifest.files)}
        for found in list_folder(build.folder).findings:
            if found.code in ("E_KIND", "E_LINK") and found.where not in own:
                path = build.folder / found.where
                yield self._quarantine(path, found.message)
                if found.where == CARD_FILE:
                    if self._intent:
                        with self._store.os_errors_as_refusals():
                            write_durably(path, make_card(build.manifest).text.encode())
                    yield Step(action="restored", path=path, detail="from the manifest")

    def _from(self, source: Source, spec: AdapterSpec, build: Digest, entry: FileEntry) -> bool:
        """Take the bytes of `entry` from `source`: from the same build, or from one with the same file."""
        for release in sorted(source.releases(spec), key=lambda r: r.digest != build):
            for same in (e for e in release.manifest.files if e.sha256 == entry.sha256):
                if self._intent is None:
                    return True
                with source.open(release, same) as stream:
                    if self._take(stream, entry):
                        return True
        return False

    def _take(self, stream: IO[bytes], entry: FileEntry) -> bool:
        """Store the bytes of a stream as a blob, if they are the right ones."""
        if self._intent is None:
            return True
        staged = self._intent.folder / "fetched"
        with self._store.os_errors_as_refusals(), write_new(staged) as sink:
            try:
                digest, _ = copy_hashed(stream, sink, limit_bytes=entry.size_bytes)
            except ValueError:
                return False
        if digest != entry.sha256:
            return False
        self._need(digest)
        self._store.adopt(staged, digest)
        return True

    def _need(self, digest: Digest) -> None:
        """Protect an object from every sweep until this run ends."""
        if self._intent:
            self._needed.add(digest)
            self._intent.need(self._needed)

    def _replace(self, path: Path, digest: Digest, source: Path, why: str, origin: str) -> Iterator[Step]:
        """Replace the file `path` of a build with a link to the object `source`."""
        if os.path.lexists(path):
            yield self._quarantine(path, why)
        if self._intent:
            with self._library.store.lock("publish", exclusive=True), self._store.os_errors_as_refusals():
                fresh = self._intent.folder / "link"
                self._store.link(digest, fresh, is_manifest=source.suffix == ".json")
                fresh.replace(path)
        yield Step(action="relinked", path=path, detail=origin)

    # ------------------------------------------------------------ index
    def _index(self) -> Iterator[Step]:
        catalog = self._library.catalog
        path = catalog.index.path
        if os.path.lexists(path) and not (path.is_file() and not path.is_symlink()):
            yield self._quarantine(path, "is not a regular file")
        problems = [damage.message for damage in damaged_index(self._library)] if self._intent or path.is_file() else []
        if not catalog.index.path.exists() or catalog.index.stale_mark.exists():
            if not next(self._library.installed(), None):
                return
            problems.append("is missing or stale")
        if not problems:
            return
        detail = "; ".join(problems)
        try:
            if self._intent:
                detail += f"; {catalog.rebuild()} builds"
        except AdapterHubError as error:
            yield Step(action="not mended", path=catalog.index.path, detail=error.message, is_mended=False)
            return
        yield Step(action="index rebuilt", path=catalog.index.path, detail=detail)


def _entry(file: Entry) -> FileEntry:
    digest, size_bytes = digest_of_file(file.path)
    return FileEntry(path=file.name, sha256=digest, size_bytes=size_bytes, media_type=MEDIA_TYPES[file.name])


T = TypeVar("T")

FindSource = Callable[[Origin], Source]
"""Opens the place of an origin as a source; it may raise any `AdapterHubError`."""


class Places:
    """The places for the builds of one library."""

    def __init__(self, library: Library, find_source: FindSource, sources: Sequence[Source]) -> None:
        self._origins, self._find_source, self._sources = library.origins, find_source, sources

    def first_with(
        self, take: Callable[[Source, AdapterSpec], T | None], build: Digest, name: str = ""
    ) -> tuple[T | None, str]:
        """Return the first result of `take` that is not empty, and its place.

        Else None, and why each place has nothing.
        """
        reasons = []
        for label, place, spec in self._of(build, name):
            try:
                found = take(self._open(place), spec)
            except AdapterHubError as error:
                reasons.append(f"{label}: {error.message.splitlines()[0]}")
                continue
            if found:
                return found, f"from {label}"
            reasons.append(f"{label}: does not have it")
        return None, "; ".join(reasons) or "no known place has it"

    def _of(self, build: Digest, name: str) -> Iterator[tuple[str, Origin | Source, AdapterSpec]]:
        origin = self._origins.of(build)
        with contextlib.suppress(AdapterHubError):
            if origin is not None:
                yield f"`{origin.place}`", origin, AdapterSpec.parse(origin.name)
        name = origin.name if origin is not None else name
        if name:
            for source in self._sources:
                yield source.label, source, AdapterSpec.parse(name)

    def _open(self, place: Origin | Source) -> Source:
        if not isinstance(place, Origin):
            return place
        if not place.is_server and not Path(place.place).exists():
            raise AdapterNotFound("does not exist any more", hint="name another place with `--from DIR`")
        return self._find_source(place)
