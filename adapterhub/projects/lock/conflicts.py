"""Finds requirements that contradict each other, and the command that resolves each contradiction.

    bases of adapters     an adapter requires another base than the project, or than its neighbours
    a base that moved     its weights differ from those locked under its name
    ranks                 an adapter requires a larger rank than the policy allows
    remotes               two remotes of the project have different bytes for one release

Each function reads values only and returns a `ProjectClash` or None. `conflict` makes one refusal of all clashes, so
that a user sees them together.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from adapterhub.core.dates import time_text
from adapterhub.core.digests import Digest
from adapterhub.core.disk.home import PROJECT_FILE
from adapterhub.core.errors import ProjectConflict, SpecError, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.resolve import Candidate
from adapterhub.formats.base.comparison import Judge, compare
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.library.bases.records import BaseRecord
from adapterhub.projects.file import parse_exclude_newer, refusal
from adapterhub.projects.values import (
    SHOWN_DIGEST,
    AdapterRequirement,
    LockedAdapter,
    LockedBase,
    Policy,
    Project,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectClash:
    """One contradiction. `reasons` are pairs of a place and its demand; `hint` is the command to type."""

    summary: str
    reasons: tuple[tuple[str, str], ...]
    hint: str


def conflict(found: Sequence[ProjectClash]) -> ProjectConflict:
    """One refusal for all clashes in `found`, which is not empty."""
    reasons = tuple(reason for one in found for reason in one.reasons)
    summary = "; ".join(dict.fromkeys(one.summary for one in found))
    return ProjectConflict(summary, reasons, hint="; ".join(dict.fromkeys(one.hint for one in found)))


def conflicts_in(project: Project, weights_of: Callable[[BaseSpec], str | None] | None = None) -> list[ProjectClash]:
    """Return the clashes that the project file shows by itself: different bases, and ranks over the maximum.

    `weights_of` returns the weights digest of a known base, so that two names of one base do not clash.
    """
    ranks = [one for wanted in project.adapters if (one := rank_over_maximum(project.policy, wanted))]
    bases = bases_asked_for(project, weights_of)
    return [*([bases] if bases else []), *ranks]


# ---------------------------------------------------------------- bases
def bases_asked_for(
    project: Project, weights_of: Callable[[BaseSpec], str | None] | None = None
) -> ProjectClash | None:
    """Adapters whose specs name a base other than the project's, or than each other's."""
    look_up = weights_of or (lambda _: None)

    def identity(base: BaseSpec) -> str:
        return look_up(base) or str(base)

    asking = [wanted for wanted in project.adapters if wanted.spec.base is not None]
    asked = [base for base in (project.base, *(wanted.spec.base for wanted in asking)) if base is not None]
    if len({identity(base) for base in asked}) <= 1:
        return None
    mine = asked[0]
    others = [
        wanted for wanted in asking if wanted.spec.base is not None and identity(wanted.spec.base) != identity(mine)
    ]
    reasons = [("project", f"is for base `{mine}`")] if project.base is not None else []
    reasons += [(one.key, f"requires base `{one.spec.base}`") for one in (others if reasons else asking)]
    other = others[0]
    bare = replace(other.spec, base=None)
    return ProjectClash(
        summary="a project has one base, but some of its adapters require another",
        reasons=tuple(reasons),
        hint=f"`adapt install --save {_typed(bare)}` takes a build for `{mine}`; `adapt init DIR --base "
        f"{_typed(other.spec.base)}` creates a separate project for `{other.spec.base}`",
    )


def built_for_several_bases(
    adapters: Sequence[LockedAdapter], label_of: Callable[[Digest], str] | None = None
) -> ProjectClash | None:
    """Locked builds for different bases, in a project that names no base.

    `label_of` names a base by its weights. A build that declares no base never clashes.
    """
    by_base: defaultdict[Digest, list[LockedAdapter]] = defaultdict(list)
    for one in sorted(adapters, key=lambda one: one.key):
        if one.base is not None:
            by_base[one.base].append(one)
    if len(by_base) <= 1:
        return None
    names = {base: shown(label_of(base) if label_of else "") or _short(base) for base in by_base}
    most = names[max(by_base, key=lambda base: len(by_base[base]))]
    return ProjectClash(
        summary="the adapters of this project are made for different bases",
        reasons=tuple(
            (one.key, f"{shown(one.version)} is made for base `{names[base]}`")
            for base, ones in by_base.items()
            for one in ones
        ),
        hint=f'`base = "{most}"` under `[project]` limits it to builds for that base; '
        "`adapt init DIR --base BASE` creates a separate project for another",
    )


def moved_base(
    locked: LockedBase, here: BaseRecord, evidence: Iterable[BaseFingerprint] = (), judge: Judge = compare
) -> ProjectClash | None:
    """Return a base whose weights differ from those locked under its name.

    `evidence` are the fingerprints that locked builds declare. With the fingerprint of the locked weights, another
    precision of the same base, and a quantised copy, are distinguishable from other weights; they do not clash.
    `judge` compares two.
    """
    now = here.fingerprint
    if locked.weights is None or locked.weights == now.weights:
        return None
    known = next((one for one in evidence if one.weights == locked.weights), None)
    is_same = known is not None and judge(known, now).verdict.stands_for
    if is_same or locked.tensors == now.tensors:
        return None
    same_shapes = locked.structure is not None and locked.structure == now.structure
    what = "other values in the same shapes" if same_shapes else "tensors of other names or shapes"
    return ProjectClash(
        summary=f"the weights of base `{shown(locked.spec)}` changed since they were locked",
        reasons=(
            ("locked", f"{locked.weights}"),
            ("here", f"{now.weights}: {what}" + (f", in {shown(str(here.path), 200)}" if here.path else "")),
        ),
        hint=f"`adapt lock --upgrade` chooses builds for the weights that are present; {_way_back(locked.spec)}",
    )


def _way_back(base: str) -> str:
    if BaseSpec.parse(base).kind == "alias":
        return f"`adapt base remove {base}` and `adapt base add FOLDER --as {base}` restore the locked ones"
    return "restore the folder, or `adapt base add` one that has the locked weights"


# ---------------------------------------------------------------- ranks and the rest of the policy
def rank_over_maximum(policy: Policy, wanted: AdapterRequirement) -> ProjectClash | None:
    """Return a required rank above the largest that the policy allows."""
    least, most = wanted.ranks.low, policy.max_rank
    if least is None or most is None or least <= most:
        return None
    asks = f"rank {least}" if wanted.ranks.low == wanted.ranks.high else f"a rank of at least {least}"
    return ProjectClash(
        summary="an adapter requires a larger rank than the project allows",
        reasons=((wanted.key, f"requires {asks}"), ("policy", f"`max-rank` is {most}")),
        hint=f"`adapt install --save {_typed(wanted.spec)} --rank -{most}` lowers the requirement; "
        f"`max-rank = {least}` under `[policy]` allows it",
    )


def kept_out(policy: Policy, wanted: AdapterRequirement, candidates: Iterable[Candidate], now: float) -> str:
    """Return the hint for an adapter whose every release the policy refuses: the rule to change.

    "" if it is not one rule.
    """
    builds = [one for one in candidates if _is_asked_for(wanted, one) and refusal(policy, one, now)]

    def held_by(free: Policy) -> list[Candidate]:
        """Return builds that the policy `free` would accept."""
        return [one for one in builds if refusal(free, one, now) is None]

    if held := held_by(replace(policy, max_rank=None)):
        return _rank_hint(policy, wanted, held)
    if held := held_by(replace(policy, exclude_newer=None)):
        return _date_hint(policy, held, now)
    for names, free in (
        (("allow-namespaces", "deny-namespaces"), replace(policy, allow_namespaces=(), deny_namespaces=())),
        (("allow-licenses", "deny-licenses"), replace(policy, allow_licenses=(), deny_licenses=())),
        (("allow-methods", "deny-methods"), replace(policy, allow_methods=(), deny_methods=())),
    ):
        if held_by(free):
            given = [f"`{name}`" for name in names if getattr(policy, name.replace("-", "_"))]
            return f"remove {' and '.join(given)} from `[policy]` of the project file to allow it"
    return ""


def _is_asked_for(wanted: AdapterRequirement, candidate: Candidate) -> bool:
    try:
        return wanted.spec.matches(candidate.version)
    except SpecError:
        return False


def _rank_hint(policy: Policy, wanted: AdapterRequirement, held: Sequence[Candidate]) -> str:
    ranks = [one.rank for one in held if one.rank is not None]
    if not ranks:
        return "its rank is not recorded, so no `max-rank` allows it"
    return (
        f"`max-rank = {min(ranks)}` under `[policy]` allows it; `adapt resize {wanted.spec.name} --rank "
        f"{policy.max_rank}` reduces an installed adapter"
    )


def _date_hint(policy: Policy, held: Sequence[Candidate], now: float) -> str:
    dates = [one.published_at for one in held if one.published_at is not None]
    if not dates or policy.exclude_newer is None:
        return "remove `exclude-newer` from `[policy]` of the project file to allow it"
    newest = parse_exclude_newer(policy.exclude_newer)
    if newest.age_s is not None:
        return f"the oldest release that fits is allowed from {time_text(min(dates) + newest.age_s)}"
    moment = time_text(min(min(dates) + 1, now))
    return f'`exclude-newer = "{moment}"` under `[policy]` allows the oldest release that fits'


# ---------------------------------------------------------------- remotes
def in_two_remotes(wanted: AdapterRequirement, offers: Mapping[str, Sequence[Candidate]]) -> ProjectClash | None:
    """Remotes of a project that have different bytes for the same build of an adapter.

    A release never changes, so one of them is wrong; only the user can decide which.
    """
    if not [*offers][1:]:
        return None
    named = [
        (remote, one)
        for remote, candidates in sorted(offers.items())
        for one in candidates
        if wanted.spec.namespace in {None, one.namespace}
        and (one.name == wanted.spec.name or one.repository == f"{one.namespace}/{wanted.spec.name}")
    ]
    digests: defaultdict[tuple[object, ...], set[Digest]] = defaultdict(set)
    places: defaultdict[tuple[object, ...], set[str]] = defaultdict(set)
    for remote, one in named:
        digests[_identity(one)].add(one.digest)
        places[_identity(one)].add(remote)
    torn = {key for key, found in digests.items() if len(found) > 1 and len(places[key]) > 1}
    if wanted.remote is not None or not torn:
        return None
    reasons = [
        (f"{wanted.key} in `{shown(remote)}`", _described(one)) for remote, one in named if _identity(one) in torn
    ]
    return ProjectClash(
        summary=f"two remotes of this project have different bytes for the same release of `{wanted.spec.full_name}`",
        reasons=tuple(reasons),
        hint=f"`{_entry(wanted, min(offers))}` in the project file picks one of them",
    )


def other_remotes_notice(
    wanted: AdapterRequirement, taken: tuple[str, Candidate], others: Mapping[str, Candidate]
) -> str | None:
    """Return a notice that other remotes of the project have a different build than `taken` from the first remote.

    `others` maps the name of each remote to its build.
    """
    differing = {name: one for name, one in sorted(others.items()) if one.digest != taken[1].digest}
    if wanted.remote is not None or not differing:
        return None
    told = ", ".join(f"remote `{shown(name)}` has {_described(one)}" for name, one in differing.items())
    return (
        f"`{wanted.key}` is {_described(taken[1])} of remote `{shown(taken[0])}`, which stands first; {told}. "
        f"`{_entry(wanted, next(iter(differing)))}` in the project file would take that one"
    )


def _identity(one: Candidate) -> tuple[object, ...]:
    # a base and its copy of another precision have one label
    return one.namespace, one.version, one.rank, one.base or one.base_label


def _entry(wanted: AdapterRequirement, remote: str) -> str:
    return f'{wanted.key} = {{ spec = "{wanted.spec}", remote = "{shown(remote)}" }}'


def _described(offer: Candidate) -> str:
    rank = f" rank {offer.rank}" if offer.rank is not None else ""
    dated = f", dated {time_text(offer.published_at)}" if offer.published_at is not None else ""
    return f"{shown(offer.version)}{rank} {_short(offer.digest)}{dated}"


# ---------------------------------------------------------------- yanked
def yanked_notice(key: str, name: str, version: str, reason: str) -> str:
    """Return the notice for a locked build that was yanked later; a locked build is installed anyway."""
    return (
        f"{_yanked(key, name, version, reason)}; it is locked, so it is installed anyway. "
        f"`adapt lock --upgrade {key}` chooses another"
    )


def left_notice(before: LockedAdapter, reason: str, now: LockedAdapter) -> str:
    """Return the notice that `now` replaces a locked build that was yanked."""
    other = shown(now.version) if now.name == before.name else f"{now.name} {shown(now.version)}"
    if now.version == before.version:
        other = f"another build of {other}"
    return f"{_yanked(before.key, before.name, before.version, reason)}; {other} replaces it"


def yanked_hint(wanted: AdapterRequirement, candidates: Iterable[Candidate]) -> str:
    """Return the hint for an adapter of which only yanked builds are allowed; "" if there is none."""
    yanked = [one for one in candidates if one.yanked is not None and _is_asked_for(wanted, one)]
    if not yanked:
        return ""
    return (
        f"let `{wanted.key}` be another version in `{PROJECT_FILE}`; `=={yanked[0].version}` in `{PROJECT_FILE}` keeps "
        "the yanked release"
    )


def _yanked(key: str, name: str, version: str, reason: str) -> str:
    also = f" (`{key}` here)" if key != name.rpartition("/")[2] else ""
    return f"`{name}=={shown(version)}`{also} was yanked: {shown(reason or 'no reason given', 200)}"


def _short(digest: Digest) -> str:
    return digest[:SHOWN_DIGEST]


def _typed(text: object) -> str:
    return shlex.quote(str(text))
