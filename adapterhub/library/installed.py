"""What a library holds, read from the folders of its builds; nothing here changes any."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, TypeVar

from adapterhub.core.digests import hex_of
from adapterhub.core.disk.root import absolute
from adapterhub.core.errors import AdapterNotFound, MalformedManifest, SpecError, no_adapter
from adapterhub.core.specs import ADD_FIRST, AdapterSpec, parse_namespace
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import MANIFEST_FILE, BaseRef, FileEntry, Manifest
from adapterhub.formats.release import Provenance, Release
from adapterhub.library.bases.records import Bases, Pins
from adapterhub.library.heads import Heads
from adapterhub.library.intake.clashes import Namesakes
from adapterhub.library.store.aliases import Aliases
from adapterhub.library.store.blobs import Store
from adapterhub.library.store.catalog import Broken, Catalog, Installed, build_folders, folder_of_version
from adapterhub.library.store.origins import Origins, Yanks, address_in
from adapterhub.library.store.rows import BuildRow
from adapterhub.trust.signing.appraisal import provenance_of

if TYPE_CHECKING:
    from adapterhub.trust.verify import Report

UNKNOWN_BASE = "unknown"
_NEWEST = 12  # builds of a name for each base, among which nearly every spec without a version finds its build

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledRelease(Release):
    """A build that a library has, as a release."""

    build: Installed


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Added(
    Documented,
    keys="name=build.full_name version=build.manifest.version base=build.base_name digest=build.manifest.digest created"
    " rank=build.manifest.rank size_bytes=build.manifest.size_bytes path=build.folder warnings=report.warnings same_as",
):
    """A build that was added to the library; `created` is False when it was installed before."""

    build: Installed
    report: Report
    created: Annotated[bool, "false: it existed already"]
    same_as: Annotated[tuple[str, ...], "other installed builds with this very file of weights, at most 3"] = ()

    def __repr__(self) -> str:
        return f"<{'Added' if self.created else 'Already there:'} {self.build!r}>"


class InstalledBuilds:
    """The builds under `root`, and what the library notes of them. Cheap to make."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.accepted: frozenset[str] = frozenset()
        """Repositories that the user lets supply a name that came from another; for the present call only."""
        self.store = Store(root)
        self.bases = Bases(root / "bases", root / "cache" / "fingerprints")
        self.catalog = Catalog(self.store, self.bases, self.installed)
        self.origins = Origins(self.store)
        self.yanks = Yanks(self.store)
        self.heads = Heads(self.store)
        self.aliases = Aliases(root)
        self._pins = Pins(root)

    @property
    def label(self) -> str:
        """The library in words."""
        return f"library `{self.root}`"

    @property
    def place(self) -> str:
        """The absolute path of the root."""
        return absolute(self.root)

    @contextlib.contextmanager
    def accepting(self, repositories: Iterable[str]) -> Iterator[None]:
        """Let these repositories supply names that came from others, while the block runs."""
        before, self.accepted = self.accepted, frozenset(repositories)
        try:
            yield
        finally:
            self.accepted = before

    def installed(self, *names: str) -> Iterator[Installed]:
        """Every installed build, read from the folders; `broken` lists those that cannot be read.

        `names` are patterns for the names of folders, such as `acme--*`.
        """
        yield from self.readable_in(build_folders(self.root, *names))

    def readable_in(self, folders: Iterable[Path]) -> Iterator[Installed]:
        """Yield the builds in these folders that can be read."""
        for folder in folders:
            with contextlib.suppress(MalformedManifest):
                yield from self.still_in([folder])

    def broken(self) -> list[Broken]:
        """Folders under `adapters/` that hold no readable build in its place, with the reason."""
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
            if reason := self.why_broken(build):
                found.append(Broken(folder=folder, reason=reason))
        return found

    def why_broken(self, build: Installed) -> str:
        """Return why a build that can be read is not intact in its place; "" if it is."""
        if build.folder != self.folder_for(build.manifest, build.namespace):
            return f"holds `{build.spec}`, which belongs in another folder"
        if not self.store.has_manifest(build.manifest.digest) and os.path.lexists(build.folder):
            return f"the store does not have its manifest {build.manifest.digest}"
        return ""

    def builds_named(self, name: str, namespace: str | None = None) -> list[Installed]:
        """Installed builds with that name, in one namespace or in all."""
        patterns = [f"{namespace}--{name}"] if namespace else [name, f"*--{name}"]
        return list(self.still_in(build_folders(self.root, *patterns)))

    def still_in(self, folders: Iterable[Path]) -> Iterator[Installed]:
        """Yield the builds in these folders, but for those that were removed since the folders were listed.

        Raises:
            MalformedManifest: one is damaged.
        """
        for folder in folders:
            try:
                build = self.read_build(folder)
            except FileNotFoundError:
                continue
            yield build

    def build_of(self, row: BuildRow) -> Installed:
        """Return the build of a row of the index.

        Raises:
            AdapterNotFound: it was removed since the row was read.
        """
        for build in self.still_in([self.root / row.folder]):
            return build
        raise self.not_installed(row.full_name)

    def builds_for(self, spec: AdapterSpec) -> tuple[list[Installed], bool]:
        """Return the installed builds that are likely to decide a spec, and whether they are all with its name.

        For an exact spec these are all that may fit it, and the newest of each namespace and base; for any other the
        newest ones.

        Raises:
            MalformedManifest: one is damaged.
        """
        version, digest = spec.pinned_version, spec.digest_prefix or ""
        newest = 1 if spec.is_exact else _NEWEST
        folders = self.catalog.folders(spec.name, spec.namespace, version=version, digest=digest, newest=newest)
        return list(self.still_in(folders)), len(folders) < newest

    def namesakes(self, name: str, namespace: str | None, base: BaseFingerprint | None) -> Namesakes:
        """Return the installed builds under that full name for that base."""

        def look(version: str | None) -> Iterator[Installed]:
            return self.readable_in(self.catalog.folders(name, namespace or "", version=version))

        return Namesakes(look=look, namespace=namespace, base=base)

    def releases(self, spec: AdapterSpec) -> list[InstalledRelease]:
        """Return the builds with a name, as releases: this library as a source."""
        return list(map(self.release_of, self.builds_named(spec.name, spec.namespace)))

    def release_of(self, build: Installed) -> InstalledRelease:
        """Return an installed build as a release, yanked if its server was seen to have yanked it."""
        return InstalledRelease(
            build=build,
            manifest=build.manifest,
            namespace=build.namespace,
            origin=self.label,
            yanked=self.yanked(build),
            published_at=build.added_at,
        )

    def yanked(self, build: Installed) -> str | None:
        """Return why the repository that a build came from has yanked it, as far as was seen; None if it has not."""
        digest = build.manifest.digest
        said = self.yanks.places(digest)
        origin = self.origins.under(digest, build.full_name) if said else None
        return said.get(origin.address) if origin else None

    def saw_yanks(self, place: str, releases: Iterable[Release]) -> None:
        """Remember what the repositories of `place` say of the builds that the library has."""
        noted = self.yanks.noted()
        for release in releases:
            if release.yanked is not None or release.digest in noted:
                origin = self.origins.under(release.digest, release.full_name)
                # a build of an earlier version, of which only the place is known
                repository = "" if origin is not None and not origin.repository else release.repository
                self.yanks.note(release.digest, address_in(place, repository), release.yanked)

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:  # noqa: ARG002 - the Source protocol
        """Open one file of a build."""
        return self.store.open_blob(entry.sha256)

    def provenance(self, release: Release) -> Provenance:
        """Return the signature in the folder of an installed build, and what lies beside it."""
        return provenance_of(self.folder_for(release.manifest, release.namespace))

    def not_installed(self, name: str) -> AdapterNotFound:
        """Return the error for a name that is not installed; its hint offers the nearest name that is."""
        usual = ADD_FIRST if name.endswith(".safetensors") else "`adapt list` shows what is installed"
        hint = self.nearest(name) or usual
        return no_adapter(name, self.label, hint=hint)

    def nearest(self, name: str) -> str:
        """`did you mean …?` with the nearest installed name; "" when none is near."""
        import difflib

        near = difflib.get_close_matches(name, self.catalog.read(lambda index: index.names()), n=1)
        return f"did you mean `{near[0]}`?" if near else ""

    def base_label(self, base: BaseRef) -> str:
        """Return a base as the user types it after `@`: its name, its digest or its Hub id; "" if unknown."""
        if base.fingerprint is None:
            return base.hints.hub_id or ""
        record = self.bases.by_fingerprint(base.fingerprint)
        return record.alias if record else base.fingerprint.weights[:19]

    def read_build(self, folder: Path) -> Installed:
        """Return the build in an installed folder.

        Raises:
            MalformedManifest: the manifest cannot be used, or the folder's name has an invalid namespace.
        """
        manifest = Manifest.read(folder / MANIFEST_FILE)
        namespace, _, _name = folder.parent.name.rpartition("--")
        if namespace:
            try:
                parse_namespace(namespace)
            except SpecError as error:
                raise MalformedManifest(str(folder), [f"the name of its folder: {error.message}"]) from None
        return Installed(
            manifest=manifest,
            namespace=namespace or None,
            folder=folder,
            base=self._pins.base_of(manifest),
            added_at=folder.stat().st_mtime,
            label_of=self.base_label,
        )

    def folder_for(self, manifest: Manifest, namespace: str | None) -> Path:
        """Return the folder of a build, installed or not; versions that are equal share a folder.

        Raises:
            SpecError: `namespace` is not valid; it would lead out of the library.
        """
        if namespace is not None:
            parse_namespace(namespace)
        fingerprint = manifest.base.fingerprint
        base = hex_of(fingerprint.weights)[:12] if fingerprint else UNKNOWN_BASE
        name = f"{namespace}--{manifest.name}" if namespace else manifest.name
        look = partial(self.catalog.folders, manifest.name, namespace or "", version=manifest.version)
        return folder_of_version(self.root / "adapters" / base / name, manifest.version, manifest.rank, look)


def while_installed(build: Installed, look: Callable[[], _T]) -> _T | None:
    """Return the result of `look` for a build; None if the build was removed in between.

    If it was removed and added again, `look` has seen a part of each, so it looks once more.
    """
    for _ in range(2):
        before = _inode_of(build.folder)
        if before is None:
            return None
        try:
            found = look()
        except FileNotFoundError:
            if _inode_of(build.folder) == before:
                raise
            continue
        if _inode_of(build.folder) == before:
            return found
    return None


def _inode_of(folder: Path) -> int | None:
    """Return the identity of a folder; None when it does not exist."""
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None
