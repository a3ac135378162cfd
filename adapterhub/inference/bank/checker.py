"""Finding an adapter and everything that is checked of it before an engine may load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterNotFound
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.finding import AdapterLike, Finder, Found, Identify, check_folder
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE, Manifest
from adapterhub.inference.bank.sources import LoadedOrigin, Stamp, changed, stamp_of
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.base_check import BaseCheck, Verdict, pin
from adapterhub.inference.loader.facts import facts
from adapterhub.inference.loader.identity import LoadedBase, identify
from adapterhub.inference.loader.injection import Ready
from adapterhub.inference.loader.methods import set_up
from adapterhub.inference.loader.mixture import check_copies
from adapterhub.inference.loader.reading.placing import read_contents
from adapterhub.library.library import Library
from adapterhub.trust.verify import Subject, open_files


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checked:
    """An adapter that may be loaded, and its files; `stamp` is theirs."""

    found: Found
    files: Subject
    stamp: Stamp
    verdict: Verdict
    ready: Ready


class Checker:
    """Checks adapters against one base, as `attach` does; what is known of the base is found out once."""

    def __init__(
        self,
        base: BaseModel,
        looked_at: LoadedBase,
        library: Library,
        *,
        asked: BaseSpec | str | None,
        allow_base_mismatch: bool,
    ) -> None:
        self._base = base
        self._library = library
        self._known_base = cache(lambda: identify(looked_at, library.bases))
        self._files = FileCheck(library.root)
        self._finder = Finder(
            library, asked, self._known_base, allow_base_mismatch=allow_base_mismatch, check=self._files
        )
        self._bases = BaseCheck(library, looked_at, self._known_base, allow_base_mismatch=allow_base_mismatch)

    def find(self, what: AdapterLike) -> Found:
        """The adapter, its files checked; raises as `Finder.find`."""
        return self._finder.find(what, 1.0)

    def check(self, found: Found) -> Checked:
        """Everything else: its base, and a place for each of its tensors; raises as `attach`."""
        stamp = stamp_of(found.folder)
        verdict = self._bases.run(found)
        files = found.subject or self._files.again(found.folder)
        return Checked(found=found, files=files, stamp=stamp, verdict=verdict, ready=self._ready(found, files))

    def ready_again(self, source: LoadedOrigin) -> Ready:
        """What an adapter that was loaded before has for the base.

        Raises:
            DigestMismatch: its files are no longer those that were checked.
        """
        return self._ready(source.found, open_files(source.found.folder, source.digests, in_memory=True))

    def _ready(self, found: Found, files: Subject) -> Ready:
        contents = read_contents(files, found.label, self._base)
        check_copies(contents, self._base)
        return Ready(name="adapter", contents=contents, setup=set_up(contents, self._base), weight=1.0)

    def source(self, checked: Checked, *, engine: str, reasons: tuple[str, ...]) -> LoadedOrigin:
        """What the bank remembers of it, without its files; a build that declares no base is pinned to this one."""
        pinned = pin(self._library, checked.found, self._known_base)
        known = facts(checked.found, checked.ready, checked.verdict, pinned)
        build = checked.found.build
        return LoadedOrigin(
            found=replace(checked.found, subject=None),
            digests=digests_of(checked.files, build.manifest if build else None),
            facts=known,
            engine=engine,
            reasons=reasons,
            stamp=checked.stamp,
        )


class FileCheck:
    """Checks the files of adapters, and opens them: their bytes are read into memory, hashed there and used from there.

    A build in the store was verified when it was added, and holds what its manifest says: its digests are enough. A
    folder from elsewhere goes through everything that `verify` looks at.
    """

    def __init__(self, library_root: Path) -> None:
        self._builds = library_root / "adapters"
        self._done: dict[tuple[Path, Stamp], tuple[Mapping[str, Digest], tuple[str, ...]]] = {}

    def __call__(
        self, folder: Path, label: str, manifest: Manifest | None, identify: Identify | None = None
    ) -> tuple[Subject | None, tuple[str, ...]]:
        """The files and the warnings; see `check_folder` for the errors.

        None for files that look as they did when they were checked: they may not be needed, and `again` opens them.
        """
        try:
            key = (folder, stamp_of(folder))
        except AdapterNotFound:
            return check_folder(folder, label, manifest, identify)  # which says what is missing, and what would help
        if key in self._done:
            return None, self._done[key][1]
        warnings: tuple[str, ...] = ()
        if manifest is not None and folder.is_relative_to(self._builds):
            subject = open_files(folder, manifest.digests, in_memory=True)
        else:
            subject, warnings = check_folder(folder, label, manifest, identify, in_memory=True)
        self._done[key] = digests_of(subject, manifest), warnings
        return subject, warnings

    def again(self, folder: Path) -> Subject:
        """The files of an adapter that was checked, as they were then.

        Raises:
            Conflict, DigestMismatch: they have changed since.
        """
        done = self._done.get((folder, stamp_of(folder)))
        if done is None:
            raise changed(folder)
        return open_files(folder, done[0], in_memory=True)


def digests_of(subject: Subject, manifest: Manifest | None) -> dict[str, Digest]:
    """The digests that the files of an adapter have, by name."""
    held = {name: subject.listing.taken[name].held.digest for name in (CONFIG_FILE, WEIGHTS_FILE)}
    return (manifest.digests if manifest else {}) | held
