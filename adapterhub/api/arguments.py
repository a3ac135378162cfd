"""How adapters, bases and folders are given to the public functions, and the values that they mean."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Union

from adapterhub.core.arguments import StrPath, path_of
from adapterhub.core.specs import AdapterSpec, BaseSpec

if TYPE_CHECKING:
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.store.catalog import Installed

BaseLike = Union[str, os.PathLike[str], BaseSpec, "BaseRecord"]
"""A base: an alias, a Hub id, a digest, a folder, or a record."""

SpecLike = Union[str, AdapterSpec, "Installed"]
"""An adapter by name: a spec as text (`legal-qa@base-7b>=1.2`) or as a value, or an installed build."""

AdapterLike = Union[SpecLike, os.PathLike[str]]  # noqa: UP007 - as above
"""An adapter by name, or its folder: a path, or text that begins with `.`, `/` or `~`."""


def spec_of(adapter: SpecLike) -> AdapterSpec:
    """The spec that `adapter` is or spells; of an installed build, the one that means exactly this build."""
    if isinstance(adapter, AdapterSpec):
        return adapter
    return AdapterSpec.parse(adapter if isinstance(adapter, str) else adapter.spec)


def base_of(base: BaseLike | None) -> BaseSpec | None:
    """The spec of a base, None for None."""
    if base is None or isinstance(base, BaseSpec):
        return base
    if isinstance(base, str):
        return BaseSpec.parse(base)
    if isinstance(base, os.PathLike):
        return BaseSpec.parse(folder_text(base))
    return BaseSpec.parse(base.alias or base.fingerprint.weights)


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
