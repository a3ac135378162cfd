"""Finds the modules of an adapter in the files of a base."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from adapterhub.formats.naming.finding import BaseNames, NamedBase, Shape, find_names
from adapterhub.formats.naming.renames import Renames
from adapterhub.formats.naming.table import every_rename, renames_for

_NUMBER: Final = re.compile(r"(?<![^.])\d{1,9}(?![^.])")


def find_in_files(
    modules: Mapping[str, Shape | None], tensors: Mapping[str, Shape], model_type: str | None = None
) -> BaseNames:
    """Return the names in the files of a base with `tensors` for the modules of an adapter; see `find_names`.

    If its model type is unknown, the renames of every type are tried.
    """
    names = find_names(modules, _base(tensors, model_type))
    if names.is_complete or names.readings or model_type or not modules:
        return names
    kinds: dict[str, Shape | None] = dict.fromkeys(_kinds(modules))
    of_base: dict[str, Shape] = dict.fromkeys(_kinds(tensors), ())
    if find_names(kinds, _base(of_base, model_type)).is_complete:
        return names  # some layers are missing, which no rename changes
    for renames in every_rename():
        # without rules: names that nothing else explains must at least be exact
        alike = find_names(kinds, _base(of_base, renames))
        if alike.is_complete and not alike.rules:
            found = find_names(modules, _base(tensors, renames))
            if found.is_complete and not found.rules:
                return found
    return names


def _base(tensors: Mapping[str, Shape], renames: Renames | str | None) -> NamedBase:
    """Return the files, with the renames of a model type, or others; the table is read when they are needed."""

    def read() -> Renames:
        return renames if isinstance(renames, Renames) else renames_for(renames) if renames else Renames()

    modules = frozenset(name.rpartition(".")[0] for name in tensors)
    return NamedBase(modules=modules, tensors=lambda: tensors, renames=read)


def _kinds(names: Iterable[str]) -> list[str]:
    """One name for all layers and experts: with 0 for each number."""
    return list(dict.fromkeys(_NUMBER.sub("0", name) for name in names))
