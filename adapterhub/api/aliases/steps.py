"""Set, list, move back and remove aliases: of the library, of a project, or of a registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapterhub.core.errors import NotFound, UsageProblem
from adapterhub.distribution.choosing import find_installed
from adapterhub.library.aliasing import alias_of, point, roll_back
from adapterhub.library.store.aliases import no_alias
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from adapterhub.core.aliases import Alias
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.library.library import Library
    from adapterhub.projects.session import Session

Targets = Sequence[tuple["AdapterSpec", float | None]]
"""The builds under an alias as specs, each with its weight; None for the only one."""


def set_alias(session: Session, name: str, targets: Targets) -> Alias:
    """Point an alias of the library at installed builds.

    Raises:
        AdapterNotFound, NoCompatibleRelease: a target is not installed.
        AmbiguousSpec: a target fits builds for several bases.
        SignatureRefused, NamespaceBound: a target may not be used.
        Conflict: a base has the name.
        SpecError, UsageProblem: the name or the targets are not usable.
    """
    weights = weights_of(targets)
    library = session.library
    builds = [find_installed(library, spec, wanted=wanted_from(library, spec, None))[0] for spec, _ in targets]
    return point(library, name, list(zip(builds, weights, strict=True)))


def weights_of(targets: Targets) -> list[float]:
    """The weight of each target; 1 for the only one.

    Raises:
        UsageProblem: several targets, and one has no weight.
    """
    lacking = [str(spec) for spec, weight in targets if weight is None]
    if lacking and len(targets) > 1:
        raise UsageProblem(
            f"`{lacking[0]}` has no weight; several targets need one each. Nothing was changed",
            hint=f"write `{lacking[0]}=0.1`",
        )
    return [1.0 if weight is None else weight for _, weight in targets]


def adapter_and_alias(spec: AdapterSpec) -> tuple[str, str]:
    """The full name and the alias in `legal-qa@prod`.

    Raises:
        UsageProblem: the spec names no alias, or more.
    """
    if spec.base is None or spec.base.kind != "alias" or spec.specifiers or spec.digest_prefix:
        raise UsageProblem(f"`{spec}` names no alias", hint=f"write `{spec.full_name}@ALIAS`, as in `legal-qa@prod`")
    return spec.full_name, spec.base.text


def find_alias(session: Session, spec: AdapterSpec) -> Alias:
    """The alias that a spec names, of the project or of the library.

    Raises:
        NotFound: there is none.
        UsageProblem: the spec names none.
    """
    library = session.library
    adapter, name = _parts(library, spec)
    found = alias_of(library, spec) or library.aliases.ever(adapter, name)
    if found is None:
        raise no_alias(adapter, name, [alias.name for alias in library.aliases.all(adapter)])
    return found


def existing_alias(session: Session, spec: AdapterSpec, found: Alias | None = None) -> Alias:
    """As `find_alias`, but not one that was removed; `found` is what a server says.

    Raises:
        NotFound: there is none, or it was removed.
    """
    found = found or find_alias(session, spec)
    if not found.targets:
        raise NotFound(f"`{found}` was removed", hint=f"`adapt alias rollback {found}` brings it back")
    return found


def list_aliases(session: Session, adapter: AdapterSpec | None = None) -> list[Alias]:
    """The aliases of the library, or those of one adapter."""
    found = session.library.aliases.all(adapter.full_name if adapter and adapter.namespace else None)
    return [alias for alias in found if adapter is None or alias.adapter.rpartition("/")[2] == adapter.name]


def remove_alias(session: Session, spec: AdapterSpec) -> Alias:
    """Remove an alias of the library; its history stays.

    Raises:
        NotFound: there is no such alias.
    """
    adapter, name = _own(session, spec)
    return session.library.aliases.remove(adapter, name)


def roll_back_alias(session: Session, spec: AdapterSpec, *, to: int | None = None) -> Alias:
    """Point an alias of the library at what it was before, or at what it was after the move number `to`.

    Raises:
        NotFound: there is no such alias or move, or nothing before.
        AdapterNotFound: what it was is not installed any more.
    """
    adapter, name = _own(session, spec)
    return roll_back(session.library, adapter, name, to=to)


def _own(session: Session, spec: AdapterSpec) -> tuple[str, str]:
    """The full name and alias of the library's own alias that `spec` means."""
    adapter, name = _parts(session.library, spec)
    found = session.library.aliases.meant(spec)
    return (found.adapter, name) if found else (adapter, name)


def _parts(library: Library, spec: AdapterSpec) -> tuple[str, str]:
    """As `adapter_and_alias`; for the name of an alias alone, the hint says whose it is."""
    try:
        return adapter_and_alias(spec)
    except UsageProblem as error:
        called = [f"`{alias.adapter}@{alias.name}`" for alias in library.aliases.all() if alias.name == str(spec)]
        if called:
            raise UsageProblem(error.message, hint=f"write {' or '.join(called[:3])}") from None
        raise
