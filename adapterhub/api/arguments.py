"""How adapters, bases and folders are given to the public functions, and the values that they mean."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Union

from adapterhub.core.arguments import StrPath, path_of
from adapterhub.core.errors import UsageProblem
from adapterhub.core.specs import AdapterSpec, BaseSpec

if TYPE_CHECKING:
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.reporting import Reporter
    from adapterhub.projects.session import Session

BaseLike = Union[str, os.PathLike[str], BaseSpec, "BaseRecord"]
"""A base: its name, a Hub id, a digest, a folder, or a record."""

SpecLike = Union[str, AdapterSpec, "Installed"]
"""An adapter by name: a spec as text (`legal-qa@base-7b>=1.2`) or as a value, or an installed build."""

AdapterLike = Union[SpecLike, os.PathLike[str]]  # noqa: UP007 - as above
"""An adapter by name, or its folder: a path, or text that begins with `.`, `/` or `~`."""


class OfSession:
    """Base of the parts of a library or a command that use its session; imports the library only when it is needed."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def reports(self) -> Reporter:
        """The reporter that receives notes, warnings and progress."""
        return self.session.out


def spec_of(adapter: SpecLike) -> AdapterSpec:
    """Return the spec that `adapter` is or spells; of an installed build, the one that means exactly this build."""
    if isinstance(adapter, AdapterSpec):
        return adapter
    return AdapterSpec.parse(adapter if isinstance(adapter, str) else adapter.spec)


def base_of(base: BaseLike | None) -> BaseSpec | None:
    """Return the spec of a base, None for None."""
    if base is None or isinstance(base, BaseSpec):
        return base
    if isinstance(base, str):
        return BaseSpec.parse(base)
    if isinstance(base, os.PathLike):
        return BaseSpec.parse(folder_text(base))
    return BaseSpec.parse(base.alias or base.fingerprint.weights)


def text_of(adapter: AdapterLike) -> str:
    """Return an adapter as one would type it; a path object is always a folder."""
    if isinstance(adapter, str):
        return adapter
    if isinstance(adapter, os.PathLike):
        return folder_text(adapter)
    return str(spec_of(adapter))


def folder_text(path: os.PathLike[str]) -> str:
    """Return a path such that it reads as a folder and never as a name."""
    text = os.fspath(path)
    return text if os.path.isabs(text) or text.startswith((".", "~")) else os.path.join(".", text)  # noqa: PTH117, PTH118 - a Path loses the `./`


def paths_of(places: StrPath | Iterable[StrPath]) -> tuple[Path, ...]:
    """One place or several, as paths."""
    several = [places] if isinstance(places, str | os.PathLike) else places
    return tuple(map(path_of, several))


def refuse(why: str, **options: object) -> None:
    """Raise `UsageProblem` if any of `options` was given."""
    flags = {"adapters": "the adapters", "option": "-O"}
    unset = [name for name, value in options.items() if value is None or value is False or value in ((), [], {})]
    if given := [name for name in options if name not in unset]:
        words = ", ".join(flags.get(name, f"--{name.replace('_', '-')}") for name in given)
        raise UsageProblem(f"{why}; drop {words}")
