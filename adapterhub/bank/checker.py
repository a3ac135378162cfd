"""Finding an adapter and everything that is checked of it before an engine may load it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from adapterhub.bank.sources import Source, Stamp, stamp_of
from adapterhub.digests import digest_of_file
from adapterhub.errors import AdapterNotFound, DigestMismatch, shown
from adapterhub.library import Library
from adapterhub.loader.base_check import BaseCheck, Verdict, pin
from adapterhub.loader.base_model import BaseModel
from adapterhub.loader.facts import facts
from adapterhub.loader.identity import LoadedBase, identify
from adapterhub.loader.injection import Ready
from adapterhub.loader.methods import set_up
from adapterhub.loader.mixture import check_copies
from adapterhub.loader.placing import read_contents
from adapterhub.loader.request import AdapterLike, Finder, Found, Identify, check_folder
from adapterhub.manifest import Manifest
from adapterhub.specs import BaseSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checked:
    """An adapter that may be loaded; `stamp` is that of its files before they were read."""

    found: Found
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
        files = FileCheck(library.root)
        self._finder = Finder(library, asked, self._known_base, allow_base_mismatch=allow_base_mismatch, check=files)
        self._bases = BaseCheck(library, looked_at, self._known_base, allow_base_mismatch=allow_base_mismatch)

    def find(self, what: AdapterLike) -> Found:
        """The adapter, its files checked; raises as `Finder.find`."""
        return self._finder.find(what, 1.0)

    def check(self, found: Found) -> Checked:
        """Everything else: its base, and a place for each of its tensors; raises as `attach`."""
        stamp = stamp_of(found.folder)
        verdict = self._bases.run(found)
        return Checked(found=found, stamp=stamp, verdict=verdict, ready=self.ready(found))

    def ready(self, found: Found) -> Ready:
        """The adapter's contents, each tensor with its place in the base."""
        contents = read_contents(found.folder, found.label, self._base)
        check_copies(contents, self._base)
        return Ready(name="adapter", contents=contents, setup=set_up(contents, self._base), weight=1.0)

    def source(self, checked: Checked, *, engine: str, reasons: tuple[str, ...]) -> Source:
        """What the bank remembers of it; a build that declares no base is pinned to this one."""
        pinned = pin(self._library, checked.found, self._known_base)
        known = facts(checked.found, checked.ready, checked.verdict, pinned)
        return Source(found=checked.found, facts=known, engine=engine, reasons=reasons, stamp=checked.stamp)


class FileCheck:
    """Checks the files of each adapter once.

    A build in the store was verified when it was added, and holds what its manifest says: its digests are enough
    (11 ms for 20 MB). A folder from elsewhere goes through everything that `verify` looks at.
    """

    def __init__(self, library_root: Path) -> None:
        self._builds = library_root / "adapters"
        self._done: dict[tuple[Path, Stamp], tuple[str, ...]] = {}

    def __call__(
        self, folder: Path, label: str, manifest: Manifest | None, identify: Identify | None = None
    ) -> tuple[str, ...]:
        """The warnings; see `check_folder` for the errors."""
        is_build = manifest is not None and folder.is_relative_to(self._builds)
        try:
            key = (folder, stamp_of(folder))
        except AdapterNotFound:
            return check_folder(folder, label, manifest, identify)  # which says what is missing, and what would help
        if key not in self._done:
            self._done[key] = (
                _check_digests(folder, label, manifest) if is_build else check_folder(folder, label, manifest, identify)
            )
        return self._done[key]


def _check_digests(folder: Path, label: str, manifest: Manifest | None) -> tuple[str, ...]:
    assert manifest is not None  # a build has one
    for entry in manifest.files:
        try:
            digest, _ = digest_of_file(folder / entry.path)
        except OSError as error:
            digest_text = f"no file ({error.strerror})"
        else:
            digest_text = digest
        if digest_text != entry.sha256:
            raise DigestMismatch(
                str(folder / entry.path),
                expected=entry.sha256,
                actual=digest_text,
                hint=f"the file was changed or damaged; install `{shown(label)}` again",
            )
    return ()
