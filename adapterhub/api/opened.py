"""A library opened from Python: its session, and how arguments of the public functions become values."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.reporting import OnProgress, Reports
from adapterhub.core.arguments import StrPath, parsed, path_of
from adapterhub.core.disk.home import default_root
from adapterhub.core.specs import AdapterSpec, BaseSpec
from adapterhub.library import library as local
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.store.catalog import AdapterLike, Installed
from adapterhub.projects.session import Session

if TYPE_CHECKING:
    from typing_extensions import Self

    from adapterhub.library.remotes import Remote
    from adapterhub.library.transfer import Source
    from adapterhub.projects.reporting import Face

BaseLike = str | os.PathLike[str] | BaseSpec | BaseRecord
"""A base: an alias, a Hub id, a digest, a folder, or a record."""

SpecLike = str | AdapterSpec | Installed
"""An adapter by name: a spec as text (`legal-qa@base-7b>=1.2`) or as a value, or an installed build."""

Adapters = AdapterLike | Sequence[AdapterLike] | Mapping[AdapterLike, float]
"""One adapter, several, or several with a weight each."""


def spec_of(adapter: SpecLike) -> AdapterSpec:
    """The spec that `adapter` is or spells; of an installed build, the one that means exactly this build."""
    if isinstance(adapter, AdapterSpec):
        return adapter
    return AdapterSpec.parse(adapter.spec if isinstance(adapter, Installed) else adapter)


def base_of(base: BaseLike | None) -> BaseSpec | None:
    """The spec of a base, None for None."""
    if base is None or isinstance(base, BaseSpec):
        return base
    if isinstance(base, BaseRecord):
        return BaseSpec.parse(base.alias or base.fingerprint.weights)
    return BaseSpec.parse(base if isinstance(base, str) else folder_text(base))


def text_of(adapter: AdapterLike) -> str:
    """An adapter as one would type it; a path object is always a folder."""
    if isinstance(adapter, str):
        return adapter
    if isinstance(adapter, os.PathLike):
        return folder_text(adapter)
    return str(spec_of(adapter))


def folder_text(path: os.PathLike[str]) -> str:
    """A path such that it reads as a folder and never as a name."""
    text = os.fspath(path)
    return text if os.path.isabs(text) or text.startswith((".", "~")) else os.path.join(".", text)  # noqa: PTH117, PTH118 - a Path loses the `./`


def paths_of(places: StrPath | Iterable[StrPath]) -> tuple[Path, ...]:
    """One place or several, as paths."""
    several = [places] if isinstance(places, str | os.PathLike) else places
    return tuple(path_of(place) for place in several)


def shares(adapters: Adapters, weights: Sequence[float] | None) -> Sequence[float] | None:
    """The weights, or equal shares that sum to 1 for a sequence of adapters without any."""
    if weights is None and isinstance(adapters, Sequence) and not isinstance(adapters, str) and adapters:
        return [1 / len(adapters)] * len(adapters)
    return weights


@dataclass(frozen=True, slots=True)
class PythonSession(Session):
    """The session of a library; `opened` is that library.

    With `follows_folder` it works in the project around the working directory, as the command line does.
    """

    opened: OpenedLibrary | None = None
    follows_folder: bool = False

    @property
    def library(self) -> local.Library:
        """The library that was opened."""
        assert self.opened is not None  # made by `OpenedLibrary` alone
        return self.opened

    @property
    def project_folder(self) -> Path | None:
        """The folder of the project that the library is used in; None outside of any."""
        if self.project_dir is None and not self.follows_folder:
            return None
        return Session.project_folder.fget(self)  # type: ignore[attr-defined, no-any-return]  # a property

    def open_remote(self, remote: Remote, *, token: str | None = None, offline: bool = False) -> Source:
        """The remote as a source; the bars of the Hub's client stay off."""
        found = Session.open_remote(self, remote, token=token, offline=offline)
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        return found


@parsed
class OpenedLibrary(local.Library):
    """What every part of `adapterhub.Library` starts from."""

    _start: Path | None = None

    def __init__(self, root: StrPath, *, on_progress: OnProgress | None = None) -> None:
        super().__init__(path_of(root).absolute())
        self.reports: Face = Reports(on_progress)
        self.note_choice = self.reports.note
        self.session: Session = PythonSession(root=self.root, out=self.reports, variables=os.environ, opened=self)
        self.warn_of_choice = self.session.warn_once
        self.project_bounds = self.session.project_bounds

    def __reduce__(self) -> tuple[object, ...]:
        """Go to another process as the library of the same folder and project, without `on_progress`."""
        return _reopened, (type(self), self.root, self._start)

    @classmethod
    def default(cls, *, on_progress: OnProgress | None = None) -> Self:
        """The library that the command line uses: `ADAPTERHUB_HOME`, else the user's data folder.

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
        self.session = PythonSession(
            root=self.root, out=self.reports, variables=os.environ, opened=self, follows_folder=True
        )
        names = ProjectNames(start)
        self.resolve_name, self.project_alias = names.build, names.alias
        self.project_rules, self.project_bounds = self.session.project_rules, self.session.project_bounds

    def record_of(self, base: BaseLike | None) -> BaseRecord | None:
        """The record of a base, None for None.

        Raises:
            Malformed: its folder cannot be read.
            BaseNotFound: no such base.
        """
        if base is None or isinstance(base, BaseRecord):
            return base
        spec = base_of(base)
        assert spec is not None  # `base` is not None
        return self.bases.find(spec)


def _reopened(kind: type[OpenedLibrary], root: Path, start: Path | None) -> OpenedLibrary:
    library = kind(root)
    if start is not None:
        library._follow(start)  # noqa: SLF001 - of this module
    return library
