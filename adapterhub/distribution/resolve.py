"""Resolves a spec: takes the spec and candidates, and returns one build or every reason against each.

A pure function: it does no input or output, and the order of the candidates never matters.

A build is refused, in this order, when its digest, version, base or rank is outside the request, when a policy objects,
and when it is yanked and not pinned. Among builds that fit, a mismatched base (if allowed), a yanked build (if pinned)
and a pre-release (unless requested) are last resorts: taken only when nothing else fits, with a warning.

The newest version wins. Among its builds the order is: a proven base, then the highest rank, then the same precision,
then the lowest digest.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterNotFound, AmbiguousSpec, NoCompatibleRelease, SpecError, shown
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import AdapterSpec, BaseSpec, version_of
from adapterhub.formats.base.fingerprint import BaseVerdict

if TYPE_CHECKING:
    from packaging.version import Version

__all__ = ["Candidate", "Objection", "Resolution", "resolve"]

SHOWN_VARIANTS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """The build to take. `warnings` are whole sentences; `builds` are all with the name, newest first.

    `reasons` are those against builds, by digest.

    `variants` are the builds of the same version that fit as well and that the order of ranks put behind, best first.
    """

    chosen: Candidate
    builds: Sequence[Build] = field(hash=False)
    reasons: Mapping[Digest, str] = field(hash=False)
    warnings: tuple[str, ...]
    variants: tuple[Candidate, ...] = ()

    @property
    def refusals(self) -> tuple[tuple[str, str], ...]:
        """`(build, reason)` of each that was not taken for a reason, newest first."""
        return labelled(self.builds, self.reasons)

    @property
    def note(self) -> str:
        """The sentence that names the chosen variant and the specs of the others; "" if there is only one."""
        if not self.variants:
            return ""
        one, others = self.chosen, [f"`{_exact(c)}` ({_rank(c)})" for c in self.variants[:SHOWN_VARIANTS]]
        rest = len(self.variants) - len(others)
        listed = ", ".join(others) + (f" and {rest} more" if rest else "")
        return (
            f"`{one.full_name}` {shown(one.version)} has {len(self.variants) + 1} builds that fit; took {_rank(one)}. "
            f"{'The other is' if len(self.variants) == 1 else 'The others are'} {listed}"
        )


def resolve(
    spec: AdapterSpec,
    candidates: Iterable[Candidate],
    *,
    base_given: bool,
    ranks: RankRange = ANY_RANK,
    allow_base_mismatch: bool | None = False,
    objection: Objection | None = None,
    known_names: Sequence[str] = (),
    takes_yanked: bool = False,
) -> Resolution:
    """Return the one build among `candidates` that `spec` and `ranks` mean.

    `base_given` says that the verdicts compare with a base that the user named. A bare name never picks among
    namespaces: a build without one comes first; otherwise all builds have to share a namespace.
    `allow_base_mismatch` permits other weights of the same shapes; None hides the option from the reasons.
    `objection` returns the reason against a build that would fit otherwise, or None; it must be deterministic.
    `known_names` are the full names to suggest for a misspelling. `takes_yanked` lets a yanked build be a last resort
    without a pin, to be shown and not used.

    Raises:
        UsageProblem: ranks below 1, or ranks that contradict each other.
        AdapterNotFound: no candidate has the name.
        AmbiguousSpec: several namespaces, digests with one prefix or, if no base is named, bases fit.
        NoCompatibleRelease: candidates exist but none fits; one reason each.
    """
    request = Request(
        spec=spec,
        ranks=ranks,
        base_given=base_given,
        allow_base_mismatch=allow_base_mismatch,
        objection=objection,
        takes_yanked=takes_yanked,
    )
    builds = builds_named(spec, candidates)
    if not builds:
        raise AdapterNotFound(f"no adapter is named `{spec.full_name}`", hint=_nearest(spec, known_names))
    if spec.digest_prefix is not None:
        _check_prefix(spec, spec.digest_prefix, builds)
    reasons: dict[Digest, str] = {}
    fitting = []
    for build in builds:
        reason = next(objections(request, build), None)
        if reason is None:
            fitting.append(build)
        else:
            reasons[build.candidate.digest] = reason
    if not fitting:
        raise _nothing_fits(request, labelled(builds, reasons))
    for resort, may_apply in (
        ("is_mismatched", base_given),
        ("is_yanked", True),
        ("is_prerelease", not spec.asks_for_prereleases),
    ):
        last = list(filter(attrgetter(resort), fitting)) if may_apply else []
        if 0 < len(last) < len(fitting):
            reasons.update((build.candidate.digest, _last_resort(build, resort)) for build in last)
            fitting = [build for build in fitting if not getattr(build, resort)]
    if not base_given:
        _check_one_base(spec, fitting)
    chosen, *variants = _by_preference(request, fitting) if len(fitting) > 1 else fitting
    if variants:
        _check_one_spelling(spec, [chosen, *variants])
    return Resolution(
        chosen=chosen.candidate,
        builds=builds,
        reasons=reasons,
        warnings=tuple(warnings_about(request, chosen, fitting)),
        variants=_alike(request, chosen, variants) if variants else (),
    )


def _exact(candidate: Candidate) -> str:
    """Return the spec that means exactly this build."""
    return f"{candidate.full_name}#{candidate.digest[:SHORT_DIGEST_CHARACTERS]}"


def _rank(candidate: Candidate) -> str:
    return "no rank" if candidate.rank is None else f"rank {candidate.rank}"


def _check_prefix(spec: AdapterSpec, prefix: str, builds: Sequence[Build]) -> None:
    """Raise if two builds share the digest prefix: someone can forge a collision of eight digits."""
    same = [build for build in builds if build.candidate.digest.startswith(prefix)]
    if len(same) > 1:
        choices = [
            (str(replace(spec, digest_prefix=build.candidate.digest)), f"version {shown(build.candidate.version)}")
            for build in same
        ]
        raise AmbiguousSpec(f"{len(same)} builds of `{spec.full_name}` start with `{prefix}`", choices)


def _check_one_base(spec: AdapterSpec, fitting: Sequence[Build]) -> None:
    """Raise if builds for several bases fit and none was named.

    Each choice is a spec with a base, or with a digest if the base has no name.
    """
    newest: dict[str, Build] = {}
    for build in fitting:
        newest.setdefault(build.candidate.base_label, build)
    if len(newest) == 1:
        return
    choices = []
    for label, build in sorted(newest.items()):
        try:
            exact = replace(spec, base=BaseSpec.parse(label))
            base = "newest"
        except SpecError:
            exact = replace(spec, digest_prefix=build.candidate.digest[:SHORT_DIGEST_CHARACTERS])
            base = f"made for {base_name(build)}," if label else "declares no base,"
        rank = f", rank {build.candidate.rank}" if build.candidate.rank is not None else ""
        choices.append((str(exact), f"{base} {shown(build.candidate.version)}{rank}"))
    raise AmbiguousSpec(f"`{spec}` fits more than one base; name one", choices)


def _check_one_spelling(spec: AdapterSpec, builds: Sequence[Build]) -> None:
    """Raise if builds of one version spell it in several ways: one of them was published to be taken for the other."""
    spelled = {build.candidate.version: build for build in builds}
    if len(spelled) > 1:
        choices = [
            (str(replace(spec, digest_prefix=build.candidate.digest[:SHORT_DIGEST_CHARACTERS])), f"spelled {version}")
            for version, build in sorted(spelled.items())
        ]
        raise AmbiguousSpec(f"`{spec.full_name}` has one version in {len(spelled)} spellings; name one build", choices)


def _by_preference(request: Request, fitting: Sequence[Build]) -> list[Build]:
    """Return the builds of the newest version, the best first."""

    def preference(build: Build) -> tuple[bool, int, bool, str]:
        # Proven before unproven outranks rank: a larger adapter on the wrong base is no better adapter.
        is_converted = request.base_given and build.candidate.verdict in _CONVERTED
        return not _is_proven(request, build), -(build.candidate.rank or 0), is_converted, build.candidate.digest

    return sorted((build for build in fitting if build.version == fitting[0].version), key=preference)


def _is_proven(request: Request, build: Build) -> bool:
    """Return whether the base is the requested one by content; true where none is requested."""
    return not request.base_given or build.candidate.verdict.is_same_model


def _alike(request: Request, chosen: Build, variants: Sequence[Build]) -> tuple[Candidate, ...]:
    """Return the variants whose base is proven as that of the chosen build is."""
    is_proven = _is_proven(request, chosen)
    return tuple(build.candidate for build in variants if _is_proven(request, build) == is_proven)


def _nothing_fits(request: Request, refusals: Sequence[tuple[str, str]]) -> NoCompatibleRelease:
    spec = request.spec
    if spec.base is not None:
        fits = f"fits base `{spec.base}`"
        hint = f"`adapt search --base {shlex.quote(str(spec.base))}` lists adapters that fit"
    else:
        fits = "fits the base" if request.base_given else "fits"
        hint = f"`adapt search {spec.name}` lists what is available"
    return NoCompatibleRelease(f"no release of `{spec.full_name}` {fits}", refusals, hint=hint)


def _nearest(spec: AdapterSpec, known_names: Sequence[str]) -> str:
    """Return a hint for an unknown name: the most similar known names, or where to search."""
    import difflib  # 5 ms of import for misspelt names only

    written = {name if spec.namespace else name.rpartition("/")[2]: name for name in sorted(known_names)}
    close = difflib.get_close_matches(spec.full_name, written, n=3)
    search = f"`adapt search {spec.name}` lists what is available"
    return f"did you mean {' or '.join(f'`{shown(written[name])}`' for name in close)}? {search}" if close else search


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One build that a place offers.

    `verdict` and `differences` compare its base with the requested one, and are ignored when none is requested.
    `base_label` is its base as you would type it after `@`; "" if it declares none. `yanked` is the reason, which may
    be "", or None. `source` names the place. `published_at` is the Unix time of publication; None if unknown.
    `repository` is that of a server, which a spec may name instead of the adapter; "" without one. `strange` is the
    reason why that repository may not supply the name; "" if it may. `base` is the digest of the
    weights that it was made for; None if it declares none. `base_hint` is the hint that lets it run on the requested
    one.
    """

    namespace: str | None
    name: str
    version: str
    digest: Digest
    verdict: BaseVerdict
    differences: tuple[str, ...]
    base_label: str
    rank: int | None
    method: str
    yanked: str | None
    size_bytes: int
    source: str
    license: str | None = None
    published_at: float | None = None
    repository: str = ""
    strange: str = ""
    base: Digest | None = None
    base_hint: str = ""

    @property
    def full_name(self) -> str:
        """`acme/legal-qa` or `legal-qa`."""
        return self.name if self.namespace is None else f"{self.namespace}/{self.name}"


