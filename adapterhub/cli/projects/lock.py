"""`adapt lock`: choose a build for everything in the project file and record it in the lock file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_key
from adapterhub.cli.options.params import Session, common, places_option, project_option, remote_options
from adapterhub.cli.output import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.projects.locking import Change, LockReport


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_key)
@click.option("--upgrade", "-U", is_flag=True, help="Choose the newest allowed release of NAME, or of everything.")
@click.option("--check", is_flag=True, help="Only check: exit with code 15 if the lock file is stale.")
@places_option()
@project_option
@remote_options
@common
def lock(session: Session, names: tuple[str, ...], **options: Any) -> None:
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
    done = session.opened_project.lock(*names, **options)
    session.out.result(done.to_json(), lambda: _say(session, done))
    if done.written:
        session.out.hint("`adapt sync` brings the locked adapters into `adapters/`")


def _say(session: Session, done: LockReport) -> None:
    if done.current:
        session.out.line(f"{done.file} is up to date")
        return
    say_changes(session, done.changes or ())
    what = counted(len(done.lock.entries), "entry", "entries")
    session.out.line(f"{'wrote' if done.written else 'unchanged:'} {done.file}, {what}")


def say_changes(session: Session, changes: Sequence[Change], *, short: bool = False) -> None:
    """Print a line for each difference; a `short` one has no digests and places."""
    for change in changes:
        session.out.line(change.short if short else change.line)
