"""A library opened from Python: its session, and how arguments of the public functions become values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.arguments import BaseLike, OfSession, SpecLike, base_of, folder_text, paths_of, spec_of, text_of
from adapterhub.core.arguments import StrPath, parsed, path_of
from adapterhub.core.disk.home import default_root
from adapterhub.library import library as local
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.store.catalog import AdapterLike
from adapterhub.projects.reporting import LogReporter, OnProgress
from adapterhub.projects.session import Session

if TYPE_CHECKING:
    from typing_extensions import Self

    from adapterhub.library.installed import Added

__all__ = [
    "Adapters",
    "BaseLike",
    "OpenedLibrary",
    "SpecLike",
    "base_of",
    "folder_text",
    "paths_of",
    "record_of",
    "shares",
    "spec_of",
    "text_of",
]

Adapters = AdapterLike | Sequence[AdapterLike] | Mapping[AdapterLike, float]
"""One adapter, several, or several with a weight each."""


def shares(adapters: Adapters, weights: Sequence[float] | None) -> Sequence[float] | None:
    """Return the weights, or equal shares that sum to 1 for a sequence of adapters without any."""
    if weights is None and isinstance(adapters, Sequence) and not isinstance(adapters, str) and adapters:
        return [1 / len(adapters)] * len(adapters)
    return weights


@parsed
class OpenedLibrary(OfSession, local.Library):
    """What every part of `adapterhub.Library` starts from."""

    _start: Path | None = None

    def __init__(self, root: StrPath, *, on_progress: OnProgress | None = None) -> None:
        local.Library.__init__(self, path_of(root).absolute())
        out = LogReporter(on_progress=on_progress)
        self.session = Session(self.root, out, os.environ, follows_folder=False, _libraries=[self])
        self.session.bind(self)

    def __reduce__(self) -> tuple[object, ...]:
        """Go to another process as the library of the same folder and project, without `on_progress`."""
        return _reopened, (type(self), self.root, self._start)

    @classmethod
    def default(cls, *, on_progress: OnProgress | None = None) -> Self:
        """Return the library that the command line uses: `ADAPTERHUB_HOME`, or the user's data folder.

        Below a folder with an `adapters.toml`, a bare name of that project is the build that its lock file names, and
        `install` takes the project's base, remotes and policy, as `adapt install` does.
        """
        library = cls(default_root(os.environ), on_progress=on_progress)
        library._follow(Path.cwd())
        return library

    def _follow(self, start: Path) -> None:
        """Work in the project around the working directory; names are those of the one around `start`."""
        from adapterhub.projects.builds import ProjectNames

        self._start = start
        self.session = replace(self.session, follows_folder=True)
        self.session.bind(self)
        names = ProjectNames(start)
        self.resolve_name, self.project_alias = names.build, names.alias

    @property
    def named(self) -> local.Library:
        """This library, where a bare name is the build that the project of the session locks."""
        return self if self.resolve_name is not None else self.session.project_library


def record_of(library: local.Library, base: BaseLike) -> BaseRecord:
    """Return the record of a base.

    Raises:
        Malformed: its folder cannot be read.
        BaseNotFound: no such base.
    """
    if isinstance(base, BaseRecord):
        return base
    spec = base_of(base)
    assert spec is not None  # `base` is not None
    return library.bases.find(spec)


def _reopened(kind: type[OpenedLibrary], root: Path, start: Path | None) -> OpenedLibrary:
    library = kind(root)
    if start is not None:
        library._follow(start)  # noqa: SLF001 - of this module
    return library


# ---------------------------------------------------------------- warnings about what came in
def report_card(session: Session, added: Added) -> None:
    """Warn of card metadata that a hub would refuse, right after an adapter is added, when it is easy to correct."""
    from adapterhub.formats.cards.card import make_card, refusals_of
    from adapterhub.formats.manifest import CARD_FILE

    manifest = added.build.manifest
    for problem in refusals_of(manifest, make_card(manifest)) if added.created and manifest.card else ():
        session.out.warn(f"`push` will refuse the metadata of `{CARD_FILE}`: {problem.text}; mend it and add again")


def report_likeness(session: Session, added: Added) -> None:
    """Say which installed builds have the weights of an adapter that was just added."""
    for other in added.same_as:
        session.out.note(f"these are the weights of {other}; `adapt compare {added.build.full_name}` says more")


def report_warnings(session: Session, added: Added | None) -> None:
    """Report the warnings of the checks of an added adapter.

    A config that names no base is worth one only where the manifest does not record the base either.
    """
    is_known = added is not None and added.build.base.fingerprint is not None
    for finding in added.report.warnings if added else ():
        if not (is_known and finding.code == "W_BASE_MISSING"):
            session.out.warn(f"[{finding.code}] {finding.message}")
