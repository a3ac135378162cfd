"""Aliases that a registry keeps: what one means there."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from adapterhub.core.errors import NotAllowed
from adapterhub.core.specs import AdapterSpec
from adapterhub.library.admission.admission import Admission
from adapterhub.library.aliasing import alias_of, at_main, without_alias

if TYPE_CHECKING:
    from adapterhub.formats.alias import Alias
    from adapterhub.library.library import Library
    from adapterhub.library.transfer import Source


@runtime_checkable
class HasAliases(Protocol):
    """A source that keeps aliases."""

    def alias(self, spec: AdapterSpec) -> Alias | None:
        """The alias that the `@word` of `spec` is there; None where it is none."""
        ...


def exact_at(library: Library, spec: AdapterSpec, sources: Sequence[Source]) -> tuple[AdapterSpec, Alias | None]:
    """`spec` with an exact digest in place of an alias: of the library, else of the first source that has it.

    An alias of a source comes with it, for `follow` once its build is installed. One that the user set in the library
    comes first, and so does a base of that name.

    Raises:
        RemoteUnreachable, NotAllowed: a source does not answer, or not to you.
    """
    if spec.base is None or spec.base.kind != "alias" or spec.base.text in library.bases.aliases():
        return spec, None
    own = alias_of(library, spec)
    if own is not None and not own.place:
        return without_alias(library, spec), None
    found = first_alias(library, spec, sources)
    if found is None:
        return without_alias(library, spec), None
    return at_main(library, spec, found), found


def first_alias(library: Library, spec: AdapterSpec, sources: Sequence[Source]) -> Alias | None:
    """The alias that `spec` names at the first of `sources` that has it; None where none has.

    A namespace that belongs to a remote is asked there only: no other server may say which version is in use.

    Raises:
        RemoteUnreachable, NotAllowed: a source does not answer, or not to you.
    """
    places = Admission(library).of_places(sources, spec.namespace)
    return next(filter(None, (alias_at(source, spec) for source in places)), None)


def follow(library: Library, found: Alias) -> None:
    """Note in the library what a registry says, so that other commands know it, too.

    A library that cannot be written is still good to read.
    """
    with contextlib.suppress(NotAllowed):
        library.aliases.move(found.adapter, found.name, found.targets, action="follow", place=found.place)


def alias_at(source: Source, spec: AdapterSpec) -> Alias | None:
    """The alias that `spec` names at a source; None where it has none.

    Raises:
        RemoteUnreachable, NotAllowed: the source does not answer, or not to you.
    """
    return source.alias(spec) if isinstance(source, HasAliases) else None
