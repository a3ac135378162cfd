"""`adapt lock`: choose a build for everything in the project file and record it in the lock file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_key
from adapterhub.cli.options.lock_changes import tell_changes, tell_only_here
from adapterhub.cli.options.params import Session, common, places_option, project_option, remote_options, trust_option
from adapterhub.core.disk.home import LOCK_FILE

if TYPE_CHECKING:
    from adapterhub.projects.locking import LockOutcome
    from adapterhub.projects.values import Lock, LockedAdapter, LockedMerge, Project


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_key)
@click.option("--upgrade", "-U", is_flag=True, help="Choose the newest allowed release of NAME, or of everything.")
@click.option("--check", is_flag=True, help="Only check: exit with code 15 if the lock file is stale.")
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
    """Resolve the project's adapters and write `adapters.lock` with the digest of each.

    A locked build stays, without a query to any source, until the project file changes its entry or --upgrade replaces
    it. Runs the merges of the project and locks them with their recipes. --offline uses only the library and
    directories.

    \b
    Examples:
      adapt lock
      adapt lock --upgrade legal-qa
      adapt lock --check
    """
    from adapterhub.api.steps.projects import lock_project
    from adapterhub.core.errors import UsageProblem

    if check and (upgrade or names):
        raise UsageProblem("`--check` and `--upgrade` exclude each other: `--check` changes nothing")
    if names and not upgrade:
        hint = f"`adapt lock --upgrade {' '.join(names)}`"
        raise UsageProblem("names need `--upgrade`", hint=hint)
    project = session.need_project()
    if check:
        _check(session, project)
        return
    outcome, is_new = lock_project(
        session,
        project,
        names,
        upgrade=upgrade,
        offline=offline,
        remote=remote,
        token=token,
        places=places,
        bars=session.out,
    )
    tell_lock(session, project, outcome, is_new=is_new)


def tell_lock(session: Session, project: Project, outcome: LockOutcome, *, is_new: bool) -> None:
    """Print the result of locking, as text or JSON."""
    path = project.folder / LOCK_FILE
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
        session.out.hint("`adapt sync` brings the locked adapters into `adapters/`")


def _check(session: Session, project: Project) -> None:
    from adapterhub.api.steps.projects import current_lock

    locked = current_lock(project)
    path = project.folder / LOCK_FILE
    session.out.result(
        {"project": str(project.folder), "lock": str(path), "current": True, **_entries_document(locked)},
        lambda: session.out.line(f"{path} is up to date"),
    )


# ---------------------------------------------------------------- JSON
def lock_document(outcome: LockOutcome) -> dict[str, Any]:
    """What the lock holds and what changed."""
    return {
        "changes": [change.to_json() for change in outcome.changes],
        "warnings": list(outcome.warnings),
        **_entries_document(outcome.lock),
    }


def _entries_document(lock: Lock) -> dict[str, Any]:
    base = lock.base
    return {
        "base": base.to_json() if base else None,
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
