"""One build from wherever it is: the options and steps that `pull`, `info` and `mirror` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.errors import AdapterNotFound, NoCompatibleRelease

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.cli.params import Session
    from adapterhub.install import RankBounds
    from adapterhub.library import Library
    from adapterhub.resolve import Candidate, Objection, Resolution
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
    objection: Objection | None = None,
) -> tuple[Release, Source, Resolution]:
    """The build of the first place that has a fitting one, and warnings said; `objection` as in `resolve`.

    Raises:
        NoCompatibleRelease: one reason per release of every place that was asked.
        AdapterNotFound: no place has the name.
    """
    from adapterhub.install import candidates_of, choose

    everything: dict[str, Candidate] = {}
    for source in sources:
        releases = source.releases(spec)
        if not releases:
            continue
        candidates = candidates_of(library, releases, wanted, source.label)
        everything |= {c.digest: c for c in candidates}
        try:
            resolution = choose(spec, candidates, wanted, bounds, objection=objection)
        except NoCompatibleRelease:
            continue
        for warning in resolution.warnings:
            session.out.warn(warning)
        release = next(r for r in releases if r.digest == resolution.chosen.digest)
        return release, source, resolution
    if everything:
        choose(spec, list(everything.values()), wanted, bounds, objection=objection)
        raise AssertionError("a release fits all places together but none alone")
    asked = ", ".join(source.label for source in sources)
    if not asked:
        raise AdapterNotFound(
            f"`{spec.full_name}` has no namespace, and no remote lists any",
            hint=f"write `NAMESPACE/{spec.name}`, or `adapt remote add NAME URL --namespaces NAMESPACE`",
        )
    raise AdapterNotFound(f"no adapter `{spec.full_name}` in {asked}", hint="`adapt search --remote NAME` lists some")