_CONVERTED: Final = frozenset({BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION, BaseVerdict.SAME_WEIGHTS_QUANTISED})
_TOLD: Final = {
    BaseVerdict.SAME_WEIGHTS_QUANTISED: "the same model, and one of the two is a quantised copy",
    BaseVerdict.ACCEPTED_QUANTISED: "what is likely the model of this quantised copy, which you accepted",
    BaseVerdict.SAME_FAMILY: "another base of its family",
}
"""The warning about a build that fits, by how its base relates to the requested one."""

Objection = Callable[[Candidate], str | None]
"""The reason against a build that would fit otherwise, or None."""


class Build(NamedTuple):
    """A candidate with its parsed version, None if the version is invalid, and what makes it a last resort."""

    candidate: Candidate
    version: Version | None
    is_mismatched: bool
    is_yanked: bool
    is_prerelease: bool

    @classmethod
    def of(cls, candidate: Candidate) -> Build:
        """Return the candidate as a build."""
        try:
            version = version_of(candidate.version)
        except SpecError:
            version = None
        is_prerelease = version is not None and version.is_prerelease
        is_mismatched, is_yanked = not candidate.verdict.allows_attach, candidate.yanked is not None
        return cls(candidate, version, is_mismatched, is_yanked, is_prerelease)

    @property
    def title(self) -> str:
        return f"`{self.candidate.full_name}=={shown(self.candidate.version)}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The sides of one request."""

    spec: AdapterSpec
    ranks: RankRange
    base_given: bool
    allow_base_mismatch: bool | None
    objection: Objection | None = None
    takes_yanked: bool = False

    @property
    def allows_yanked(self) -> bool:
        is_pinned = self.spec.pinned_version is not None or self.spec.digest_prefix is not None
        return is_pinned or self.takes_yanked


