"""`adapt upgrade` and `adapt rollback`: move to the newest allowed releases, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_key, complete_spec
from adapterhub.cli.inspect.test import EXIT_CODES
from adapterhub.cli.options.params import (
    Session,
    common,
    places_option,
    project_option,
    remote_options,
    signatures_option,
    trust_option,
)
from adapterhub.cli.options.testing import test_option
from adapterhub.cli.projects.lock import say_changes
from adapterhub.cli.projects.sync import say_synced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.distribution.outdated import Upgraded
    from adapterhub.projects.syncing import LockPlan


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=complete_spec)
@click.option("--library", "is_library", is_flag=True, help="Upgrade the library even inside a project.")
@click.option("--dry-run", is_flag=True, help="Show what would change; change nothing.")
@test_option("Take a release only if it passes the contract of the one that it replaces")
@places_option()
@signatures_option
@project_option
@trust_option
@remote_options
@common
def upgrade(session: Session, names: tuple[str, ...], is_library: bool, **options: Any) -> None:
    """Move to the newest allowed releases: lock and sync them in a project, install them outside.

    In a project, this is `adapt lock --upgrade [NAME...]` followed by `adapt sync`. In the library, it installs the
    newest release of each name for the same base and keeps the older one. It leaves a yanked version, for an older one
    if there is no newer, and says why it was yanked. `adapt outdated` lists newer releases beforehand; --dry-run shows
    which of them this command would take. `adapt rollback NAME` goes back.

    With --test, a release that passes the contract of the one it replaces is a drop-in. One that does not is left, with
    exit code 3, or 17 without a verdict; --test=warn takes it.

    \b
    Examples:
      adapt upgrade
      adapt upgrade legal-qa
      adapt upgrade --dry-run
      adapt upgrade legal-qa --test
    """
    project = None if is_library else session.project_here
    if project is None:
        done = session.opened.upgrade(*names, **options)
        session.out.result([one.to_json() for one in done], lambda: _say(session, done, dry_run=options["dry_run"]))
        if done and not options["dry_run"]:
            session.out.hint("the older releases stay; `adapt remove NAME==VERSION` removes one")
        _exit_for([one.tested.verdict for one in done if one.tested is not None and not one.kept])
        return
    moved = project.upgrade(*names, **options)
    session.out.result(moved.to_json(), lambda: _say_moved(session, moved))
    if not moved.changes:
        session.out.note("no newer release is allowed; `adapt outdated` shows all releases")
    _exit_for([one.tested.verdict for one in moved.tests or () if not one.kept])


def _exit_for(refused: Sequence[str]) -> None:
    """End with the code for the worst verdict on a release that was left."""
    if refused:
        raise SystemExit(EXIT_CODES["CHANGED" if "CHANGED" in refused else "UNKNOWN"])


def _say(session: Session, done: Sequence[Upgraded], *, dry_run: bool) -> None:
    words = {"PASS": "drop-in", "CHANGED": "behaviour changed", "UNKNOWN": "no verdict is possible"}
    for one in done:
        verb = "would install" if dry_run else "not upgraded:" if one.kept is False else "~"
        result = one.tested
        told = f"  {words[result.verdict]}: {'; '.join(result.broken)}".rstrip(": ") if result else ""
        request = one.offer.request
        session.out.line(f"{verb} {request.key}  {request.version} -> {one.taken.version}{told}")
    if not done:
        session.out.line("no newer release found")


def _say_moved(session: Session, moved: LockPlan) -> None:
    """Print what changed in the lock and in `adapters/`, or would, and what a test said."""
    say_changes(session, moved.changes, short=True)
    if moved.sync is None:
        changed = f"would change {len(moved.changes)} in the lock file and {len(moved.folders)}"
        session.out.line(f"{changed} in {moved.project}/adapters")
        return
    say_synced(session, moved.sync, but={change.key for change in moved.changes})
    for one in moved.tests or ():
        if one.tested.passed:
            session.out.line(f"  {one.line}")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_key)
@click.option("--dry-run", is_flag=True, help="Show what would change; change nothing.")
@click.option("--offline", is_flag=True, help="Use no network.")
@project_option
@trust_option
@common
def rollback(session: Session, names: tuple[str, ...], **options: Any) -> None:
    """Go back to the build that the lock held before: lock it and sync.

    If the project file asked for something else then, that entry is restored as well. Merges of the adapter follow.
    Each rollback goes one step further back; `adapt upgrade` goes forward again, and `NAME = "==VERSION"` in
    `adapters.toml` keeps a version for good.

    The library remembers the last 20 builds that each name of the project was locked to on this machine. Version
    control has what others locked.

    \b
    Examples:
      adapt rollback legal-qa --dry-run
      adapt rollback legal-qa
    """
    moved = session.opened_project.rollback(*names, **options)
    session.out.result(moved.to_json(), lambda: _say_moved(session, moved))
    session.out.hint(moved.way_forward)
