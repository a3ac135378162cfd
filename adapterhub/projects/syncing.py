"""Syncs a project: the lock that its file asks for, then its folders."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from adapterhub.core.disk.home import ADAPTERS_FOLDER, LOCK_FILE
from adapterhub.core.errors import StaleLock, shown
from adapterhub.distribution.remote_kinds import kind_named
from adapterhub.formats.documented import Documented
from adapterhub.library.store.roots import KnownProjects
from adapterhub.projects.builds import base_here, exact_spec
from adapterhub.projects.lock.conflicts import yanked_notice
from adapterhub.projects.lock.lockfile import lock_problems, previous_lock, read_lock
from adapterhub.projects.locking import Change, DropIn
from adapterhub.projects.locking.choosing import base_moved_since
from adapterhub.projects.places import ProjectSources, Where, build_sources, lock_now, save_lock
from adapterhub.projects.session import Session
from adapterhub.projects.sync import Synced, SyncPlan, ensure_unblocked, plan_sync, run_sync, syncing, wanted_entries
from adapterhub.projects.sync.folders import opened
from adapterhub.projects.values import Lock, Locked, LockedAdapter, Project, digests_of
from adapterhub.trust.signing.policy import SignaturePolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Syncing:
    """How to sync. `groups` are optional ones, None all of them; `is_frozen` never resolves; `reads_all` hashes all.

    `delete` prunes, and returns the folders to delete that sync did not make. `test` looks at the builds before a
    folder changes.
    """

    groups: Sequence[str] | None = ()
    is_frozen: bool = False
    offline: bool = False
    reads_all: bool = False
    delete: Callable[[SyncPlan], Sequence[Path]] | None = None
    signatures: SignaturePolicy | None = None
    test: Callable[[Lock, Sequence[Locked]], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockPlan(Documented, keys="project changes warnings folders", title="UpgradePlan"):
    """What an upgrade or a rollback of the project would change."""

    project: Path
    changes: Annotated[tuple[Change, ...], "in the lock file"]
    warnings: tuple[str, ...]
    folders: Annotated[tuple[Path, ...], "folders of `adapters/` that would be created or replaced"]
    sync: Synced | None = None
    tests: Annotated[tuple[DropIn, ...] | None, "with --test: one for each build that an upgrade would replace"] = None
    way_forward: str = ""
    """After a rollback: what takes the newer builds again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockMoved(
    LockPlan,
    keys="changes warnings base=lock.base adapters=lock.adapters merges=lock.merges sync tests?",
    title="Upgraded",
):
    """The new lock, and the result of the sync after it."""

    lock: Lock
    sync: Synced


def sync_project(session: Session, project: Project, how: Syncing) -> Synced:
    """Make `adapters/` match the lock, which is written first if it is missing or stale.

    Raises:
        StaleLock, NotFound: it is frozen and stale, or not there.
        BehaviourChanged, CouldNotTell: a build does not pass the test; no folder changed.
    """
    sources = ProjectSources(session, project, Where(offline=how.offline))
    lock, is_new = _current_lock(session, project, sources, is_frozen=how.is_frozen)
    synced = _synced(session, project.folder, lock, wanted_entries(lock, how.groups), sources, how, is_new=is_new)
    if synced.changed and (text := _copy_text(session, lock)):
        session.out.note(text)
    fetched = {one.entry.key for one in synced.done.brought if one.sent_bytes}
    rest = [step.entry for step in synced.plan.steps if step.entry.key not in fetched]
    for notice in yanked_notices(session, rest, sources):
        session.out.warn(notice)
    return synced


def _copy_text(session: Session, lock: Lock) -> str:
    """Say which copy stands for the locked base here; "" if that base itself is here, or neither."""
    record = base_here(session.library, lock)
    facts = record.fingerprint.copy if record is not None else None
    if record is None or facts is None or lock.base is None or record.fingerprint.weights == lock.base.weights:
        return ""
    spec = shown(lock.base.spec)
    return f"the locked base `{spec}` is here as the {facts.form} copy `{record.alias}`; the lock still names `{spec}`"