def builds_named(spec: AdapterSpec, candidates: Iterable[Candidate]) -> list[Build]:
    """Return the builds with the name in `spec`, each digest once, newest first.

    If no adapter has the name, it may be that of a repository.

    Raises:
        AmbiguousSpec: a bare name that exists in several namespaces, and not without one, or the name of a repository
            that holds several adapters.
    """
    there = list(candidates)
    if spec.namespace is not None:
        there = [c for c in there if c.namespace == spec.namespace]
    named = [c for c in there if c.name == spec.name]
    if not named or (spec.digest_prefix is None and all(map(attrgetter("strange"), named))):
        named = _in_repository(spec, there) or named
    namespaces = set(map(attrgetter("namespace"), named))
    if spec.namespace is None and len(namespaces) > 1:
        # Taking the newest of all would let a stranger's 99.0 stand in for the user's own adapter.
        if None not in namespaces:
            choices = [(str(replace(spec, namespace=n)), f"namespace `{n}`") for n in sorted(filter(None, namespaces))]
            raise AmbiguousSpec(f"more than one namespace has `{spec.name}`", choices)
        named = [c for c in named if c.namespace is None]
    copies: dict[Digest, list[Candidate]] = {}
    for candidate in named:
        copies.setdefault(candidate.digest, []).append(candidate)
    builds = [Build.of(same[0] if len(same) == 1 else _merged(same)) for _, same in sorted(copies.items())]
    # without a version last: equal ones are compared by rank
    return sorted(builds, key=lambda b: (b.version is not None, b.version, b.candidate.rank or 0), reverse=True)


