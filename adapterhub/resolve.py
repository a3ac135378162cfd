"""Which build a spec means: spec and candidates in, one choice or all the reasons against it out.

Nothing is read, asked or remembered here, and the order of the candidates never matters.

A build is refused outside the digest, the versions, the base or the rank that were asked for, in that order, and when
it is yanked and not pinned. Among builds that fit, a mismatched base (where allowed), a yanked build (where pinned) and
a pre-release (where not asked for) are last resorts: they are taken only when nothing else fits, with a warning. Then
the newest version wins, and among its builds the one for a base that is proven to be this one, then the highest rank,
then the same precision, then the lowest digest.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adapterhub.digests import Digest
from adapterhub.errors import (
    AdapterNotFound,
    AmbiguousSpec,
    NoCompatibleRelease,
    SpecError,
    UsageProblem,
    shown,
)
from adapterhub.fingerprint import BaseVerdict
from adapterhub.specs import AdapterSpec, BaseSpec

if TYPE_CHECKING:
    from packaging.version import Version

SHOWN_DIFFERENCES = 3
SHORT_DIGEST_CHARACTERS = 19  # `sha256:` and 12 hex digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One build that a place offers.

    `verdict` and `differences` compare the base it was made for with the base asked for; neither is looked at when
    none is given. `base_label` names the base it was made for as it would be typed after `@`; "" if it declares none.
    `yanked` is the reason, which may be "", or None. `source` is where it is.
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

    @property
    def full_name(self) -> str:
        """`acme/legal-qa` or `legal-qa`."""
        return self.name if self.namespace is None else f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """The build to take. `refusals` holds `(build, reason)`, newest first; `warnings` are whole sentences."""

    chosen: Candidate
    refusals: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def resolve(
    spec: AdapterSpec,
    candidates: Iterable[Candidate],
    *,
    base_given: bool,
    rank: int | None = None,
    min_rank: int | None = None,
    max_rank: int | None = None,
    allow_base_mismatch: bool = False,
    known_names: Sequence[str] = (),
) -> Resolution:
    """The one build among `candidates` that `spec` and the ranks mean.

    `base_given`: the verdicts are about a base the user chose, in the spec or elsewhere. A bare name never picks among
    namespaces: a build without one is meant before all others, and otherwise all have to be in the same one.
    `known_names` are full names to look for a misspelling in.

    Raises:
        UsageProblem: ranks below 1, or that no build could have together.
        AdapterNotFound: no candidate has the name.
        AmbiguousSpec: what fits spans several namespaces, digests with the same start or, with no base given, bases.
        NoCompatibleRelease: candidates, but none that fits; one reason each.
    """
    request = _Request(
        spec=spec,
        ranks=_RankRange.of(rank, min_rank, max_rank),
        base_given=base_given,
        allow_base_mismatch=allow_base_mismatch,
    )
    builds = _builds_named(spec, candidates)
    if not builds:
        raise AdapterNotFound(f"no adapter is named `{spec.full_name}`", hint=_nearest(spec, known_names))
    _refuse_shared_prefix(spec, builds)
    reasons = {build: reason for build in builds if (reason := next(_objections(request, build), None)) is not None}
    fitting = [build for build in builds if build not in reasons]
    if not fitting:
        raise _nothing_fits(request, _labelled(builds, reasons))
    for is_last_resort, reason_of in _last_resorts(request):
        others = [build for build in fitting if not is_last_resort(build)]
        if others:
            reasons.update((build, reason_of(build)) for build in fitting if is_last_resort(build))
            fitting = others
    if not base_given:
        _refuse_several_bases(spec, fitting)
    chosen = _best(request, fitting)
    return Resolution(
        chosen=chosen.candidate,
        refusals=_labelled(builds, reasons),
        warnings=tuple(_warnings(request, chosen, fitting)),
    )


@dataclass(frozen=True, slots=True)
class _Build:
    """A candidate with its version as a value; None if it is not one."""

    candidate: Candidate
    version: Version | None

    @property
    def is_mismatched(self) -> bool:
        return not self.candidate.verdict.allows_attach

    @property
    def is_yanked(self) -> bool:
        return self.candidate.yanked is not None

    @property
    def is_prerelease(self) -> bool:
        return self.version is not None and self.version.is_prerelease

    @property
    def title(self) -> str:
        return f"`{self.candidate.full_name}=={shown(self.candidate.version)}`"


@dataclass(frozen=True, slots=True)
class _RankRange:
    """The ranks asked for; both ends are inside, None is open."""

    low: int | None
    high: int | None

    @classmethod
    def of(cls, rank: int | None, low: int | None, high: int | None) -> _RankRange:
        for asked in (rank, low, high):
            if asked is not None and asked < 1:
                raise UsageProblem(f"rank {asked}: a rank is at least 1")
        if low is not None and high is not None and low > high:
            raise UsageProblem(f"no rank is at least {low} and at most {high}")
        if rank is None:
            return cls(low, high)
        if rank < (low or rank) or rank > (high or rank):
            raise UsageProblem(f"rank {rank} is not inside the range of ranks asked for, {cls(low, high)}")
        return cls(rank, rank)

    def __str__(self) -> str:
        if self.low == self.high:
            return str(self.low)
        ends = [f"at least {self.low}" if self.low else "", f"at most {self.high}" if self.high else ""]
        return " and ".join(filter(None, ends))

    def refusal(self, rank: int | None) -> str | None:
        """Why a build of `rank` is outside, or None."""
        if self.low is None and self.high is None:
            return None
        if rank is None:
            return f"rank not recorded, {self} asked"
        inside = (self.low or rank) <= rank <= (self.high or rank)
        return None if inside else f"rank {rank}, {self} asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What was asked for, in one value."""

    spec: AdapterSpec
    ranks: _RankRange
    base_given: bool
    allow_base_mismatch: bool

    @property
    def is_pinned(self) -> bool:
        return self.spec.pinned_version is not None or self.spec.digest_prefix is not None


