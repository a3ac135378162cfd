"""Chooses a build: turns the releases of several places into candidates and takes the first place with a fitting one.

A place listed later never overrides one listed earlier.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError, NoCompatibleRelease
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.resolve import Build, Candidate, Objection, Resolution, resolve, version_in
from adapterhub.formats.base.fingerprint import BaseComparison, BaseVerdict
from adapterhub.formats.manifest import BaseRef
from adapterhub.formats.release import Release
from adapterhub.library.admission import Admission, strangers
from adapterhub.library.aliasing import alias_of, at_main, build_under, without_alias
from adapterhub.library.bases.requested import RequestedBase
from adapterhub.library.installed import InstalledBuilds, InstalledRelease
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import Source

if TYPE_CHECKING:
    from adapterhub.formats.alias import Alias


def candidates_of(
    library: Library, releases: Sequence[Release], wanted: RequestedBase | None, source: str
) -> list[Candidate]:
    """Return the releases as the resolver sees them.

    An installed build counts as made for the base that it is pinned to.
    """
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
        base_hint=comparison.hint,
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
    """Return the build of the first of `sources` that has a fitting one.

    None when no source has an adapter of that name.

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
    choose = partial(
        resolve,
        spec,
        base_given=wanted is not None,
        ranks=bounds,
        allow_base_mismatch=allow_base_mismatch,
        objection=objection,
    )
    places = sources if ignore_bindings else admission.of_places(sources, spec.namespace)
    for source in places:
        for found, settles in _offered(source, spec, base_given=wanted is not None):
            releases = [one for one in found if source is not library or _is_ours(admission, one)]
            if source is library:
                foreign = [one.build for one in found if isinstance(one, InstalledRelease) and one not in releases]
            else:
                library.saw_yanks(source.place, releases)
            candidates = candidates_of(library, releases, wanted, source.label)
            everything |= {c.digest: c for c in candidates}
            resolution = _or_none(choose, candidates)
            if resolution is not None and settles(resolution):
                chosen = resolution.chosen.digest, resolution.chosen.repository
                return next(r for r in releases if (r.digest, r.repository) == chosen), source, resolution
    if not everything:
        for build in foreign:
            admission.ensure_own_origin(build)
        if not ignore_bindings:
            admission.ensure_owner_asked(sources, spec.namespace)
        return None
    for source in places if spec.is_exact else ():  # what was left aside has its reasons in the refusal
        kept = [one for one in source.releases(spec) if source is not library or _is_ours(admission, one)]
        everything |= {c.digest: c for c in candidates_of(library, kept, wanted, source.label)}
    choose(everything.values())
    raise AssertionError("a release fits all places together but no single one")


def _is_ours(admission: Admission, release: Release) -> bool:
    return not (admission.binds_any and isinstance(release, InstalledRelease)) or admission.is_ours(release.build)


def _or_none(choose: Callable[[Sequence[Candidate]], Resolution], candidates: Sequence[Candidate]) -> Resolution | None:
    """Return the choice; None if none fits, or there is none."""
    with contextlib.suppress(NoCompatibleRelease):
        return choose(candidates) if candidates else None
    return None


_Offer = tuple[Sequence[Release], Callable[[Resolution], bool]]


def _offered(source: Source, spec: AdapterSpec, *, base_given: bool) -> Iterator[_Offer]:
    """Yield the builds of a source, and whether a choice among them is one among all.

    Those come first that may settle it.

    For an exact spec, a library finds every build that may fit without reading the others.
    """
    newest = getattr(source, "newest", None)
    if isinstance(source, InstalledBuilds):
        builds, are_all = source.builds_for(spec)
        some = list(map(source.release_of, builds))
        yield some, lambda found: are_all or _is_settled(spec, found, base_given=base_given)
        if are_all or spec.is_exact:
            return
    elif newest is not None:
        some, is_alike, are_all = newest(spec)
        if are_all:
            yield some, lambda _: True
            return
        if some and (base_given or is_alike):  # a newer version that fits comes before all older ones
            yield some, lambda found: not found.warnings  # a last resort: among all others, one may fit
    yield source.releases(spec), lambda _: True