def _in_repository(spec: AdapterSpec, candidates: Sequence[Candidate]) -> list[Candidate]:
    found = [c for c in candidates if c.repository == f"{c.namespace}/{spec.name}"]
    names = {c.full_name for c in found}
    if len(names) > 1:
        choices = [(name, "an adapter in it") for name in sorted(names)]
        raise AmbiguousSpec(f"the repository `{found[0].repository}` holds {len(names)} adapters", choices)
    return found


def _merged(copies: Sequence[Candidate]) -> Candidate:
    """One candidate for copies of the same bytes; known bases, yanks and earlier dates win.

    A copy in a repository that may not supply the name is ignored, unless all are in such ones.
    """
    copies = [copy for copy in copies if not copy.strange] or copies
    best = min(copies, key=lambda c: (c.verdict is BaseVerdict.UNKNOWN, c.source, repr(c)))
    yanks = sorted(copy.yanked for copy in copies if copy.yanked is not None)
    dates = [copy.published_at for copy in copies if copy.published_at is not None]
    return replace(best, yanked=yanks[-1] if yanks else None, published_at=min(dates, default=None))


def version_in(build: Build) -> Version:
    """Return the version of a build that has one, as a sort key."""
    assert build.version is not None
    return build.version


SHOWN_DIFFERENCES = 3
SHORT_DIGEST_CHARACTERS = 19  # `sha256:` and 12 hex digits


def objections(request: Request, build: Build) -> Iterator[str]:
    """Yield the reasons against `build`, the most basic first; none if it fits."""
    spec, candidate = request.spec, build.candidate
    if spec.digest_prefix is not None and not candidate.digest.startswith(spec.digest_prefix):
        yield f"digest {candidate.digest[:SHORT_DIGEST_CHARACTERS]}…, {spec.digest_prefix} asked"
    elif spec.digest_prefix is None and candidate.strange:
        yield candidate.strange
    try:
        if not spec.matches(candidate.version):
            yield f"version {candidate.version} is outside {spec.specifiers}"
    except SpecError as error:
        yield error.reason
    if request.base_given and build.is_mismatched:
        if candidate.verdict is not BaseVerdict.SAME_SHAPES:
            yield _mismatch(build)
        elif not request.allow_base_mismatch:
            way = ", `--allow-base-mismatch` takes it" if request.allow_base_mismatch is not None else ""
            yield f"{_mismatch(build)}; the shapes are the same{way}"
    outside = request.ranks.refusal(candidate.rank)
    if outside is not None:
        yield outside
    if request.objection is not None and (refused := request.objection(candidate)) is not None:
        yield refused
    if build.is_yanked and not request.allows_yanked:
        yield _yank(build)


