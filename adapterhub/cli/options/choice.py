"""One build from wherever it is: the options and steps that `pull`, `info` and `mirror` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.core.errors import AdapterNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.cli.options.params import Session
    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import AdapterSpec
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
    bounds: RankRange,
    objection: Objection | None = None,
    ignore_bindings: bool = False,
) -> tuple[Release, Source, Resolution]:
    """The build of the first place that has a fitting one, and warnings said; the options as of `first_fitting`.

    Raises:
        NoCompatibleRelease: one reason per release of every place that was asked.
        AdapterNotFound: no place has the name.
    """
    from adapterhub.distribution.choosing import first_fitting

    found = first_fitting(library, spec, sources, wanted, bounds, objection=objection, ignore_bindings=ignore_bindings)
    if found is not None:
        for warning in found[2].warnings:
            session.out.warn(warning)
        return found
    asked = ", ".join(source.label for source in sources)
    if not asked:
        raise AdapterNotFound(
            f"`{spec.full_name}` has no namespace, and no remote lists any",
            hint=f"write `NAMESPACE/{spec.name}`, or `adapt remote add NAME URL --namespaces NAMESPACE`",
        )
    raise AdapterNotFound(f"no adapter `{spec.full_name}` in {asked}", hint="`adapt search --remote NAME` lists some")
