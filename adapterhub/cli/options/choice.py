"""The options and steps with which `pull`, `info` and `mirror` choose one build from any source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapterhub.core.errors import AdapterNotFound

if TYPE_CHECKING:
    from adapterhub.cli.options.params import Session
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.choosing import RankBounds
    from adapterhub.distribution.resolve import Objection, Resolution
    from adapterhub.formats.release import Release
    from adapterhub.library.bases.requested import RequestedBase
    from adapterhub.library.library import Library
    from adapterhub.library.transfer import Source


def choose_release(
    session: Session,
    library: Library,
    spec: AdapterSpec,
    sources: Sequence[Source],
    *,
    wanted: RequestedBase | None,
    bounds: RankBounds,
    objection: Objection | None = None,
    ignore_bindings: bool = False,
) -> tuple[Release, Source, Resolution]:
    """The build from the first source that has one that fits; prints the warnings. Options as of `first_fitting`.

    Raises:
        NoCompatibleRelease: no release fits; `refusals` holds one reason for each.
        AdapterNotFound: no source has the name.
    """
    from adapterhub.distribution.choosing import first_fitting

    found = first_fitting(library, spec, sources, wanted, bounds, objection=objection, ignore_bindings=ignore_bindings)
    if found is not None:
        for warning in found[2].warnings:
            session.out.warn(warning)
        return found
    labels = ", ".join(source.label for source in sources)
    if not labels:
        raise AdapterNotFound(
            f"`{spec.full_name}` has no namespace, and no remote lists one for it",
            hint=f"write `NAMESPACE/{spec.name}`, or `adapt remote add NAME URL --namespaces NAMESPACE`",
        )
    raise AdapterNotFound(
        f"no adapter `{spec.full_name}` in {labels}", hint="`adapt search --remote NAME` lists the adapters of a server"
    )