def _mismatch(build: Build) -> str:
    way = f"; {build.candidate.base_hint}" if build.candidate.base_hint else ""
    return f"made for {build.candidate.verdict.made_for}: {_differences(build) or base_name(build)}{way}"


def _differences(build: Build) -> str:
    """Return the first few differences from the requested base; "" if there are none."""
    told = [shown(difference, 200) for difference in build.candidate.differences]
    more = len(told) - SHOWN_DIFFERENCES
    return "; ".join(told[:SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def base_name(build: Build) -> str:
    label = build.candidate.base_label
    return f"`{shown(label)}`" if label else "it names none"


def _yank(build: Build) -> str:
    return f"yanked: {shown(build.candidate.yanked or 'no reason given', 200)}"


def _last_resort(build: Build, resort: str) -> str:
    """Return the reason against a build that is used only when nothing else fits, where another build fits."""
    if resort == "is_mismatched":
        return f"{_mismatch(build)}; another build fits"
    return _yank(build) if resort == "is_yanked" else f"pre-release, `=={build.version}` asks for it"


def warnings_about(request: Request, chosen: Build, fitting: Sequence[Build]) -> list[str]:
    """Return notes about the choice for the user, as whole sentences."""
    candidate, told, base_given = chosen.candidate, [], request.base_given
    if chosen.is_yanked:
        told.append(f"{chosen.title} is {_yank(chosen)}")
    if base_given and chosen.is_mismatched:
        told.append(f"{chosen.title} was {_mismatch(chosen)}; used because a mismatch was allowed")
    elif base_given and candidate.verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION:
        detail = _differences(chosen)
        told.append(
            f"{chosen.title} was made for the same weights in a different precision" + (detail and f": {detail}")
        )
    elif base_given and candidate.verdict in _TOLD:
        told.append(f"{chosen.title} was made for {_TOLD[candidate.verdict]}: {_differences(chosen)}")
    elif base_given and candidate.verdict is BaseVerdict.SAME_WEIGHTS_RESIZED_VOCABULARY:
        told.append(
            f"{chosen.title} was made for the same base with a vocabulary of another size: {_differences(chosen)}"
        )
    elif candidate.verdict is BaseVerdict.UNKNOWN and (base_given or not candidate.base_label):
        named = f", only the name {base_name(chosen)}" if candidate.base_label else ""
        told.append(f"{chosen.title} declares no base fingerprint{named}, so nothing proves that it fits")
    if chosen.is_prerelease and not request.spec.asks_for_prereleases:
        told.append(f"{chosen.title} is a pre-release; no final release fits")
    version = version_in(chosen)
    if version.local is not None and any(
        version_in(build).public == version.public and build.version != version for build in fitting
    ):
        # `0+<commit>` versions compare as text: the highest is not the latest.
        told.append(f"{chosen.title} is one of several snapshots, which have no order; pin the one you mean with `==`")
    return told


def labelled(builds: Sequence[Build], reasons: Mapping[Digest, str]) -> tuple[tuple[str, str], ...]:
    """`(label, reason)` of each refused build, newest first; a label is as short as it can be and still unique."""
    counts = [Counter(form) for form in zip(*(_label_forms(build) for build in builds), strict=True)]

    def label(build: Build) -> str:
        forms = _label_forms(build)
        return next((form for form, count in zip(forms, counts, strict=True) if count[form] == 1), forms[-1])

    return tuple((label(build), reasons[digest]) for build in builds if (digest := build.candidate.digest) in reasons)


def _label_forms(build: Build) -> tuple[str, str, str, str]:
    """Labels of a build among builds of one name, from the shortest to the most exact."""
    candidate = build.candidate
    version = shown(candidate.version)
    ranked = f"{version} rank {'unknown' if candidate.rank is None else candidate.rank}"
    based = f"{ranked} for {shown(candidate.base_label) or 'no base'}"
    return version, ranked, based, f"{based} {candidate.digest}"