def _builds_named(spec: AdapterSpec, candidates: Iterable[Candidate]) -> list[_Build]:
    """The builds with the name in `spec`, each digest once, newest first.

    Raises:
        AmbiguousSpec: a bare name that several namespaces have, none of them the empty one.
    """
    named = [c for c in candidates if c.name == spec.name and spec.namespace in {None, c.namespace}]
    namespaces = {c.namespace for c in named}
    if spec.namespace is None and len(namespaces) > 1:
        # Taking the newest of all would let a stranger's 99.0 stand in for the user's own adapter.
        if None not in namespaces:
            choices = [(str(replace(spec, namespace=n)), f"namespace `{n}`") for n in sorted(filter(None, namespaces))]
            raise AmbiguousSpec(f"more than one namespace has `{spec.name}`", choices)
        named = [c for c in named if c.namespace is None]
    copies: dict[Digest, list[Candidate]] = {}
    for candidate in named:
        copies.setdefault(candidate.digest, []).append(candidate)
    merged = [_merged(copies[digest]) for digest in sorted(copies)]
    builds = [_Build(candidate, _version_of(candidate)) for candidate in merged]
    builds.sort(key=lambda b: b.candidate.rank or 0, reverse=True)
    unversioned = [b for b in builds if b.version is None]
    return [*sorted((b for b in builds if b.version is not None), key=_newest, reverse=True), *unversioned]


def _merged(copies: Sequence[Candidate]) -> Candidate:
    """One candidate for copies of the same bytes: a place that knows the base, or knows of a yank, is right."""
    best = min(copies, key=lambda c: (c.verdict is BaseVerdict.UNKNOWN, c.source, repr(c)))
    yanks = sorted(copy.yanked for copy in copies if copy.yanked is not None)
    return replace(best, yanked=yanks[-1]) if yanks else best


def _version_of(candidate: Candidate) -> Version | None:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(candidate.version)
    except InvalidVersion:
        return None


