"""Turns the requirements of a project into locked builds.

A locked build stays, and is not looked up, while its requirement, base, policy and place are unchanged; `upgrade`
chooses again. Otherwise the places of an adapter are searched in order, the library last, and the first place with a
fitting build decides. So the lock is the same on every machine that reaches the same places.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal

from adapterhub.core.digests import Digest
from adapterhub.core.disk.home import LOCK_FILE
from adapterhub.core.errors import (
    AdapterHubError,
    Incompatible,
    NotAllowed,
    NotFound,
    RemoteUnreachable,
    UsageProblem,
    problem_list,
    reworded,
    shown,
)
from adapterhub.core.specs import AdapterName, version_of
from adapterhub.distribution.install import looking_ahead
from adapterhub.distribution.remote_kinds import kind_named, kind_of
from adapterhub.formats.contract.results import Tested
from adapterhub.formats.documented import Documented
from adapterhub.library.aliasing import ensure_no_base
from adapterhub.library.library import Library
from adapterhub.library.transfer import AT_ONCE, Source, together
from adapterhub.projects.aliases import adapter_of, is_alias_key
from adapterhub.projects.builds import label_of
from adapterhub.projects.file import not_in_project, objection_of
from adapterhub.projects.lock.conflicts import built_for_several_bases, conflict, conflicts_in
from adapterhub.projects.lock.lockfile import adapter_problems, locked_step, merge_problems, policy_changes
from adapterhub.projects.locking.choosing import (
    Asking,
    Chosen,
    base_choice,
    choose_build,
    weights_of,
)
from adapterhub.projects.values import (
    SHOWN_DIGEST,
    AdapterRequirement,
    Lock,
    Locked,
    LockedAdapter,
    LockedBase,
    LockedMerge,
    LockedSource,
    MergeRequirement,
    Policy,
    Project,
)

ALL: Final = frozenset({"*"})
"""A value of `upgrade` that chooses everything again."""

SourcesFor = Callable[[AdapterRequirement], Sequence[Source]]
"""Returns the places to look up an adapter in, in order, without the library."""
MakeMerge = Callable[[MergeRequirement, Mapping[AdapterName, Locked]], LockedMerge]
"""Runs a merge whose inputs are locked, and returns the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOutcome:
    """The new lock, its differences from the old one, and warnings as whole sentences."""

    lock: Lock
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LockReport(
    Documented,
    keys="project lock=file current? written? changes? warnings? base=lock.base adapters=lock.adapters"
    " merges=lock.merges",
    title="Lock",
):
    """A lock file."""

    project: Annotated[Path, "its folder"]
    lock: Lock
    current: Annotated[bool | None, "with --check: true"] = None
    written: Annotated[bool | None, "false: the file was up to date"] = None
    changes: tuple[Change, ...] | None = None
    warnings: tuple[str, ...] | None = None

    @property
    def file(self) -> Path:
        """The file."""
        return self.project / LOCK_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class DropIn(Documented, keys="key=after.key from=before.version to=after.version kept digest=after.digest tests"):
    """How a newer build does by the contract of the locked one, which is of version `from`."""

    before: LockedAdapter
    after: LockedAdapter
    tested: Tested
    kept: Annotated[bool, "false: the locked build stays"]

    @property
    def tests(self) -> tuple[Tested, ...]:
        """The verdict."""
        return (self.tested,)

    @property
    def line(self) -> str:
        """`a  1.0.1 -> 1.1.0  drop-in`."""
        why = self.tested.broken or ([self.tested.detail] if self.tested.detail else [])
        told = ": ".join([DROP_IN_WORDS.get(self.tested.verdict, "no contract to be held to"), *why[:1]])
        return f"{self.after.key}  {self.before.version} -> {self.after.version}  {shown(told, 400)}"


DROP_IN_WORDS: Final = {"PASS": "drop-in", "CHANGED": "behaviour changed", "UNKNOWN": "no verdict is possible"}
"""What a verdict by the older contract means for an upgrade."""


