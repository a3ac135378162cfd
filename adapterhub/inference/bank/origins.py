"""The origin of a loaded adapter: loads it again, and detects changes to its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.core.digests import Digest, copy_hashed
from adapterhub.core.disk.held_file import REPAIR_HINT
from adapterhub.core.disk.new_folder import new_folder
from adapterhub.core.errors import AdapterNotFound, Conflict, DigestMismatch, UsageProblem, shown
from adapterhub.distribution.finding import FoundAdapter
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE, Manifest
from adapterhub.inference.loader.facts import AttachedAdapter, lines
from adapterhub.inference.loader.preparation import Prepared
from adapterhub.trust.verify import Subject, open_files

Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, size, modification time and inode of each file; another file, or a changed one, has another stamp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedOrigin:
    """An adapter that was loaded once. `reasons`: why it is not loaded natively; empty if it is.

    `digests`: those of the checked files, by name.
    """

    found: FoundAdapter
    digests: Mapping[str, Digest]
    facts: AttachedAdapter
    engine: str
    reasons: tuple[str, ...]
    stamp: Stamp

    @classmethod
    def of(
        cls, prepared: Prepared, facts: AttachedAdapter, *, engine: str, reasons: tuple[str, ...], stamp: Stamp
    ) -> LoadedOrigin:
        """The origin of an adapter that was just loaded, without its files."""
        found = prepared.found
        return cls(
            found=replace(found, subject=None),
            digests=digests_of(prepared.files, found.build.manifest if found.build else None),
            facts=facts,
            engine=engine,
            reasons=reasons,
            stamp=stamp,
        )

    def reopened(self) -> Subject:
        """Its files, read into memory again.

        Raises:
            DigestMismatch: they are no longer the files that were checked.
        """
        return open_files(self.found.folder, self.digests, in_memory=True)

    def explain(self) -> str:
        """Engine, base, scales and warnings, in lines for people."""
        first, *rest = lines(self.facts)
        why = [f"  not native: {reason}" for reason in self.reasons]
        return "\n".join([first, f"  engine: {self.engine}", *why, *rest])

    def ensure_unchanged(self) -> None:
        """Raise unless the files are still those that were checked.

        Raises:
            AdapterNotFound: they are gone.
            Conflict: they were changed or replaced.
        """
        if stamp_of(self.found.folder) != self.stamp:
            raise changed(self.found.folder)

    def export(self, out_folder: Path) -> Path:
        """Copy the adapter's files byte for byte, and compare them with the checked digests on the way.

        Raises:
            Conflict: the folder exists, or the adapter's files changed.
            DigestMismatch, AdapterNotFound: the files are damaged, or gone.
        """
        self.ensure_unchanged()
        with new_folder(out_folder) as partial:
            for name, expected in self.digests.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                with (self.found.folder / name).open("rb") as source, (partial / name).open("wb") as sink:
                    actual, _ = copy_hashed(source, sink)
                if actual != expected:
                    where = str(self.found.folder / name)
                    raise DigestMismatch(where, expected=expected, actual=actual, hint=REPAIR_HINT)
        return out_folder


def digests_of(files: Subject, manifest: Manifest | None) -> dict[str, Digest]:
    """The digests of an adapter's files, by name."""
    held = {name: files.listing.taken[name].held.digest for name in (CONFIG_FILE, WEIGHTS_FILE)}
    return (manifest.digests if manifest else {}) | held


def changed(folder: Path) -> Conflict:
    """The error for files that changed after they were loaded."""
    what = f"`{shown(str(folder), 200)}` changed after it was loaded"
    return Conflict(what, hint="unload the adapter and load it again")


def stamp_of(folder: Path) -> Stamp:
    """The stamp of an adapter's two files.

    Raises:
        AdapterNotFound: one of them is missing.
    """
    try:
        found = [(name, (folder / name).stat()) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    except OSError as error:
        raise AdapterNotFound(
            f"the adapter files in `{shown(str(folder), 200)}` are gone: {error.strerror}",
            hint="install the adapter again, or unload it",
        ) from None
    return tuple((name, facts.st_size, facts.st_mtime_ns, facts.st_ino) for name, facts in found)


def name_of(found: FoundAdapter, name: str | None) -> str:
    """The adapter's name in the bank: `name` if given, else its own, else that of its folder.

    Raises:
        UsageProblem: the name is empty.
    """
    if name is None:
        name = found.build.full_name if found.build else found.folder.resolve().name
    if not isinstance(name, str) or not name.strip():
        raise UsageProblem(f"{shown(name)} is not a name for an adapter", hint='bank.load(spec, name="legal-qa")')
    return name