def _is_settled(spec: AdapterSpec, found: Resolution, *, base_given: bool) -> bool:
    """Return whether older builds than those that were looked at could change nothing about the choice.

    Nothing older goes before a build that fits. But where no base is named, a base may have an older build that fits
    though none of its newest does, and the choice of a last resort needs a look at all.
    """
    if spec.is_exact:
        return True
    groups: dict[tuple[str | None, Digest | None], list[Build]] = {}
    for build in found.builds:  # newest first
        groups.setdefault((build.candidate.namespace, build.candidate.base), []).append(build)

    def has_one(group: Sequence[Build]) -> bool:
        """Return whether one fits, and no build of its version can be among those that were left aside."""
        if base_given and group[0].is_mismatched:
            return True
        return any(
            build.candidate.digest not in found.reasons and version_in(build) != group[-1].version for build in group
        )

    [chosen] = [build for build in found.builds if build.candidate == found.chosen]
    is_plain = not (chosen.is_yanked or chosen.is_prerelease or (base_given and chosen.is_mismatched))
    return is_plain and version_in(chosen).local is None and all(map(has_one, groups.values()))


def find_installed(
    library: Library,
    spec: AdapterSpec,
    *,
    wanted: RequestedBase | None = None,
    bounds: RankRange = ANY_RANK,
    allow_base_mismatch: bool = False,
) -> tuple[Installed, Resolution]:
    """Return the installed build that `spec` means, checked for use, and how it was chosen.

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
    """Return the build that `look_up` finds, and after it the other ranks of its version that fit.

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
    """Return the installed builds with the name in `spec`, and the choice among them."""
    alias = alias_of(library, spec)
    if alias is not None:
        build_under(library, alias, alias.main)  # says plainly that it is not here
        spec = without_alias(library, spec)
    named = library.resolve_name(library, spec) if library.resolve_name and bounds == ANY_RANK else None
    if named is not None:
        spec = AdapterSpec.parse(named.spec)
    builds, are_all = ([named], True) if named else library.builds_for(spec)
    if not builds:
        raise library.not_installed(spec.full_name)

    def choice() -> Resolution:
        candidates = candidates_of(library, [library.release_of(build) for build in builds], wanted, library.label)
        return resolve(
            spec,
            candidates,
            base_given=wanted is not None,
            ranks=bounds,
            allow_base_mismatch=allow_base_mismatch,
            takes_yanked=takes_yanked,
        )

    try:
        found = choice()
        if are_all or _is_settled(spec, found, base_given=wanted is not None):
            return builds, found
    except NoCompatibleRelease:  # its refusal has a reason for each
        if are_all:
            raise
    builds = library.builds_named(spec.name, spec.namespace)
    return builds, choice()


@runtime_checkable
class HasAliases(Protocol):
    """A source that keeps aliases."""

    def alias(self, spec: AdapterSpec) -> Alias | None:
        """Return the alias that the `@word` of `spec` is there; None if it is not an alias."""
        ...


def exact_at(library: Library, spec: AdapterSpec, sources: Sequence[Source]) -> tuple[AdapterSpec, Alias | None]:
    """Replace an alias in `spec` by an exact digest: of the library, or of the first source that has the alias.

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
    """Return the alias that `spec` names at the first of `sources` that has it; None if none has.

    A namespace that belongs to a remote is looked up only there: no other server may decide which version is in use.

    Raises:
        RemoteUnreachable, NotAllowed: a source does not answer, or not to you.
    """
    places = Admission(library).of_places(sources, spec.namespace)
    return next(filter(None, (alias_at(source, spec) for source in places)), None)


def follow(library: Library, found: Alias) -> None:
    """Note an alias of a registry in the library, so that other commands know its target.

    A library that cannot be written is still good to read.
    """
    with contextlib.suppress(AdapterHubError):
        library.aliases.move(found.adapter, found.name, found.targets, action="follow", place=found.place)


def alias_at(source: Source, spec: AdapterSpec) -> Alias | None:
    """Return the alias that `spec` names at a source; None if it has none.

    Raises:
        RemoteUnreachable, NotAllowed: the source does not answer, or not to you.
    """
    return source.alias(spec) if isinstance(source, HasAliases) else None