def _newest(build: _Build) -> Version:
    """Sort key of builds that fit, or that have a version at all."""
    assert build.version is not None
    return build.version


def _refuse_shared_prefix(spec: AdapterSpec, builds: Sequence[_Build]) -> None:
    """Refuse a digest prefix that two builds share: eight digits are few enough to be made to collide."""
    if spec.digest_prefix is None:
        return
    same = [build for build in builds if build.candidate.digest.startswith(spec.digest_prefix)]
    if len(same) > 1:
        choices = [
            (str(replace(spec, digest_prefix=build.candidate.digest)), f"version {shown(build.candidate.version)}")
            for build in same
        ]
        raise AmbiguousSpec(f"{len(same)} builds of `{spec.full_name}` start with `{spec.digest_prefix}`", choices)


def _objections(request: _Request, build: _Build) -> Iterator[str]:
    """Why `build` cannot be taken at all, the most basic reason first; nothing if it can."""
    spec, candidate = request.spec, build.candidate
    if spec.digest_prefix is not None and not candidate.digest.startswith(spec.digest_prefix):
        yield f"digest {candidate.digest[:SHORT_DIGEST_CHARACTERS]}…, {spec.digest_prefix} asked"
    try:
        if not spec.matches(candidate.version):
            yield f"version {candidate.version} is outside {spec.specifiers}"
    except SpecError as error:
        yield error.reason
    if request.base_given and build.is_mismatched:
        if candidate.verdict is not BaseVerdict.SAME_SHAPES:
            yield _mismatch(build)
        elif not request.allow_base_mismatch:
            yield f"{_mismatch(build)}; the shapes are the same, `--allow-base-mismatch` takes it"
    outside = request.ranks.refusal(candidate.rank)
    if outside is not None:
        yield outside
    if build.is_yanked and not request.is_pinned:
        yield _yank(build)


def _mismatch(build: _Build) -> str:
    return f"made for another base: {_differences(build) or _base_name(build)}"


