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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterNotFound, AmbiguousSpec, NoCompatibleRelease, SpecError, shown
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import AdapterSpec, BaseSpec
from adapterhub.distribution.resolve._builds import (
    Build,
    Candidate,
    Objection,
    Request,
    builds_named,
    version_in,
)
from adapterhub.distribution.resolve._reasons import (
    SHORT_DIGEST_CHARACTERS,
    base_name,
    labelled,
    last_resorts,
    objections,
    warnings_about,
)
from adapterhub.formats.base.fingerprint import BaseVerdict

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
        """The sentence that says which variant was taken, and how to name the others; "" where there is only one."""
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
    """The one build among `candidates` that `spec` and `ranks` mean.

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
    _check_prefix(spec, builds)
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
    for is_last_resort, reason_of in last_resorts(request):
        others = [build for build in fitting if not is_last_resort(build)]
        if others:
            reasons.update((b.candidate.digest, reason_of(b)) for b in fitting if is_last_resort(b))
            fitting = others
    if not base_given:
        _check_one_base(spec, fitting)
    chosen, *variants = _by_preference(request, fitting)
    _check_one_spelling(spec, [chosen, *variants])
    return Resolution(
        chosen=chosen.candidate,
        builds=builds,
        reasons=reasons,
        warnings=tuple(warnings_about(request, chosen, fitting)),
        variants=tuple(b.candidate for b in variants if _is_proven(request, b) == _is_proven(request, chosen)),
    )


def _exact(candidate: Candidate) -> str:
    """The spec that means exactly this build."""
    return f"{candidate.full_name}#{candidate.digest[:SHORT_DIGEST_CHARACTERS]}"


def _rank(candidate: Candidate) -> str:
    return "no rank" if candidate.rank is None else f"rank {candidate.rank}"


def _check_prefix(spec: AdapterSpec, builds: Sequence[Build]) -> None:
    """Raise if two builds share the digest prefix: someone can forge a collision of eight digits."""
    if spec.digest_prefix is None:
        return
    same = [build for build in builds if build.candidate.digest.startswith(spec.digest_prefix)]
    if len(same) > 1:
        choices = [
            (str(replace(spec, digest_prefix=build.candidate.digest)), f"version {shown(build.candidate.version)}")
            for build in same
        ]
        raise AmbiguousSpec(f"{len(same)} builds of `{spec.full_name}` start with `{spec.digest_prefix}`", choices)


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
    """The builds of the newest version, the best first."""
    newest = max(version_in(build) for build in fitting)

    def preference(build: Build) -> tuple[bool, int, bool, str]:
        # Proven before unproven outranks rank: a larger adapter on the wrong base is no better adapter.
        is_converted = request.base_given and build.candidate.verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION
        return not _is_proven(request, build), -(build.candidate.rank or 0), is_converted, build.candidate.digest

    return sorted((build for build in fitting if build.version == newest), key=preference)


def _is_proven(request: Request, build: Build) -> bool:
    """Whether the base is the requested one by content; true where none is requested."""
    return not request.base_given or build.candidate.verdict.is_same_model


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
    """A hint for an unknown name: the most similar known names, or where to search."""
    import difflib  # 5 ms of import for misspelt names only

    written = {name if spec.namespace else name.rpartition("/")[2]: name for name in sorted(known_names)}
    close = difflib.get_close_matches(spec.full_name, written, n=3)
    search = f"`adapt search {spec.name}` lists what is available"
    return f"did you mean {' or '.join(f'`{shown(written[name])}`' for name in close)}? {search}" if close else search
