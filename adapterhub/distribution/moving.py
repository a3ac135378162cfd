"""Aliases that a registry keeps: what one means there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from adapterhub.core.specs import AdapterSpec

if TYPE_CHECKING:
    from adapterhub.core.aliases import Alias
    from adapterhub.library.transfer import Source


@runtime_checkable
class HasAliases(Protocol):
    """A source that keeps aliases."""

    def alias(self, spec: AdapterSpec) -> Alias | None:
        """The alias that the `@word` of `spec` is there; None where it is none."""
        ...


def alias_at(source: Source, spec: AdapterSpec) -> Alias | None:
    """The alias that `spec` names at a source; None where it has none.

    Raises:
        RemoteUnreachable, NotAllowed: the source does not answer, or not to you.
    """
    return source.alias(spec) if isinstance(source, HasAliases) else None
