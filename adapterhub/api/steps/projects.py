"""Lock, sync, upgrade and trust a project."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.core.disk.home import ADAPTERS_FOLDER, LOCK_FILE
from adapterhub.core.errors import AdapterHubError, StaleLock, UsageProblem, shown
from adapterhub.distribution.remote_kinds import kind_named
from adapterhub.library.store.roots import KnownProjects
from adapterhub.projects.builds import exact_spec
from adapterhub.projects.lock.conflicts import yanked_notice
from adapterhub.projects.lock.lockfile import previous_lock, read_lock
from adapterhub.projects.lock.staleness import lock_problems
from adapterhub.projects.locking import ALL, LockOutcome, base_moved_since
from adapterhub.projects.places import ProjectSources, build_sources, editing, lock_now, save_lock
from adapterhub.projects.project import read_project
from adapterhub.projects.saving import plan_saving, save
from adapterhub.projects.sync import (
    SyncPlan,
    SyncResult,
    ensure_unblocked,
    opened,
    plan_sync,
    run_sync,
    syncing,
    wanted_entries,
)
from adapterhub.projects.trust import ensure_no_takeover, servers_in
from adapterhub.projects.values import LockedAdapter, digests_of

if TYPE_CHECKING:
    from adapterhub.api.steps.contracts.syncing import SyncTest
    from adapterhub.formats.contract.results import Tested
    from adapterhub.library.library import Library
    from adapterhub.projects.places import SpecSources
    from adapterhub.projects.reporting import Bars
    from adapterhub.projects.saving import Saved
    from adapterhub.projects.session import Session
    from adapterhub.projects.trusted import TrustedProject
    from adapterhub.projects.values import Lock, Locked, Project
    from adapterhub.trust.signing.policy import SignaturePolicy


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Synced:
    """What a sync planned and did, whether the lock file was written first, and the verdicts that it waited for."""

    lock: Lock
    plan: SyncPlan
    done: SyncResult
    is_locked_anew: bool
    tests: Sequence[Tested] = ()

    @property
    def changed(self) -> tuple[str, ...]:
        """The names whose folders were linked or replaced."""
        return tuple(str(step.entry.key) for step, what in self.done.steps if what != "kept")

    def __repr__(self) -> str:
        count = len(self.done.steps)
        return f"<Synced {count} adapter{'s' * (count != 1)}, {len(self.changed)} changed>"


# ---------------------------------------------------------------- lock
def lock_project(
    session: Session,
    project: Project,
    names: Sequence[str] = (),
    *,
    upgrade: bool = False,
    offline: bool = False,
    remote: str | None = None,
    token: str | None = None,
    places: tuple[Path, ...] = (),
    bars: Bars,
) -> tuple[LockOutcome, bool]:
    """Lock what the project requires, with `upgrade` again (all, or `names`). Returns whether the lock file changed."""
    previous = previous_lock(project)
    sources = ProjectSources(session, project, offline=offline, remote=remote, token=token, places=places)
    sources.settle(previous)
    chosen_anew = ALL if upgrade and not names else names
    outcome = lock_now(session, project, sources, previous=previous, upgrade=chosen_anew, bars=bars)
    changed = save_lock(session, project, outcome.lock)
    warn_of(session, outcome.warnings)
    return outcome, changed


def current_lock(project: Project) -> Lock:
    """The lock, if it answers the project file.

    Raises:
        StaleLock: it does not; every reason.
        NotFound, Malformed: there is none, or it is damaged.
    """
    locked = read_lock(project.folder)
    problems = lock_problems(project, locked)
    if problems:
        raise StaleLock(str(project.folder / LOCK_FILE), problems, hint="`adapt lock` updates it")
    return locked


def warn_of(session: Session, warnings: Sequence[str]) -> None:
    """Say each warning."""
    for warning in warnings:
        session.out.warn(warning)


# ---------------------------------------------------------------- sync
def sync_project(
    session: Session,
    project: Project,
    *,
    frozen: bool = False,
    offline: bool = False,
    check: bool = False,
    prune: bool = False,
    groups: Sequence[str] = (),
    all_groups: bool = False,
    delete: Callable[[SyncPlan], Sequence[Path]],
    signatures: SignaturePolicy | None = None,
    test: SyncTest | None = None,
    bars: Bars,
) -> Synced:
    """Make `adapters/` match the lock. With `prune`, `delete` says which folders go that sync did not make.

    Raises:
        BehaviourChanged, CouldNotTell: a build does not pass `test`; no folder changed.
    """
    ensure_groups(project, groups)
    sources = ProjectSources(session, project, offline=offline)
    lock, is_new = lock_of(session, project, sources, is_frozen=frozen, bars=bars)
    library = session.library
    with syncing(library, project.folder) as target:
        plan = plan_sync(target, wanted_entries(lock, None if all_groups else groups), reads_all=check)
        done = run_sync(
            library,
            lock,
            plan,
            replace(build_sources(session, lock, sources, signatures, bars=bars), test=test),
            prune=prune,
            delete=delete(plan) if prune else (),
            reads_all=check,
        )
    fetched = {one.entry.key for one in done.brought if one.sent_bytes}
    notices = yanked_notices(library, [e for step in plan.steps if (e := step.entry).key not in fetched], sources)
    warn_of(session, [*_warnings_of(done), *notices])
    tests = tuple(test.results) if test is not None else ()
    return Synced(lock=lock, plan=plan, done=done, is_locked_anew=is_new, tests=tests)


def _warnings_of(done: SyncResult) -> list[str]:
    return [*(warning for one in done.brought for warning in one.warnings), *done.warnings]


def yanked_notices(library: Library, entries: Sequence[Locked], sources: ProjectSources) -> list[str]:
    """A notice for each locked build that its server has yanked, or had yanked when it last answered."""
    adapters = [e for e in entries if isinstance(e, LockedAdapter) and not e.source.is_library]
    locked = [e for e in adapters if kind_named(e.source.kind).is_server]
    if not locked:
        return []
    from adapterhub.distribution.withdrawn import Here, withdrawn

    here = [
        Here(digest=e.digest, spec=exact_spec(e), place=e.source.address, repository=e.source.pin.get("repo", ""))
        for e in locked
    ]
    reasons = withdrawn(library, here, sources.server_at)
    return [yanked_notice(e.key, e.name, e.version, reasons[e.digest]) for e in locked if e.digest in reasons]


def ensure_groups(project: Project, groups: Sequence[str]) -> None:
    """Raise unless the project has every group.

    Raises:
        UsageProblem: it lacks one.
    """
    unknown = [name for name in groups if name not in project.groups]
    if unknown:
        known = ", ".join(f"`{name}`" for name in project.groups)
        raise UsageProblem(
            f"the project has no group `{shown(unknown[0])}`; its groups: {known or 'none'}",
            hint="a table `[groups.NAME]` in `adapters.toml` defines a group",
        )


def lock_of(
    session: Session, project: Project, sources: ProjectSources, *, is_frozen: bool, bars: Bars
) -> tuple[Lock, bool]:
    """The lock that matches the project, and whether it was just written.

    Raises:
        StaleLock: the lock is frozen and stale.
        NotFound: the lock is frozen and there is none.
        Malformed: the lock is damaged.
    """
    lock = read_lock(project.folder) if is_frozen else previous_lock(project)
    sources.settle(lock)
    problems = lock_problems(project, lock) if lock is not None else []
    if lock is not None and not problems:
        KnownProjects(session.root).remember(  # before any fetch, so that no gc deletes what arrives
            project.folder, digests_of(lock)
        )
        _warn_of_moved_base(session, lock)
        return lock, False
    if is_frozen:
        raise StaleLock(str(project.folder / LOCK_FILE), problems, hint="`adapt lock` updates it")
    outcome = lock_now(session, project, sources, previous=lock, bars=bars)
    for warning in outcome.warnings:
        session.out.warn(warning)
    save_lock(session, project, outcome.lock)
    count = len(outcome.changes)
    session.out.note(f"wrote `{LOCK_FILE}`: {count} {'change' if count == 1 else 'changes'}")
    return outcome.lock, True


def _warn_of_moved_base(session: Session, lock: Lock) -> None:
    """Warn that the locked builds are for other weights than the base has here; sync continues."""
    moved = base_moved_since(session.library, lock)
    if moved is not None:
        session.out.warn(f"{moved.summary}: {', '.join(f'{where} {what}' for where, what in moved.reasons)}")
        session.out.note(f"hint: {moved.hint}")


def sync_locked(
    session: Session,
    project: Project,
    lock: Lock,
    sources: ProjectSources,
    *,
    groups: Collection[str] = (),
    signatures: SignaturePolicy | None = None,
    bars: Bars,
) -> Synced:
    """Make `adapters/` match a lock that was just written, with the groups that are there and `groups`."""
    library = session.library
    with syncing(library, project.folder) as target:
        plan = plan_sync(target, wanted_entries(lock, groups_there(project, lock, groups)))
        done = run_sync(library, lock, plan, build_sources(session, lock, sources, signatures, bars=bars))
    warn_of(session, _warnings_of(done))
    return Synced(lock=lock, plan=plan, done=done, is_locked_anew=True)


# ---------------------------------------------------------------- install --save
def save_installed(
    session: Session,
    folder: Path,
    places: SpecSources,
    installed: Sequence[Saved],
    *,
    group: str | None = None,
    syncs: bool = True,
    signatures: SignaturePolicy | None = None,
    bars: Bars,
) -> tuple[LockOutcome, Synced | None]:
    """Add installed adapters to the project in `folder` and its lock, and sync, unless `syncs` is false.

    Raises:
        Conflict: the project uses a name for another adapter, or something else lies where one belongs in `adapters/`.
            The project is unchanged.
        AdapterHubError: as `plan_saving`; the project is unchanged. A sync that fails leaves it saved and locked.
    """
    library = session.library
    try:
        with editing(library, folder) as project:
            saving = plan_saving(session, project, places, installed, group=group, bars=bars)
            entries = saving.outcome.lock.entries
            groups = [name for one in installed if (name := entries[one.spec.name].group) is not None]
            if syncs:
                _ensure_room(session, saving.project, saving.outcome.lock, groups)
            save(session, saving)
    except AdapterHubError:
        session.out.note("installed, but not saved: the project is unchanged")
        raise
    warn_of(session, saving.outcome.warnings)
    if not syncs:
        return saving.outcome, None
    # another command may have saved more meanwhile
    project, lock = read_project(folder), read_lock(folder)
    sources = places.project_sources(project)
    sources.settle(lock)
    try:
        synced = sync_locked(session, project, lock, sources, groups=groups, signatures=signatures, bars=bars)
    except AdapterHubError:
        session.out.note("saved and locked, but not synced: `adapt sync` tries again")
        raise
    return saving.outcome, synced


def _ensure_room(session: Session, project: Project, lock: Lock, groups: Collection[str]) -> None:
    with opened(session.library.store, project.folder) as target:
        ensure_unblocked(plan_sync(target, wanted_entries(lock, groups_there(project, lock, groups))))


def groups_there(project: Project, lock: Lock, more: Collection[str] = ()) -> set[str]:
    """The optional groups that were synced before, which are those with a folder in `adapters/`, and `more`."""
    folder = project.folder / ADAPTERS_FOLDER
    there = {entry.group for entry in lock.entries.values() if entry.group and (folder / entry.key).is_dir()}
    return there | set(more)


# ---------------------------------------------------------------- trust
def trust_project(session: Session, project: Project) -> TrustedProject:
    """Agree to the servers that a project names, once for its folder and what it says of servers.

    Raises:
        NamespaceBound: it claims a name or a namespace of a remote of the user's.
    """
    from adapterhub.library.admission.admission import Admission
    from adapterhub.projects.trusted import TrustedProjects

    ensure_no_takeover(project, session.remotes.all(), Admission(session.library))
    servers = servers_in(session, project, previous_lock(project))
    return TrustedProjects(session.root).trust(project.folder, servers)
