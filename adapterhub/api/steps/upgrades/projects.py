"""Upgrade a project or roll it back: a new lock, and a sync to it; or what these would change."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.steps.projects import Synced, groups_there, sync_locked, warn_of, yanked_notices
from adapterhub.core.digests import Digest
from adapterhub.core.disk.home import PROJECT_FILE
from adapterhub.projects.file.editing import write_project
from adapterhub.projects.lock.history import History
from adapterhub.projects.lock.lockfile import previous_lock
from adapterhub.projects.lock.staleness import wanted_text
from adapterhub.projects.locking import ALL, Change, LockOutcome, MakeMerge, changes_between
from adapterhub.projects.places import ProjectSources, build_sources, editing, lock_now, save_lock
from adapterhub.projects.rollback import Rollback, plan_rollback
from adapterhub.projects.sync import bring_locked, ensure_unblocked, opened, plan_sync, wanted_entries
from adapterhub.projects.values import LockedMerge, LockedSource

if TYPE_CHECKING:
    from adapterhub.api.steps.upgrades.drop_ins import DropIn, UpgradeTest
    from adapterhub.core.specs import AdapterName
    from adapterhub.projects.reporting import Bars
    from adapterhub.projects.session import Session
    from adapterhub.projects.values import Lock, Locked, LockedAdapter, MergeRequirement, Project
    from adapterhub.trust.signing.policy import SignaturePolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What an upgrade would change or did: in the lock, in the folders of `adapters/`, and what its test said."""

    changes: tuple[Change, ...]
    folders: tuple[Path, ...]
    warnings: tuple[str, ...]
    tests: tuple[DropIn, ...] = ()


def upgrade_project(
    session: Session,
    project: Project,
    names: Sequence[str],
    sources: ProjectSources,
    signatures: SignaturePolicy | None = None,
    *,
    test: UpgradeTest | None = None,
    bars: Bars,
) -> tuple[LockOutcome, Synced]:
    """Lock the newest that the project allows, of everything or of `names`, and sync.

    With `test`, a build stays as locked where what would replace it does not pass its contract.

    Raises:
        BehaviourChanged: such a build cannot stay; nothing was changed.
    """
    previous = previous_lock(project)
    sources.settle(previous)
    given: Mapping[AdapterName, LockedAdapter] | None = None
    if test is not None and previous is not None:
        given = _tested(session, project, names, sources, previous, signatures, test, bars=bars)
    outcome = lock_now(session, project, sources, previous=previous, upgrade=names or ALL, given=given, bars=bars)
    if test is not None and previous is not None:
        test.ensure_taken(previous, outcome.lock)
    warn_of(session, outcome.warnings)
    is_new = save_lock(session, project, outcome.lock)
    synced = sync_locked(session, project, outcome.lock, sources, signatures=signatures, bars=bars)
    return outcome, replace(synced, is_locked_anew=is_new)


def _tested(
    session: Session,
    project: Project,
    names: Sequence[str],
    sources: ProjectSources,
    previous: Lock,
    signatures: SignaturePolicy | None,
    test: UpgradeTest,
    *,
    bars: Bars,
) -> Mapping[AdapterName, LockedAdapter]:
    """The builds to lock, after those that an upgrade would choose were tested; merges are not run."""

    def bring(lock: Lock, entries: Sequence[Locked]) -> None:
        bring_locked(session.library, lock, entries, build_sources(session, lock, sources, signatures, bars=bars))

    first = lock_now(
        session, project, sources, previous=previous, upgrade=names or ALL, make_merge=_put_off(set()), bars=bars
    )
    return test(previous, first.lock, bring)