def lock_project(
    library: Library,
    project: Project,
    sources_for: SourcesFor,
    *,
    previous: Lock | None = None,
    upgrade: Collection[str] = (),
    make_merge: MakeMerge | None = None,
    given: Mapping[AdapterName, LockedAdapter] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LockOutcome:
    """Lock every requirement of `project`; nothing is written.

    `upgrade` names entries to choose again (`ALL`: everything). `given` are builds to lock if a place has them.
    `progress` gets the number of adapters done and their total.

    Raises:
        NotFound: no place has a name, or `upgrade` names nothing of the project.
        Incompatible: releases exist but none fits; names all such adapters.
        ProjectConflict: bases, ranks or remotes contradict each other; names all contradictions.
        RemoteUnreachable: a place that could decide does not answer.
        NotAllowed: the policy requires a contract, and a build has none.
        Conflict: an alias has the name of a base.
    """
    _check_names(project, upgrade)
    for key in (wanted.key for wanted in project.adapters if is_alias_key(wanted.key)):
        ensure_no_base(library, key.split("@")[1], adapter_of(key))
    if found := conflicts_in(project, lambda named: weights_of(library, project, named)):
        raise conflict(found)
    base = base_choice(library, project, previous, takes_new=upgrade == ALL)
    now = time.time()
    asking = Asking(
        library=library,
        project=project,
        base=base,
        refuse=objection_of(project.policy, now),
        now=now,
    )
    search = _Search(asking=asking, sources_for=sources_for, previous=previous)
    adapters, warnings = search.adapters(upgrade, given or {}, progress)
    if project.base is None and (clash := built_for_several_bases(adapters, lambda weights: _alias(library, weights))):
        raise conflict([clash])
    warnings += ensure_contracts(project.policy, adapters)
    entries: dict[AdapterName, Locked] = {entry.key: entry for entry in adapters}
    for merge in _in_order(project.merges):
        old = previous.entries.get(merge.key) if previous else None
        entries[merge.key] = _merge(merge, entries, old, make_merge, is_upgraded=merge.key in upgrade)
    lock = Lock.of(entries.values(), base.locked, project.policy)
    return LockOutcome(lock=lock, changes=changes_between(previous, lock), warnings=tuple(dict.fromkeys(warnings)))


def ensure_contracts(policy: Policy, adapters: Sequence[LockedAdapter]) -> list[str]:
    """Apply the policy `tests` to the contracts that a lock records; returns warnings under `warn`.

    Whether a build passed its contract is for `sync`, which has it.

    Raises:
        NotAllowed: under `require`; names each build that has none.
    """
    if not policy.looks_at_tests:
        return []
    bare = [f"`{entry.key}` {label_of(entry)}: has no contract" for entry in adapters if entry.contract is None]
    if policy.tests == "warn" or not bare:
        return bare
    title = 'the policy `tests = "require"` refuses what has no contract to pass; nothing was locked'
    raise NotAllowed(problem_list(title, bare), hint="`adapt contract record NAME` records one in the next version")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """The lookups of one project."""

    asking: Asking
    sources_for: SourcesFor
    previous: Lock | None

    def adapters(
        self,
        upgrade: Collection[str],
        given: Mapping[AdapterName, LockedAdapter],
        progress: Callable[[int, int], None] | None,
    ) -> tuple[list[LockedAdapter], list[str]]:
        """Return the locked entry of every adapter of the project, and warnings."""
        project, known = self.asking.project, self.previous.entries if self.previous else {}
        policy_is_new = self.previous is not None and bool(policy_changes(self.previous.policy, project.policy))
        found: dict[AdapterName, LockedAdapter] = {}
        to_ask: list[tuple[AdapterRequirement, LockedAdapter | None]] = []

        def must_ask(wanted: AdapterRequirement, old: LockedAdapter) -> bool:
            if self.asking.base.is_new or upgrade == ALL or wanted.key in upgrade:
                return True
            return bool(adapter_problems(project, wanted, replace(old, group=wanted.group)))

        for wanted in project.adapters:
            old = known.get(wanted.key)
            if wanted.key in given:
                to_ask.append((wanted, given[wanted.key]))
            elif not isinstance(old, LockedAdapter) or must_ask(wanted, old):
                to_ask.append((wanted, None))
            elif policy_is_new:
                to_ask.append((wanted, old))  # the same build again, if the new policy allows it
            else:
                found[wanted.key] = replace(old, group=wanted.group)
        warnings: list[str] = []
        for chosen in self.ask(to_ask, progress):
            found[chosen.entry.key] = chosen.entry
            warnings += chosen.warnings
        return [found[wanted.key] for wanted in project.adapters], warnings

    def before(self, wanted: AdapterRequirement) -> LockedAdapter | None:
        """Return the adapter that is locked under this name."""
        old = self.previous.entries.get(wanted.key) if self.previous else None
        return old if isinstance(old, LockedAdapter) else None

    def ask(
        self,
        to_ask: Sequence[tuple[AdapterRequirement, LockedAdapter | None]],
        progress: Callable[[int, int], None] | None,
    ) -> list[Chosen]:
        """Return the choice for each adapter, or one refusal that names every adapter without one."""
        places = [self.sources_for(wanted) for wanted, _ in to_ask]
        are_servers = any(kind_of(source.place).is_server for one in places for source in one)

        def choose(number: int, _: object) -> Chosen:
            wanted, old = to_ask[number]
            return choose_build(self.asking, wanted, places[number], keep=old, before=self.before(wanted))

        answers: list[Chosen | AdapterHubError] = []
        specs = [self.asking.spec_of(wanted) for wanted, _ in to_ask]
        with looking_ahead(self.asking.library, specs, places) if are_servers else contextlib.nullcontext():
            for answer in together(range(len(to_ask)), choose, at_once=AT_ONCE if are_servers else 1):
                answers.append(answer)
                if progress is not None:
                    progress(len(answers), len(to_ask))
        failed = [(one.key, answer) for (one, _), answer in zip(to_ask, answers, strict=True)
                  if isinstance(answer, AdapterHubError)]  # fmt: skip
        if failed:
            raise _refusal(failed)
        return [answer for answer in answers if isinstance(answer, Chosen)]


def _alias(library: Library, weights: Digest) -> str:
    """Return the name of a registered base by its weights; "" if it is not registered."""
    record = library.bases.by_weights(weights)
    return record.alias if record else ""


def _refusal(failed: Sequence[tuple[AdapterName, AdapterHubError]]) -> AdapterHubError:
    """One error for all failures."""
    if len(failed) == 1:
        key, error = failed[0]
        if isinstance(error, RemoteUnreachable):  # its message names only the server
            return RemoteUnreachable(f"`{key}` cannot be locked: {error.message}. Nothing was changed", hint=error.hint)
        return error
    lines = [f"`{key}`: {error.message}" for key, error in failed]
    hints = list(dict.fromkeys(error.hint for _, error in failed if error.hint))
    errors = [error for _, error in failed]
    # an unreachable place may have caused the other failures
    kinds = (RemoteUnreachable, NotFound, Incompatible, UsageProblem)
    kind = next((kind for kind in kinds if any(isinstance(error, kind) for error in errors)), None)
    message = "\n".join([f"{len(failed)} adapters of the project cannot be locked. Nothing was changed", *lines])
    if kind is None:
        return reworded(errors[0], message)
    return kind(message, hint="; ".join(hints[:3]))


def _check_names(project: Project, upgrade: Collection[str]) -> None:
    """Raise unless the project has every name in `upgrade`."""
    names = [wanted.key for wanted in project.requirements]
    unknown = [name for name in upgrade if name not in names] if upgrade != ALL else []
    if unknown:
        raise not_in_project(unknown[0], names)


def _in_order(merges: Sequence[MergeRequirement]) -> list[MergeRequirement]:
    """Sort merges in order of dependency; the reader of the project has refused cycles."""
    by_key = {merge.key: merge for merge in merges}
    done: dict[AdapterName, MergeRequirement] = {}

    def visit(merge: MergeRequirement) -> None:
        if merge.key in done:
            return
        for leaf in merge.step.leaves():
            if (inner := by_key.get(AdapterName(leaf.spec))) is not None:
                visit(inner)
        done[merge.key] = merge

    for merge in merges:
        visit(merge)
    return list(done.values())


def _merge(
    wanted: MergeRequirement,
    entries: Mapping[AdapterName, Locked],
    old: Locked | None,
    make_merge: MakeMerge | None,
    *,
    is_upgraded: bool,
) -> LockedMerge:
    """Return the locked merge if it is up to date, otherwise the result of running it."""
    if isinstance(old, LockedMerge) and not is_upgraded:
        kept = replace(old, group=wanted.group)
        if not merge_problems(wanted, kept, entries):
            return kept
    if make_merge is None:
        raise UsageProblem(
            f"`{wanted.key}` is a merge, which cannot be made here", hint="`adapt lock` makes and locks it"
        )
    inputs = {key: entries[key] for leaf in wanted.step.leaves() if (key := AdapterName(leaf.spec)) in entries}
    made = make_merge(wanted, inputs)
    # the lock is compared by this step, not by the defaults that the run wrote out
    return replace(made, key=wanted.key, step=locked_step(wanted.step, entries), group=wanted.group)


_SIGNS: Final = {"added": "+", "removed": "-", "changed": "~"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Documented, keys="kind key text"):
    """A difference from the previous lock. `key` is None for the base and the policy; `text` describes it."""

    kind: Annotated[Literal["added", "removed", "changed"], "`added`, `changed` or `removed`"]
    key: Annotated[AdapterName | None, "the name in the project; null for the base and the policy"]
    text: Annotated[str, "as text"]
    before: Locked | None = None
    after: Locked | None = None

    @property
    def line(self) -> str:
        """`~ legal-qa  1.2.0 -> 1.3.0`."""
        return f"{_SIGNS[self.kind]} {self.key}  {self.text}" if self.key else f"{_SIGNS[self.kind]} {self.text}"

    @property
    def short(self) -> str:
        """Form with only the versions, without digests and places: `~ legal-qa 1.2.0 -> 1.3.0`."""
        before, after = self.before, self.after
        text = self.text
        if before is None or after is None:
            one = before or after
            text = one.version if one else text
        elif before.digest != after.digest and isinstance(after, LockedMerge):
            text = "merged again"
        elif before.version != after.version:
            text = f"{before.version} -> {after.version}"
        elif before.digest != after.digest:
            text = f"{after.version}, another build"
        return replace(self, text=text).line


def changes_between(before: Lock | None, after: Lock) -> tuple[Change, ...]:
    """Every difference, sorted by name; without `before`, all of `after` is new."""
    found: list[Change] = []
    old = before.entries if before else {}
    now = after.entries
    if (text := _base_text(before.base if before else None, after.base)) is not None:
        found.append(Change(kind="changed" if before and before.base else "added", key=None, text=text))
    if before is not None:
        found += [Change(kind="changed", key=None, text=text) for text in policy_changes(before.policy, after.policy)]
    for key in sorted(old.keys() | now.keys()):
        one, other = old.get(key), now.get(key)
        if one is None and other is not None:
            found.append(Change(kind="added", key=key, text=_about(other), after=other))
        elif other is None and one is not None:
            found.append(Change(kind="removed", key=key, text=_about(one), before=one))
        elif one is not None and other is not None and one != other:
            found.append(Change(kind="changed", key=key, text=_difference(one, other), before=one, after=other))
    return tuple(found)


def _about(entry: Locked) -> str:
    name = entry.name if isinstance(entry, LockedAdapter) else "merge"
    rank = f" rank {entry.rank}" if entry.rank else ""
    return f"{name} {entry.version}{rank}  {entry.digest[:SHOWN_DIGEST]}  {place_text(entry.source)}"


def place_text(source: LockedSource) -> str:
    """Describe in words the place that a locked build comes from."""
    if source.is_library:
        return "from the library"
    return f"from {shown(kind_named(source.kind).describe(source.address, source.pin), 200)}"


def _difference(one: Locked, other: Locked) -> str:
    """Return the fields that differ, the most important first."""
    told = []
    if isinstance(one, LockedAdapter) and isinstance(other, LockedAdapter):
        if one.name != other.name:
            told.append(f"{one.name} -> {other.name}")
        if version_of(one.version) == version_of(other.version) and one.digest != other.digest:
            told.append(f"{one.version}, another build of that version")
    elif type(one) is not type(other):
        told.append("a merge now" if isinstance(other, LockedMerge) else "no longer a merge")
    elif isinstance(one, LockedMerge) and isinstance(other, LockedMerge) and one.step != other.step:
        told.append("different recipe or inputs")
    if one.version != other.version:
        told.append(f"{one.version} -> {other.version}")
    if one.digest != other.digest:
        told.append(f"{one.digest[:SHOWN_DIGEST]} -> {other.digest[:SHOWN_DIGEST]}")
    if one.rank != other.rank:
        told.append(f"rank {one.rank or 'none'} -> {other.rank or 'none'}")
    if one.source != other.source:
        told.append(f"{place_text(one.source)} -> {place_text(other.source)}")
    if isinstance(one, LockedAdapter) and isinstance(other, LockedAdapter) and one.wanted != other.wanted:
        told.append(f"asked for as `{shown(other.wanted)}`")
    if one.group != other.group:
        told.append(f"group {one.group or 'none'} -> {other.group or 'none'}")
    return "  ".join(told) or "recorded differently"


def _base_text(one: LockedBase | None, other: LockedBase | None) -> str | None:
    if one == other:
        return None
    if other is None:
        return "the project no longer has a base"
    if one is None:
        return f"base {other.spec}  {(other.weights or 'known by name only')[:SHOWN_DIGEST]}"
    names = f"{one.spec} -> {other.spec}" if one.spec != other.spec else one.spec
    return f"base {names}  {(one.weights or 'unknown')[:SHOWN_DIGEST]} -> {(other.weights or 'unknown')[:SHOWN_DIGEST]}"
