"""Queries that several commands make; those to the index do not import the library."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.distribution.choosing import RankBounds
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.store.index import IndexReader
    from adapterhub.library.upkeep.lineage import Lineage
    from adapterhub.projects.session import Session

_T = TypeVar("_T")


def ask(session: Session, question: Callable[[IndexReader], _T]) -> _T:
    """The index's answer, read straight from its file while that is current: importing the library takes 80 ms."""
    from adapterhub.library.store.index import Index, IndexUnusable

    index = Index(session.root / "index.db")
    if index.is_current:
        with contextlib.suppress(IndexUnusable):
            return question(index)
    return session.library.catalog.read(question)


def lineage_of(session: Session) -> Lineage:
    """The graph of installed builds, read straight from the index while that is current."""
    from adapterhub.library.store.index import Filters
    from adapterhub.library.upkeep.lineage import Lineage

    return Lineage(session.root, ask(session, lambda index: index.search(Filters())))


def find_build(
    session: Session, spec: AdapterSpec, bounds: RankBounds, *, for_use: bool, base: BaseSpec | None = None
) -> Installed:
    """The one installed build that `spec` names; prints the warnings.

    Raises:
        AdapterNotFound, NoCompatibleRelease: no build has the name, or none fits.
        SignatureRefused, NamespaceBound: `for_use` is set and a policy forbids using the build.
    """
    from adapterhub.distribution.choosing import find_installed, look_up
    from adapterhub.projects.session import wanted_from

    library = session.project_library
    find = find_installed if for_use else look_up
    build, resolution = find(library, spec, wanted=wanted_from(library, spec, base), bounds=bounds)
    for warning in resolution.warnings:
        session.out.warn(warning)
    return build
