"""One build from wherever it is: the options and steps that `pull`, `info` and `mirror` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.errors import AdapterNotFound, NoCompatibleRelease

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.cli.params import Session
    from adapterhub.install import RankBounds
    from adapterhub.library import Library
    from adapterhub.resolve import Resolution
    from adapterhub.specs import AdapterSpec
    from adapterhub.transfer import Release, Source
    from adapterhub.wanted_base import WantedBase


def choose_release(
    session: Session,
    library: Library,
    spec: AdapterSpec,
    sources: Sequence[Source],
    *,
    wanted: WantedBase | None,
    bounds: RankBounds,
) -> tuple[Release, Source, Resolution]:
    """The build of the first place that has a fitting one, and warnings said.

    Raises:
        NoCompatibleRelease: one reason for each release of the last place that had any.
        AdapterNotFound: no place has the name.
    """
    from adapterhub.install import candidates_of, choose

    refusal: NoCompatibleRelease | None = None
    for source in sources:
        releases = source.releases(spec)
        if not releases:
            continue
        try:
            resolution = choose(spec, candidates_of(library, releases, wanted, source.label), wanted, bounds)
        except NoCompatibleRelease as error:
            refusal = error
            continue
        for warning in resolution.warnings:
            session.out.warn(warning)
        release = next(r for r in releases if r.digest == resolution.chosen.digest)
        return release, source, resolution
    if refusal is not None:
        raise refusal
    asked = ", ".join(source.label for source in sources)
    if not asked:
        raise AdapterNotFound(
            f"`{spec.full_name}` has no namespace, and no remote lists any",
            hint=f"write `NAMESPACE/{spec.name}`, or `adapt remote add NAME URL --namespaces NAMESPACE`",
        )
    raise AdapterNotFound(f"no adapter `{spec.full_name}` in {asked}", hint="`adapt search --remote NAME` lists some")