# ---------------------------------------------------------------- rollback
def roll_back(
    session: Session, project: Project, names: Sequence[str], sources: ProjectSources, *, bars: Bars
) -> tuple[LockOutcome, Synced]:
    """Lock what each of `names` was before, with the requirement it was locked for, and sync.

    Every build is brought before the first file changes.

    Raises:
        As `plan_rollback`, and as `bring_locked`, when an earlier build cannot be had any more.
    """
    library = session.library
    with editing(library, project.folder) as present:
        plan = plan_rollback(library, present, names)
        sources.settle(plan.lock)
        outcome = _rolled_back(session, plan, sources, bars)
        lock = outcome.lock
        groups = groups_there(project, lock)
        with opened(library.store, project.folder) as target:
            ensure_unblocked(plan_sync(target, wanted_entries(lock, groups)))
        bring_locked(library, lock, wanted_entries(lock, groups), build_sources(session, lock, sources, bars=bars))
        write_project(project.folder, plan.text)
        save_lock(session, plan.project, lock, back_to=[change.key for change in outcome.changes if change.key])
        history = History(library.store, project.folder)
        for entry in plan.entries:
            history.forget(entry.key, entry)
    warn_of(session, [*outcome.warnings, *yanked_notices(library, plan.entries, sources)])
    for wanted in plan.restored:
        session.out.note(f"`{PROJECT_FILE}` asks for `{wanted_text(wanted)}` again")
    return outcome, sync_locked(session, plan.project, lock, sources, bars=bars)


def preview_rollback(
    session: Session, project: Project, names: Sequence[str], sources: ProjectSources, *, bars: Bars
) -> Preview:
    """What `roll_back` would change; merges are listed, not run."""
    plan = plan_rollback(session.library, project, names)
    sources.settle(plan.lock)
    to_merge: set[str] = set()
    return _previewed(session, plan.project, _rolled_back(session, plan, sources, bars, _put_off(to_merge)), to_merge)


def _rolled_back(
    session: Session, plan: Rollback, sources: ProjectSources, bars: Bars, make_merge: MakeMerge | None = None
) -> LockOutcome:
    """The lock of a plan; merges that no earlier lock has are made again."""
    outcome = lock_now(session, plan.project, sources, previous=plan.lock, make_merge=make_merge, bars=bars)
    return replace(outcome, changes=changes_between(plan.before, outcome.lock))


# ---------------------------------------------------------------- preview
def preview_upgrade(
    session: Session, project: Project, names: Sequence[str], sources: ProjectSources, *, bars: Bars
) -> Preview:
    """Resolve as an upgrade does and compare the folders; merges are listed, not run."""
    to_merge: set[str] = set()
    previous = previous_lock(project)
    sources.settle(previous)
    outcome = lock_now(
        session, project, sources, previous=previous, upgrade=names or ALL, make_merge=_put_off(to_merge), bars=bars
    )
    warn_of(session, outcome.warnings)
    return _previewed(session, project, outcome, to_merge)


def _put_off(to_merge: set[str]) -> MakeMerge:
    """Notes the key of a merge instead of running it."""

    def put_off(wanted: MergeRequirement, _inputs: object) -> LockedMerge:
        to_merge.add(wanted.key)
        return _unmade(wanted)

    return put_off


def _previewed(session: Session, project: Project, outcome: LockOutcome, to_merge: Collection[str]) -> Preview:
    with opened(session.library.store, project.folder) as target:
        plan = plan_sync(target, wanted_entries(outcome.lock, groups_there(project, outcome.lock)))
    ensure_unblocked(plan)
    changes = tuple(replace(c, text="merged again") if c.key in to_merge else c for c in outcome.changes)
    folders = tuple(step.folder for step in plan.steps if step.state.standing != "right")
    return Preview(changes=changes, folders=folders, warnings=tuple(outcome.warnings))


def _unmade(wanted: MergeRequirement) -> LockedMerge:
    """A stand-in for a merge that is not run; without a digest, it differs from any locked or present merge."""
    return LockedMerge(
        key=wanted.key,
        version=wanted.version or "",
        digest=Digest(""),
        base=None,
        rank=None,
        step=wanted.step,
        task=wanted.task,
        description=wanted.description,
        license=wanted.license,
        source=LockedSource(),
        files=(),
    )
