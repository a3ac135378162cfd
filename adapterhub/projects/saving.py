"""Adds installed adapters to a project and removes adapters; the project file and the lock change together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from packaging.version import Version

from adapterhub.core.errors import Conflict, NotFound
from adapterhub.projects.aliases import adapter_of, is_alias_key
from adapterhub.projects.builds import locked_build
from adapterhub.projects.file import (
    not_in_project,
    project_of,
    text_of_project,
    with_adapter,
    without_adapters,
    write_project,
)
from adapterhub.projects.lock.lockfile import previous_lock
from adapterhub.projects.locking.choosing import locked_adapter
from adapterhub.projects.places import base_to_write, editing, lock_now, save_lock
from adapterhub.projects.values import AdapterRequirement, LockedAdapter

if TYPE_CHECKING:
    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import AdapterName, AdapterSpec
    from adapterhub.distribution.install import InstallPlan
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.locking import LockOutcome
    from adapterhub.projects.places import SpecSources
    from adapterhub.projects.session import Session
    from adapterhub.projects.values import Project


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One installed adapter to save in the project."""

    spec: AdapterSpec
    bounds: RankRange
    plan: InstallPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """The new text of a project file and its new lock; nothing is written yet."""

    project: Project
    text: str
    outcome: LockOutcome


def plan_saving(
    session: Session,
    project: Project,
    places: SpecSources,
    installed: Iterable[Saved],
    *,
    group: str | None = None,
) -> Saving:
    """Return the project file and the lock with the installed adapters in them.

    Raises:
        Conflict: the project uses a name for another adapter, or the requirements contradict each other.
    """
    library = session.library
    named = {one.name for one in project.remotes}
    text = text_of_project(project.folder)
    chosen: dict[AdapterName, LockedAdapter] = {}
    for one in installed:
        wanted = _wanted(one, project, group, places.where.remote if places.where.remote in named else None)
        text = with_adapter(text, wanted)
        chosen[wanted.key] = locked_adapter(project, library, wanted, one.plan.release, one.plan.source)
    project = project_of(text, project.folder)
    previous = previous_lock(project)
    sources = places.project_sources(project)
    outcome = lock_now(session, project, sources, previous=previous, given=chosen)
    return Saving(project=project, text=text, outcome=outcome)


def save(session: Session, saving: Saving) -> None:
    """Write the project file and the lock."""
    write_project(saving.project.folder, saving.text)
    save_lock(session, saving.project, saving.outcome.lock)


def _wanted(one: Saved, project: Project, group: str | None, remote: str | None) -> AdapterRequirement:
    """Return the requirement to save: the spec as typed, or `>=` the installed version if it has none."""
    release, spec = one.plan.release, one.spec
    specifiers = spec.specifiers
    if not specifiers and spec.digest_prefix is None:
        version = Version(release.manifest.version)
        # snapshots such as `0+0123456789ab` have no order
        specifiers = f"=={version}" if version.local else f">={version}"
    base = base_to_write(spec.base, project.folder) if spec.base is not None else None
    base = None if base == project.base else base
    saved = replace(spec, namespace=release.namespace, base=base, specifiers=specifiers)
    before = next((wanted for wanted in project.adapters if wanted.key == spec.name), None)
    if before is not None and before.spec.full_name not in (saved.full_name, spec.name):
        raise Conflict(
            f"`{spec.name}` is `{before.spec.full_name}` in this project, not `{saved.full_name}`",
            hint=f'rename one of them in the project file, as in `other-name = "{saved}"`',
        )
    return AdapterRequirement(
        key=spec.name,
        spec=saved,
        ranks=one.bounds,
        group=group if group is not None or before is None else before.group,
        remote=remote,
    )


def key_of(project: Project, spec: AdapterSpec) -> AdapterName:
    """Return the project's name for `spec`: the same name, or the only one for that adapter.

    Raises:
        NotFound: the project has no such name, or several for that adapter.
    """
    keys = [wanted.key for wanted in project.requirements]
    if spec.namespace is None and spec.name in keys:
        return spec.name
    named = [wanted.key for wanted in project.adapters if wanted.spec.full_name == spec.full_name]
    found = [key for key in named if not is_alias_key(key)]
    if len(found) == 1:
        return found[0]
    if found:
        told = ", ".join(f"`{key}`" for key in found)
        raise NotFound(f"the project has `{spec.full_name}` under several names: {told}", hint="name one of these")
    raise not_in_project(spec.full_name, keys)


def builds_of_key(session: Session, project: Project, key: AdapterName, spec: AdapterSpec) -> list[Installed]:
    """Return the locked build under `key`, if it is installed and the project has no other name for it.

    `spec` is what the user typed, for the note.
    """
    lock = previous_lock(project)
    entry = lock.entries.get(key) if lock else None
    if lock is None or entry is None:
        return []
    others = [other for other in lock.entries.values() if adapter_of(other.key) != key]  # its aliases go with it
    if any(other.digest == entry.digest for other in others):
        session.out.note(f"`{spec.full_name}` stays installed: the project uses it under another name")
        return []
    build = locked_build(session.library, entry)
    return [build] if build is not None else []


def take_out(session: Session, project: Project, keys: Sequence[AdapterName]) -> None:
    """Remove names from the project file and the lock, both or neither; the rest of the lock stays unchanged."""
    with editing(session.library, project.folder):
        text = without_adapters(text_of_project(project.folder), keys)
        keys = [*keys, *(one.key for one in project.adapters if is_alias_key(one.key) and adapter_of(one.key) in keys)]
        lock = previous_lock(project)
        write_project(project.folder, text)
        if lock is not None:
            adapters = tuple(entry for entry in lock.adapters if entry.key not in keys)
            merges = tuple(entry for entry in lock.merges if entry.key not in keys)
            save_lock(session, project, replace(lock, adapters=adapters, merges=merges))
