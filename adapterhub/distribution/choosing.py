"""Chooses a build: turns the releases of several places into candidates and takes the first place with a fitting one.

A place listed later never overrides one listed earlier.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from adapterhub.core.errors import NoCompatibleRelease, NotAllowed
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.resolve import Candidate, Objection, Resolution, resolve
from adapterhub.formats.base.fingerprint import BaseComparison, BaseVerdict
from adapterhub.formats.manifest import BaseRef
from adapterhub.formats.release import Release
from adapterhub.library.admission import Admission, strangers
from adapterhub.library.aliasing import alias_of, at_main, build_under, without_alias
from adapterhub.library.bases.requested import RequestedBase
from adapterhub.library.installed import InstalledRelease
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import Source

if TYPE_CHECKING:
    from adapterhub.formats.alias import Alias


def candidates_of(
    library: Library, releases: Sequence[Release], wanted: RequestedBase | None, source: str
) -> list[Candidate]:
    """The releases as the resolver sees them; an installed build counts as made for the base that it is pinned to."""
    strange = strangers(library, releases)
    judged: dict[BaseRef, tuple[BaseComparison, str]] = {}  # a name may have thousands of builds, for few bases
    found = []
    for release in releases:
        base = release.build.base if isinstance(release, InstalledRelease) else release.facts.base
        if base not in judged:
            verdict = wanted.judge(base) if wanted else BaseComparison(verdict=BaseVerdict.UNKNOWN)
            judged[base] = verdict, library.base_label(base)
        reason = strange.get((release.digest, release.repository), "")
        found.append(_candidate(release, base, *judged[base], source, reason))
    return found


def _candidate(
    release: Release, base: BaseRef, comparison: BaseComparison, base_label: str, source: str, strange: str
) -> Candidate:
    facts = release.facts
    return Candidate(
        namespace=release.namespace,
        name=facts.name,
        version=facts.version,
        digest=facts.digest,
        verdict=comparison.verdict,
        differences=comparison.differences,
        base_label=base_label,
        base=base.fingerprint.weights if base.fingerprint else None,
        rank=facts.rank,
        method=",".join(facts.method),
        yanked=release.yanked,
        size_bytes=facts.size_bytes,
        source=source,
        license=facts.license,
        published_at=release.published_at,
        repository=release.repository,
        strange=strange,
    )


def first_fitting(
    library: Library,
    spec: AdapterSpec,
    sources: Sequence[Source],
    wanted: RequestedBase | None,
    bounds: RankRange,
    *,
    allow_base_mismatch: bool = False,
    objection: Objection | None = None,
    ignore_bindings: bool = False,
) -> tuple[Release, Source, Resolution] | None:
    """The build of the first of `sources` that has a fitting one; None when no source has an adapter of that name.

    A namespace that belongs to a remote is looked up there only, unless `ignore_bindings`.

    Raises:
        NoCompatibleRelease: one reason per release of every place.
        NamespaceBound: the namespace belongs to a server that is not among the places, or that has nothing while
            the library has a build in this namespace from another place.
    """
    spec = without_alias(library, spec)
    everything: dict[str, Candidate] = {}
    admission = Admission(library)
    foreign: list[Installed] = []
    for source in sources if ignore_bindings else admission.of_places(sources, spec.namespace):
        releases = source.releases(spec)
        if source is not library:
            library.saw_yanks(source.place, releases)
        if source is library and admission.binds_any:
            installed = library.releases(spec)
            foreign = [one.build for one in installed if not admission.is_ours(one.build)]
            releases = [one for one in installed if one.build not in foreign]
        candidates = candidates_of(library, releases, wanted, source.label)
        everything |= {c.digest: c for c in candidates}
        if not candidates:
            continue
        try:
            resolution = choose(
                spec, candidates, wanted, bounds, allow_base_mismatch=allow_base_mismatch, objection=objection
            )
        except NoCompatibleRelease:
            continue
        chosen = resolution.chosen.digest, resolution.chosen.repository
        return next(r for r in releases if (r.digest, r.repository) == chosen), source, resolution
    if not everything:
        for build in foreign:
            admission.ensure_own_origin(build)
        if not ignore_bindings:
            admission.ensure_owner_asked(sources, spec.namespace)
        return None
    all_found = list(everything.values())
    choose(spec, all_found, wanted, bounds, allow_base_mismatch=allow_base_mismatch, objection=objection)
    raise AssertionError("a release fits all places together but none alone")


def choose(
    spec: AdapterSpec,
    candidates: Sequence[Candidate],
    wanted: RequestedBase | None,
    bounds: RankRange,
    *,
    allow_base_mismatch: bool = False,
    objection: Objection | None = None,
    takes_yanked: bool = False,
) -> Resolution:
    """`resolve` with the bounds spread out."""
    return resolve(
        spec,
        candidates,
        ranks=bounds,
        allow_base_mismatch=allow_base_mismatch,
        base_given=wanted is not None,
        objection=objection,
        takes_yanked=takes_yanked,
    )


def find_installed(
    library: Library,
    spec: AdapterSpec,
    *,
    wanted: RequestedBase | None = None,
    bounds: RankRange = ANY_RANK,
    allow_base_mismatch: bool = False,
) -> tuple[Installed, Resolution]:
    """The installed build that `spec` means, checked for use, and how it was chosen.

    Raises:
        AdapterNotFound: no adapter by that name is installed.
        NoCompatibleRelease: installed, but none fits.
        SignatureRefused, NamespaceBound: it may not be used; see `Admission`.
    """
    build, resolution = look_up(
        library, spec, wanted=wanted, bounds=bounds, allow_base_mismatch=allow_base_mismatch, takes_yanked=False
    )
    Admission(library).ensure_usable(build)
    return build, resolution


def look_up(
    library: Library,
    spec: AdapterSpec,
    *,
    wanted: RequestedBase | None = None,
    bounds: RankRange = ANY_RANK,
    allow_base_mismatch: bool = False,
    takes_yanked: bool = True,
) -> tuple[Installed, Resolution]:
    """Like `find_installed`, but without the admission check: for showing and removing a build, not for using it.

    If `library.resolve_name` maps the name to a build, only that build is considered. `library.warn_of_choice` gets the
    warnings, `library.note_choice` the sentence about other ranks of the version that fit. A yanked build is taken
    where no other fits, unless `takes_yanked` is off.

    Raises:
        AdapterNotFound: no adapter by that name is installed.
        NoCompatibleRelease: installed, but none fits.
    """
    builds, resolution = _resolved(
        library, spec, wanted, bounds, allow_base_mismatch=allow_base_mismatch, takes_yanked=takes_yanked
    )
    for warning in resolution.warnings:
        library.warn_of_choice(warning)
    if resolution.note:
        library.note_choice(resolution.note)
    return _build_of(resolution.chosen, builds), resolution


def look_up_variants(library: Library, spec: AdapterSpec, *, wanted: RequestedBase | None = None) -> list[Installed]:
    """The build that `look_up` finds, and after it the other ranks of its version that fit.

    Raises:
        AdapterNotFound, NoCompatibleRelease: as `look_up`.
    """
    builds, resolution = _resolved(library, spec, wanted, ANY_RANK)
    return [_build_of(candidate, builds) for candidate in (resolution.chosen, *resolution.variants)]


def _build_of(candidate: Candidate, builds: Sequence[Installed]) -> Installed:
    return next(b for b in builds if b.manifest.digest == candidate.digest and b.namespace == candidate.namespace)


def _resolved(
    library: Library,
    spec: AdapterSpec,
    wanted: RequestedBase | None,
    bounds: RankRange,
    *,
    allow_base_mismatch: bool = False,
    takes_yanked: bool = True,
) -> tuple[list[Installed], Resolution]:
    """The installed builds with the name in `spec`, and the choice among them."""
    alias = alias_of(library, spec)
    if alias is not None:
        build_under(library, alias, alias.main)  # says plainly that it is not here
        spec = without_alias(library, spec)
    named = library.resolve_name(library, spec) if library.resolve_name and bounds == ANY_RANK else None
    if named is not None:
        spec = AdapterSpec.parse(named.spec)
    builds = [named] if named else library.builds_named(spec.name, spec.namespace)
    if not builds:
        raise library.not_installed(spec.full_name)
    candidates = candidates_of(library, [library.release_of(build) for build in builds], wanted, library.label)
    return builds, choose(
        spec, candidates, wanted, bounds, allow_base_mismatch=allow_base_mismatch, takes_yanked=takes_yanked
    )


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
