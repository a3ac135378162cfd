"""Questions to the library that several commands ask; those to its index need not import it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.store.index import IndexReader
    from adapterhub.library.upkeep.lineage import Lineage
    from adapterhub.projects.session import Session

_T = TypeVar("_T")


def ask(session: Session, question: Callable[[IndexReader], _T]) -> _T:
    """The answer of the index, straight from its file while that is current: the library takes 80 ms to import."""
    from adapterhub.library.store.index import Index, IndexUnusable

    index = Index(session.root / "index.db")
    if index.is_current:
        with contextlib.suppress(IndexUnusable):
            return question(index)
    return session.library.catalog.read(question)


def lineage_of(session: Session) -> Lineage:
    """The graph of what is installed, straight from the index while that is current."""
    from adapterhub.library.store.index import Filters
    from adapterhub.library.upkeep.lineage import Lineage

    return Lineage(session.root, ask(session, lambda index: index.search(Filters())))


def find_build(
    session: Session, spec: AdapterSpec, bounds: RankRange, *, for_use: bool, base: BaseSpec | None = None
) -> Installed:
    """The one installed build that `spec` means, with warnings reported.

    Raises:
        AdapterNotFound, NoCompatibleRelease: none is installed, or none that fits.
        SignatureRefused, NamespaceBound: `for_use`, and it may not be used.
    """
    from adapterhub.distribution.choosing import find_installed, look_up
    from adapterhub.projects.session import wanted_from

    library = session.project_library
    find = find_installed if for_use else look_up
    build, resolution = find(library, spec, wanted=wanted_from(library, spec, base), bounds=bounds)
    for warning in resolution.warnings:
        session.out.warn(warning)
    return build
