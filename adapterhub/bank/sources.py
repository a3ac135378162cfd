"""Where a loaded adapter comes from, so that it can be loaded again, and whether its files are what they were."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapterhub.digests import copy_hashed
from adapterhub.errors import AdapterNotFound, Conflict, DigestMismatch, UsageProblem, shown
from adapterhub.loader.facts import AttachedAdapter, lines
from adapterhub.loader.request import Found
from adapterhub.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.new_folder import new_folder

Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, size, time of change and number of each file: another file, or one that was written to, differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An adapter that was loaded once. `reasons`: why it is not loaded natively, empty when it is."""

    found: Found
    facts: AttachedAdapter
    engine: str
    reasons: tuple[str, ...]
    stamp: Stamp

    def explain(self) -> str:
        """Engine, base, scales and warnings, in lines for people."""
        first, *rest = lines(self.facts)
        why = [f"  not native: {reason}" for reason in self.reasons]
        return "\n".join([first, f"  engine: {self.engine}", *why, *rest])

    def refuse_changed(self) -> None:
        """Whether the files are still those that were checked.

        Raises:
            AdapterNotFound: they are gone.
            Conflict: others are in their place.
        """
        if stamp_of(self.found.folder) != self.stamp:
            raise Conflict(
                f"`{shown(str(self.found.folder), 200)}` changed after it was loaded",
                hint="unload the adapter and load it again",
            )

    def export(self, out_folder: Path) -> Path:
        """Copy the adapter's files byte for byte; those of a build are checked against its manifest on the way.

        Raises:
            Conflict: the folder exists, or the adapter's files changed.
            DigestMismatch, AdapterNotFound: the files are damaged, or gone.
        """
        self.refuse_changed()
        build = self.found.build
        names = [entry.path for entry in build.manifest.files] if build else [CONFIG_FILE, WEIGHTS_FILE]
        expected = {entry.path: entry.sha256 for entry in build.manifest.files} if build else {}
        with new_folder(out_folder) as partial:
            for name in names:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                with (self.found.folder / name).open("rb") as source, (partial / name).open("wb") as sink:
                    digest, _ = copy_hashed(source, sink)
                if digest != expected.get(name, digest):
                    raise DigestMismatch(
                        str(self.found.folder / name),
                        expected=expected[name],
                        actual=digest,
                        hint="`adapt doctor --repair` fetches it again where it can",
                    )
        return out_folder


def stamp_of(folder: Path) -> Stamp:
    """The stamp of an adapter's two files.

    Raises:
        AdapterNotFound: one of them is not there.
    """
    try:
        found = [(name, (folder / name).stat()) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    except OSError as error:
        raise AdapterNotFound(
            f"the files of the adapter in `{shown(str(folder), 200)}` are gone: {error.strerror}",
            hint="install it again, or unload it",
        ) from None
    return tuple((name, facts.st_size, facts.st_mtime_ns, facts.st_ino) for name, facts in found)


def name_of(found: Found, asked: str | None) -> str:
    """The name that an adapter gets: the one asked for, else its own, else that of its folder.

    Raises:
        UsageProblem: an empty name.
    """
    name = asked
    if name is None:
        name = found.build.full_name if found.build else found.folder.resolve().name
    if not isinstance(name, str) or not name.strip():
        raise UsageProblem(f"{shown(name)} is no name for an adapter", hint='bank.load(spec, name="legal-qa")')
    return name