def _differences(build: _Build) -> str:
    """The first few differences from the base asked for; "" if none are told."""
    told = [shown(difference, 200) for difference in build.candidate.differences]
    more = len(told) - SHOWN_DIFFERENCES
    return "; ".join(told[:SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def _base_name(build: _Build) -> str:
    label = build.candidate.base_label
    return f"`{shown(label)}`" if label else "it names none"


def _yank(build: _Build) -> str:
    return f"yanked: {shown(build.candidate.yanked or 'no reason given', 200)}"


def _last_resorts(request: _Request) -> list[tuple[Callable[[_Build], bool], Callable[[_Build], str]]]:
    """What is taken only when nothing else fits, worst first: the test, and the reason when something else did."""
    resorts: list[tuple[Callable[[_Build], bool], Callable[[_Build], str]]] = [
        (lambda build: build.is_mismatched, lambda build: f"{_mismatch(build)}; another build fits"),
        (lambda build: build.is_yanked, _yank),
        (lambda build: build.is_prerelease, lambda build: f"pre-release, `=={build.version}` asks for it"),
    ]
    return resorts[0 if request.base_given else 1 : 2 if request.spec.asks_for_prereleases else 3]


def _refuse_several_bases(spec: AdapterSpec, fitting: Sequence[_Build]) -> None:
    """Refuse to pick a base for the user; the choices are specs with each base, or the digest where it has no name."""
    newest: dict[str, _Build] = {}
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
            base = f"made for {_base_name(build)}," if label else "declares no base,"
        rank = f", rank {build.candidate.rank}" if build.candidate.rank is not None else ""
        choices.append((str(exact), f"{base} {shown(build.candidate.version)}{rank}"))
    raise AmbiguousSpec(f"`{spec}` fits more than one base, and none was given", choices)


def _best(request: _Request, fitting: Sequence[_Build]) -> _Build:
    """The newest version, and its best build."""
    newest = max(_newest(build) for build in fitting)

    def preference(build: _Build) -> tuple[int, int, int, str]:
        verdict = build.candidate.verdict if request.base_given else BaseVerdict.SAME_WEIGHTS
        # Proven before unproven outranks rank: a larger adapter on the wrong base is no better adapter.
        is_unproven = verdict not in {BaseVerdict.SAME_WEIGHTS, BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION}
        is_converted = verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION
        return is_unproven, -(build.candidate.rank or 0), is_converted, build.candidate.digest

    return min((build for build in fitting if build.version == newest), key=preference)


def _warnings(request: _Request, chosen: _Build, fitting: Sequence[_Build]) -> list[str]:
    """What the user should know about the choice, as whole sentences."""
    candidate, told, base_given = chosen.candidate, [], request.base_given
    if chosen.is_yanked:
        told.append(f"{chosen.title} is {_yank(chosen)}")
    if base_given and chosen.is_mismatched:
        told.append(f"{chosen.title} was {_mismatch(chosen)}; taken because a mismatch was allowed")
    elif base_given and candidate.verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION:
        detail = _differences(chosen)
        told.append(f"{chosen.title} was made for the same weights in another precision" + (detail and f": {detail}"))
    elif candidate.verdict is BaseVerdict.UNKNOWN and (base_given or not candidate.base_label):
        named = f", only the name {_base_name(chosen)}" if candidate.base_label else ""
        told.append(f"{chosen.title} declares no base fingerprint{named}, so nothing proves that it fits")
    if chosen.is_prerelease and not request.spec.asks_for_prereleases:
        told.append(f"{chosen.title} is a pre-release; no final release fits")
    version = _newest(chosen)
    if version.local is not None and any(
        _newest(build).public == version.public and build.version != version for build in fitting
    ):
        # `0+<commit>` versions compare as text: the highest is not the latest.
        told.append(f"{chosen.title} is one of several snapshots, which have no order; `==` pins the one you mean")
    return told


def _labelled(builds: Sequence[_Build], reasons: dict[_Build, str]) -> tuple[tuple[str, str], ...]:
    """`(label, reason)` of each refused build, newest first; a label says just enough to tell it from the others."""
    counts = [Counter(form) for form in zip(*(_label_forms(build) for build in builds), strict=True)]

    def label(build: _Build) -> str:
        forms = _label_forms(build)
        return next((form for form, count in zip(forms, counts, strict=True) if count[form] == 1), forms[-1])

    return tuple((label(build), reasons[build]) for build in builds if build in reasons)


def _label_forms(build: _Build) -> tuple[str, str, str, str]:
    """Names of a build among builds of one name, each longer and telling more apart."""
    candidate = build.candidate
    version = shown(candidate.version)
    ranked = f"{version} rank {'unknown' if candidate.rank is None else candidate.rank}"
    based = f"{ranked} for {shown(candidate.base_label) or 'no base'}"
    return version, ranked, based, f"{based} {candidate.digest}"


def _nothing_fits(request: _Request, refusals: Sequence[tuple[str, str]]) -> NoCompatibleRelease:
    spec = request.spec
    if spec.base is not None:
        fits = f"fits base `{spec.base}`"
        hint = f"`adapt search --base {shlex.quote(str(spec.base))}` lists adapters that fit"
    else:
        fits = "fits the base" if request.base_given else "fits"
        hint = f"`adapt search {spec.name}` lists what there is"
    return NoCompatibleRelease(f"no release of `{spec.full_name}` {fits}", refusals, hint=hint)


def _nearest(spec: AdapterSpec, known_names: Sequence[str]) -> str:
    """A hint for a name that nothing has: the most similar known ones, or where to look."""
    import difflib  # 5 ms of import for misspelt names only

    written = {name if spec.namespace else name.rpartition("/")[2]: name for name in sorted(known_names)}
    close = difflib.get_close_matches(spec.full_name, written, n=3)
    search = f"`adapt search {spec.name}` lists what there is"
    return f"did you mean {' or '.join(f'`{shown(written[name])}`' for name in close)}? {search}" if close else search
