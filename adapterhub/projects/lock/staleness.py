"""Compares a lock with its project, without looking anything up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from adapterhub.core.errors import shown
from adapterhub.core.specs import AdapterName, version_of
from adapterhub.projects.values import (
    AdapterRequirement,
    Lock,
    Locked,
    LockedAdapter,
    LockedMerge,
    MergeRequirement,
    Policy,
    Project,
)
from adapterhub.weights.recipes.toml import Inner, Leaf, Step


def wanted_text(wanted: AdapterRequirement) -> str:
    """A requirement as a lock records it: `acme/legal-qa>=1.2,<2 rank=-16 remote=ours`."""
    more = {"rank": wanted.ranks.written} if wanted.ranks.written else {}
    more |= {} if wanted.remote is None else {"remote": wanted.remote}
    more |= {} if wanted.weight is None else {"weight": f"{wanted.weight!r}"}
    return " ".join([str(wanted.spec), *(f"{name}={value}" for name, value in more.items())])


def exact_spec(entry: Locked) -> str:
    """The spec of this locked build with its version: `acme/legal-qa==1.2.0`."""
    return f"{entry.name if isinstance(entry, LockedAdapter) else entry.key}=={entry.version}"


def locked_step(step: Step, entries: Mapping[AdapterName, Locked]) -> Step:
    """The recipe of a merge, with each name replaced by the exact spec and digest locked under it.

    Raises:
        KeyError: a name that `entries` lacks.
    """
    inputs: list[Leaf | Inner] = []
    for item in step.inputs:
        if isinstance(item, Inner):
            inputs.append(replace(item, step=locked_step(item.step, entries)))
        else:
            entry = entries[AdapterName(item.spec)]
            inputs.append(Leaf(spec=exact_spec(entry), weight=item.weight, digest=entry.digest))
    return replace(step, inputs=tuple(inputs))


def lock_problems(project: Project, lock: Lock) -> list[str]:
    """Why `lock` is stale for `project`, one sentence each; empty if it is up to date."""
    problems = [*_base_problems(project, lock), *policy_changes(lock.policy, project.policy)]
    entries = lock.entries
    for wanted in project.adapters:
        entry = entries.get(wanted.key)
        if isinstance(entry, LockedAdapter):
            problems += adapter_problems(project, wanted, entry)
        else:
            problems.append(f"`{wanted.key}` is not locked")
    for merge in project.merges:
        entry = entries.get(merge.key)
        if isinstance(entry, LockedMerge):
            problems += merge_problems(merge, entry, entries)
        else:
            problems.append(f"`{merge.key}` is not locked")
    asked = {wanted.key for wanted in project.requirements}
    return problems + [f"`{key}` is locked, but the project does not list it" for key in entries if key not in asked]


def adapter_problems(project: Project, wanted: AdapterRequirement, entry: LockedAdapter) -> list[str]:
    """Why a locked adapter does not meet its requirement."""
    problems = []
    if entry.wanted != (text := wanted_text(wanted)):
        problems.append(
            f"`{wanted.key}` is locked for `{shown(entry.wanted)}`, but the project requires `{shown(text)}`"
        )
    problems += _group_problems(wanted, entry)
    source = entry.source
    if source.remote:
        remote = next((r for r in project.remotes if r.name == source.remote), None)
        if remote is None:
            problems.append(f"`{wanted.key}` is locked from remote `{source.remote}`, which the project does not name")
        elif (remote.kind, remote.address) != (source.kind, source.address):
            place, now = shown(source.address), shown(remote.address)
            problems.append(f"`{wanted.key}` is locked from {place}, but remote `{remote.name}` is {now}")
    return problems


def merge_problems(wanted: MergeRequirement, entry: LockedMerge, entries: Mapping[AdapterName, Locked]) -> list[str]:
    """Why a locked merge does not meet its requirement."""
    problems = []
    try:
        step = locked_step(wanted.step, entries)
    except KeyError as missing:
        problems.append(f"`{wanted.key}` is made of `{missing.args[0]}`, which is not locked")
    else:
        if step != entry.step:
            problems.append(f"`{wanted.key}` is locked with a different recipe or different inputs")
    if wanted.version is not None and version_of(wanted.version) != version_of(entry.version):
        problems.append(
            f"`{wanted.key}` is locked as {entry.version}, but the project gives it version {wanted.version}"
        )
    differing = [name for name in ("task", "description", "license") if getattr(wanted, name) != getattr(entry, name)]
    problems += [f"`{wanted.key}` is locked with a different {name}" for name in differing]
    return problems + _group_problems(wanted, entry)


def policy_changes(locked: Policy, now: Policy) -> list[str]:
    """The differences between the policy of a lock and that of its project."""
    changed = []
    for one in fields(Policy):
        before, after = getattr(locked, one.name), getattr(now, one.name)
        if before != after:
            changed.append(f"policy `{one.name.replace('_', '-')}` changed from {_said(before)} to {_said(after)}")
    return changed


def _base_problems(project: Project, lock: Lock) -> list[str]:
    locked = lock.base.spec if lock.base else None
    asked = str(project.base) if project.base else None
    if locked == asked:
        return []
    return [f"the base is locked as {_said(locked)}, but the project requires {_said(asked)}"]


def _group_problems(wanted: AdapterRequirement | MergeRequirement, entry: Locked) -> list[str]:
    if wanted.group == entry.group:
        return []
    return [f"`{wanted.key}` is locked in {_group(entry.group)}, but the project has it in {_group(wanted.group)}"]


def _group(name: str | None) -> str:
    return f"group `{shown(name)}`" if name else "no group"


def _said(value: object) -> str:
    if value in (None, ()):
        return "nothing"
    return ", ".join(f"`{shown(str(item))}`" for item in (value if isinstance(value, tuple) else (value,)))
