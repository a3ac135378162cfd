"""The reasons against builds, and the warnings about the chosen one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from adapterhub.core.digests import Digest
from adapterhub.core.errors import SpecError, shown
from adapterhub.distribution.resolve._builds import Build, Request, version_in
from adapterhub.formats.base.fingerprint import BaseVerdict

SHOWN_DIFFERENCES = 3
SHORT_DIGEST_CHARACTERS = 19  # `sha256:` and 12 hex digits


def objections(request: Request, build: Build) -> Iterator[str]:
    """The reasons against `build`, the most basic first; none if it fits."""
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
    return f"made for another base: {_differences(build) or base_name(build)}"


def _differences(build: Build) -> str:
    """The first few differences from the requested base; "" if there are none."""
    told = [shown(difference, 200) for difference in build.candidate.differences]
    more = len(told) - SHOWN_DIFFERENCES
    return "; ".join(told[:SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def base_name(build: Build) -> str:
    label = build.candidate.base_label
    return f"`{shown(label)}`" if label else "it names none"


def _yank(build: Build) -> str:
    return f"yanked: {shown(build.candidate.yanked or 'no reason given', 200)}"


def last_resorts(request: Request) -> list[tuple[Callable[[Build], bool], Callable[[Build], str]]]:
    """What is used only when nothing else fits, worst first: the test, and the reason when another build fits."""
    resorts: list[tuple[Callable[[Build], bool], Callable[[Build], str]]] = [
        (lambda build: build.is_mismatched, lambda build: f"{_mismatch(build)}; another build fits"),
        (lambda build: build.is_yanked, _yank),
        (lambda build: build.is_prerelease, lambda build: f"pre-release, `=={build.version}` asks for it"),
    ]
    return resorts[0 if request.base_given else 1 : 2 if request.spec.asks_for_prereleases else 3]


def warnings_about(request: Request, chosen: Build, fitting: Sequence[Build]) -> list[str]:
    """What the user should know about the choice, as whole sentences."""
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