def _synced(
    session: Session,
    folder: Path,
    lock: Lock,
    entries: Sequence[Locked],
    sources: ProjectSources,
    how: Syncing,
    *,
    is_new: bool,
) -> Synced:
    library = session.library
    with syncing(library, folder) as target:
        plan = plan_sync(target, entries, reads_all=how.reads_all)
        done = run_sync(
            library,
            lock,
            plan,
            build_sources(session, lock, sources, how.signatures, how.test),
            prune=how.delete is not None,
            delete=how.delete(plan) if how.delete else (),
            reads_all=how.reads_all,
        )
    synced = Synced(lock=lock, plan=plan, done=done, is_locked_anew=is_new)
    for warning in synced.warnings:
        session.out.warn(warning)
    return synced


def _current_lock(session: Session, project: Project, sources: ProjectSources, *, is_frozen: bool) -> tuple[Lock, bool]:
    """Return the lock that matches the project, and whether it was just written."""
    lock = read_lock(project.folder) if is_frozen else previous_lock(project)
    sources.settle(lock)
    problems = lock_problems(project, lock) if lock is not None else []
    if lock is not None and not problems:
        # before any fetch, so that no gc deletes what arrives
        KnownProjects(session.root).remember(project.folder, digests_of(lock))
        if (moved := base_moved_since(session.library, lock)) is not None:
            session.out.warn(f"{moved.summary}: {', '.join(f'{where} {what}' for where, what in moved.reasons)}")
            session.out.note(f"hint: {moved.hint}")
        return lock, False
    if is_frozen:
        raise StaleLock(str(project.folder / LOCK_FILE), problems, hint="`adapt lock` updates it")
    outcome = lock_now(session, project, sources, previous=lock)
    for warning in outcome.warnings:
        session.out.warn(warning)
    save_lock(session, project, outcome.lock)
    count = len(outcome.changes)
    session.out.note(f"wrote `{LOCK_FILE}`: {count} {'change' if count == 1 else 'changes'}")
    return outcome.lock, True


def sync_locked(
    session: Session,
    folder: Path,
    lock: Lock,
    sources: ProjectSources,
    *,
    groups: Collection[str] = (),
    signatures: SignaturePolicy | None = None,
    is_new: bool = True,
) -> Synced:
    """Make `adapters/` match a lock that was just written, with the groups that are there and `groups`."""
    entries = wanted_entries(lock, groups_there(folder, lock, groups))
    return _synced(session, folder, lock, entries, sources, Syncing(signatures=signatures), is_new=is_new)


def plan_there(session: Session, folder: Path, lock: Lock, groups: Collection[str] = ()) -> SyncPlan:
    """Return the changes of a sync to `lock`.

    Raises:
        Conflict: something else lies where an adapter belongs.
    """
    with opened(session.library.store, folder) as target:
        plan = plan_sync(target, wanted_entries(lock, groups_there(folder, lock, groups)))
    ensure_unblocked(plan)
    return plan


def groups_there(folder: Path, lock: Lock, more: Collection[str] = ()) -> set[str]:
    """Return the optional groups that were synced before, which are those with a folder in `adapters/`, and `more`."""
    there = folder / ADAPTERS_FOLDER
    return {e.group for e in lock.entries.values() if e.group and (there / e.key).is_dir()} | set(more)


def yanked_notices(session: Session, entries: Sequence[Locked], sources: ProjectSources) -> list[str]:
    """Return a notice for each locked build that its server has yanked, or had yanked when it last answered."""
    adapters = [e for e in entries if isinstance(e, LockedAdapter) and not e.source.is_library]
    locked = [e for e in adapters if kind_named(e.source.kind).is_server]
    if not locked:
        return []
    from adapterhub.distribution.withdrawal import Here, withdrawn

    here = [
        Here(digest=e.digest, spec=exact_spec(e), place=e.source.address, repository=e.source.repo or "")
        for e in locked
    ]
    reasons = withdrawn(session.library, here, sources.server_at)
    return [yanked_notice(e.key, e.name, e.version, reasons[e.digest]) for e in locked if e.digest in reasons]
