"""The kinds of places that adapters come from: what a remote, a project file and a lock know of each.

A kind is one file in `distribution/kinds/` that holds a `KIND`. The file's name is what `kind` says in `remotes.json`,
`adapters.toml` and `adapters.lock`. Those files leave `kind` out where the address shows it: a bare `url` means `hub`,
a bare `path` means `directory`. A build that is locked without a place comes from the library and has no kind.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Final

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.distribution import kinds
from adapterhub.distribution.kind import Kind

KIND_OF_KEY: Final[Mapping[str, str]] = {"url": "hub", "path": "directory"}
"""The kind that a table means when it has this key and no `kind`."""


@cache
def kind_named(name: str) -> Kind:
    """Return the kind by its name.

    Raises:
        UsageProblem: this version has no such kind.
    """
    if name not in kind_names():
        raise UsageProblem(f"no kind of remote `{shown(name)}`; there are {', '.join(f'`{n}`' for n in kind_names())}")
    kind = importlib.import_module(f"{kinds.__name__}.{name}").KIND
    assert isinstance(kind, Kind)
    return kind


@cache
def kind_names() -> tuple[str, ...]:
    """Return the names of all kinds, which are the files of `kinds/`."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(kinds.__path__)))


def kind_of(place: str) -> Kind:
    """Return the kind of a place as `Source.place` writes it; a path is a directory.

    Raises:
        UsageProblem: no kind has such places.
    """
    for name in kind_names():
        if (kind := kind_named(name)).claims(place):
            return kind
    raise UsageProblem(f"`{shown(place, 200)}` is a place of no known kind, expected one of {', '.join(kind_names())}")


def kind_by_keys(keys: Iterable[str], named: str | None = None) -> Kind | None:
    """Return the kind `named`, or the one that a table with these keys means; None when it names no place, or two.

    Raises:
        UsageProblem: this version has no such kind.
    """
    if named is not None:
        return kind_named(named)
    given = [KIND_OF_KEY[key] for key in KIND_OF_KEY if key in keys]
    return kind_named(given[0]) if len(given) == 1 else None


def kind_to_write(kind: Kind) -> str | None:
    """Return the value of `kind` in a file; None if the key of the address gives it."""
    return None if KIND_OF_KEY.get(kind.address_key) == kind.name else kind.name
