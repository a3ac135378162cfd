"""`adapt lock`: choose a build for everything that the project wants, and write down exactly which."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_key
from adapterhub.cli.options.lock_changes import tell_changes, tell_only_here
from adapterhub.cli.options.params import Session, common, places_option, project_option, remote_options, trust_option

if TYPE_CHECKING:
    from adapterhub.projects.locking import Change, LockOutcome
    from adapterhub.projects.values import Lock, LockedAdapter, LockedMerge, Project


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_key)
@click.option("--upgrade", "-U", is_flag=True, help="Choose anew: everything, or only what is NAMEd.")
@click.option("--check", is_flag=True, help="Write nothing, ask no place; exit code 15 when the lock is stale.")
@places_option()
@project_option
@trust_option
@remote_options
@common
def lock(
    session: Session,
    names: tuple[str, ...],
    upgrade: bool,
    check: bool,
    places: tuple[Path, ...],
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Lock the project: write `adapters.lock` with the digest of everything that `adapters.toml` asks for.

    What is locked stays as it is, and no place is asked for it, until the project file asks for something else or
    --upgrade does. Merges of the project are run, and locked with their recipe. --offline looks in the library and in
    directories only.

    \b
    Examples:
      adapt lock
      adapt lock --upgrade legal-qa
      adapt lock --check
    """
    from adapterhub.core.errors import UsageProblem
    from adapterhub.projects.lock.lockfile import previous_lock
    from adapterhub.projects.locking import ALL
    from adapterhub.projects.places import ProjectSources, lock_now, save_lock

    if check and (upgrade or names):
        raise UsageProblem("`--check` changes nothing, so it goes without `--upgrade`")
    if names and not upgrade:
        hint = f"`adapt lock --upgrade {' '.join(names)}`"
        raise UsageProblem("a name says what to choose anew, which `--upgrade` does", hint=hint)
    project = session.need_project()
    if check:
        _check(session, project)
        return
    previous = previous_lock(project)
    sources = ProjectSources(session, project, offline=offline, remote=remote, token=token, places=places)
    sources.settle(previous)
    chosen_anew = ALL if upgrade and not names else names
    outcome = lock_now(session, project, sources, previous=previous, upgrade=chosen_anew, bars=session.out)
    is_new = save_lock(session, project, outcome.lock)
    tell_lock(session, project, outcome, is_new=is_new)


def tell_lock(session: Session, project: Project, outcome: LockOutcome, *, is_new: bool) -> None:
    """The result of locking, on the terminal or as JSON."""
    from adapterhub.core.disk.home import LOCK_FILE

    path = project.folder / LOCK_FILE
    for warning in outcome.warnings:
        session.out.warn(warning)
    tell_only_here(session, outcome.lock)

    def text() -> None:
        tell_changes(session, outcome.changes)
        count = len(outcome.lock.entries)
        what = f"{count} {'entry' if count == 1 else 'entries'}"
        session.out.line(f"{'wrote' if is_new else 'unchanged:'} {path}, {what}")

    session.out.result(
        {"project": str(project.folder), "lock": str(path), "written": is_new, **lock_document(outcome)}, text
    )
    if is_new:
        session.out.hint("`adapt sync` brings it into `adapters/`")


def _check(session: Session, project: Project) -> None:
    from adapterhub.core.disk.home import LOCK_FILE
    from adapterhub.core.errors import StaleLock
    from adapterhub.projects.lock.lockfile import read_lock
    from adapterhub.projects.lock.staleness import lock_problems

    locked = read_lock(project.folder)
    problems = lock_problems(project, locked)
    if problems:
        raise StaleLock(str(project.folder / LOCK_FILE), problems, hint="`adapt lock` brings it up to date")
    path = project.folder / LOCK_FILE
    session.out.result(
        {"project": str(project.folder), "lock": str(path), "current": True, **_entries_document(locked)},
        lambda: session.out.line(f"{path} is what the project asks for"),
    )


# ---------------------------------------------------------------- JSON
def lock_document(outcome: LockOutcome) -> dict[str, Any]:
    """What was locked and what changed."""
    return {
        "changes": [change_document(change) for change in outcome.changes],
        "warnings": list(outcome.warnings),
        **_entries_document(outcome.lock),
    }


def change_document(change: Change) -> dict[str, Any]:
    """One difference of two locks."""
    return {"kind": change.kind, "key": change.key, "text": change.text}


def _entries_document(lock: Lock) -> dict[str, Any]:
    base = lock.base
    return {
        "base": {"spec": base.spec, "weights": base.weights, "hub_id": base.hub_id} if base else None,
        "adapters": [{"wanted": e.wanted, **_entry_document(e, e.name)} for e in lock.adapters],
        "merges": [_entry_document(e, e.key) for e in lock.merges],
    }


def _entry_document(entry: LockedAdapter | LockedMerge, name: str) -> dict[str, Any]:
    from adapterhub.projects.lock.lockfile import source_table

    return {
        "key": entry.key,
        "name": name,
        "version": entry.version,
        "digest": entry.digest,
        "base": entry.base,
        "rank": entry.rank,
        "group": entry.group,
        "source": dict.fromkeys(("remote", "url", "repo", "commit", "path")) | source_table(entry.source),
        "files": [{"path": f.path, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in entry.files],
    }
