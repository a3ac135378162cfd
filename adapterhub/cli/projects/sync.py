"""`adapt sync`: the project's `adapters/` as the lock file says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_group
from adapterhub.cli.options.params import Session, common, project_option, signatures_option, trust_option
from adapterhub.cli.output import size_text
from adapterhub.core.errors import StaleLock, UsageProblem, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.projects.places import ProjectSources
    from adapterhub.projects.sync import SyncPlan, SyncResult
    from adapterhub.projects.values import Lock, Project
    from adapterhub.trust.signing.policy import SignaturePolicy


@click.command()
@click.option("--frozen", is_flag=True, help="Never resolve: refuse when the lock file does not answer the project.")
@click.option("--offline", is_flag=True, help="Never open a connection.")
@click.option("--check", is_flag=True, help="Read every byte again, also of files that look as sync left them.")
@click.option("--prune", is_flag=True, help="Remove what the lock file does not ask for.")
@click.option(
    "--group", "groups", multiple=True, metavar="NAME", shell_complete=complete_group, help="An optional group, too."
)
@click.option("--all-groups", is_flag=True, help="Every optional group.")
@click.option("--yes", "-y", is_flag=True, help="With --prune: also delete, unasked, folders that sync did not make.")
@signatures_option
@project_option
@trust_option
@common
def sync(
    session: Session,
    frozen: bool,
    offline: bool,
    check: bool,
    prune: bool,
    groups: tuple[str, ...],
    all_groups: bool,
    yes: bool,
    signatures: SignaturePolicy | None,
) -> None:
    """Make the project's `adapters/` match its lock file, with links into the library.

    A lock file that is missing, or does not answer `adapters.toml` any more, is written anew first. What is not in the
    library is fetched by its digest from where it was locked; a merge is made again from its recipe. What is right
    already is not touched, and nothing in `adapters/` changes before everything is there.

    A file counts as right without being read while its size, times and inode are as sync left them. --check reads every
    byte; CI runs `adapt sync --frozen --check`.

    \b
    Examples:
      adapt sync
      adapt sync --frozen --check
      adapt sync --group eval --prune
    """
    from adapterhub.projects.places import ProjectSources, build_sources
    from adapterhub.projects.sync import plan_sync, run_sync, syncing, wanted_entries

    if yes and not prune:
        raise UsageProblem("without --prune nothing is deleted; drop --yes")
    project = session.need_project()
    _refuse_unknown(project, groups)
    sources = ProjectSources(session, project, offline=offline)
    lock, is_new = _lock_of(session, project, sources, is_frozen=frozen)
    library = session.library
    with syncing(library, project.folder) as target:
        plan = plan_sync(target, wanted_entries(lock, None if all_groups else groups), reads_all=check)
        done = run_sync(
            library,
            lock,
            plan,
            build_sources(session, lock, sources, signatures, bars=session.out),
            prune=prune,
            delete=_to_delete(session, plan, yes=yes) if prune else (),
            reads_all=check,
        )
    for one in done.brought:
        for warning in one.warnings:
            session.out.warn(warning)
    document = document_of(project, plan, done, is_new=is_new)
    session.out.result(document, lambda: say(session, document))
    _note_left(session, document["left"], pruned=prune)


def _refuse_unknown(project: Project, groups: Sequence[str]) -> None:
    unknown = [name for name in groups if name not in project.groups]
    if unknown:
        known = ", ".join(f"`{name}`" for name in project.groups)
        raise UsageProblem(
            f"the project has no group `{shown(unknown[0])}`; it has {known or 'none'}",
            hint="a group is a table `[groups.NAME]` of `adapters.toml`",
        )


def _lock_of(session: Session, project: Project, sources: ProjectSources, *, is_frozen: bool) -> tuple[Lock, bool]:
    """The lock that answers the project, and whether it was written just now.

    Raises:
        StaleLock: it does not, and it is frozen.
        NotFound: there is none, and it is frozen.
        Malformed: it was damaged.
    """
    from adapterhub.core.disk.home import LOCK_FILE
    from adapterhub.projects.lock.lockfile import previous_lock, read_lock
    from adapterhub.projects.lock.staleness import lock_problems
    from adapterhub.projects.places import lock_now, save_lock

    lock = read_lock(project.folder) if is_frozen else previous_lock(project)
    sources.settle(lock)
    problems = lock_problems(project, lock) if lock is not None else []
    if lock is not None and not problems:
        from adapterhub.library.store.roots import KnownProjects
        from adapterhub.projects.values import digests_of

        KnownProjects(session.root).remember(
            project.folder, digests_of(lock)
        )  # before anything is fetched: no gc takes it then
        _warn_of_moved_base(session, lock)
        return lock, False
    if is_frozen:
        raise StaleLock(str(project.folder / LOCK_FILE), problems, hint="`adapt lock` resolves it anew")
    outcome = lock_now(session, project, sources, previous=lock, bars=session.out)
    for warning in outcome.warnings:
        session.out.warn(warning)
    save_lock(session, project, outcome.lock)
    count = len(outcome.changes)
    session.out.note(f"wrote `{LOCK_FILE}`: {count} {'change' if count == 1 else 'changes'}")
    return outcome.lock, True


def _warn_of_moved_base(session: Session, lock: Lock) -> None:
    """Say that the builds of the lock are for other weights than its base has here; they are synced all the same."""
    from adapterhub.projects.locking import base_moved_since

    moved = base_moved_since(session.library, lock)
    if moved is not None:
        session.out.warn(f"{moved.summary}: {', '.join(f'{where} {what}' for where, what in moved.reasons)}")
        session.out.hint(moved.hint)


def _to_delete(session: Session, plan: SyncPlan, *, yes: bool) -> list[Path]:
    """The folders that sync did not make and the user lets go."""
    asked = [*(step.folder for step in plan.blocked), *plan.foreign]
    if not asked or yes:
        return asked
    if not sys.stdin.isatty():
        return []
    session.out.warn("sync did not make these, and nothing else may have what is in them:")
    for folder in asked:
        session.out.note(f"  {folder}")
    return asked if click.confirm("Delete them?", err=True) else []


def _note_left(session: Session, left: Sequence[dict[str, Any]], *, pruned: bool) -> None:
    ours = [one["path"] for one in left if one["made_by_sync"]]
    others = [one["path"] for one in left if not one["made_by_sync"]]
    if ours:
        session.out.note(f"the lock file does not ask for {_listed(ours)}")
        session.out.hint("`adapt sync --prune` removes what sync made")
    if others and pruned:
        session.out.note(f"not made by sync, and left: {_listed(others)}")
        session.out.hint("`adapt sync --prune --yes` deletes these, too")


def _listed(paths: Sequence[str]) -> str:
    names = [f"`{Path(path).name}`" for path in paths]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")  # noqa: PLR2004 - a line


def document_of(project: Project, plan: SyncPlan, done: SyncResult, *, is_new: bool) -> dict[str, Any]:
    """What a sync did, for programs."""
    from adapterhub.projects.builds import full_name_of

    brought = {one.entry.key: one for one in done.brought}
    removed = {str(path) for path in done.removed}
    left = [(path, True) for path in plan.left] + [(path, False) for path in plan.foreign]
    return {
        "project": str(project.folder),
        "locked_anew": is_new,
        "adapters": [
            {
                "key": step.entry.key,
                "name": full_name_of(step.entry),
                "version": step.entry.version,
                "digest": step.entry.digest,
                "group": step.entry.group,
                "path": str(step.folder),
                "done": what,
                "from": brought[step.entry.key].origin if step.entry.key in brought else None,
                "repaired": list(step.state.reasons) if what == "replaced" else [],
            }
            for step, what in done.steps
        ],
        "fetched_bytes": sum(one.sent_bytes for one in done.brought),
        "removed": sorted(removed),
        "left": [{"path": str(p), "made_by_sync": ours} for p, ours in left if str(p) not in removed],
    }


def say(session: Session, document: dict[str, Any]) -> None:
    """What a sync did, for people."""
    adapters = document["adapters"]
    for one in adapters:
        if one["done"] == "kept":
            continue
        came = f"  from {one['from']}" if one["from"] else ""
        session.out.line(f"{one['done']} {one['key']}  {one['name']} {one['version']}{came}")
        for reason in one["repaired"]:
            session.out.line(f"  it was changed: {reason}")
    for path in document["removed"]:
        session.out.line(f"removed {Path(path).name}")
    changed = sum(one["done"] != "kept" for one in adapters)
    fetched = f", {size_text(document['fetched_bytes'])} fetched" if document["fetched_bytes"] else ""
    count = f"{len(adapters)} adapter{'s' * (len(adapters) != 1)}"
    state = f"{changed} changed" if changed else "all as locked"
    session.out.line(f"{count} in {document['project']}/adapters: {state}{fetched}")
