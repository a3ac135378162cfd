"""`adapt rollback`: go back to what the lock held before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from adapterhub.cli.completion.completing import complete_key
from adapterhub.cli.options.params import Session, common, project_option, trust_option
from adapterhub.core.disk.home import PROJECT_FILE

if TYPE_CHECKING:
    from adapterhub.projects.locking import LockOutcome


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_key)
@click.option("--dry-run", is_flag=True, help="Show what would change; change nothing.")
@click.option("--offline", is_flag=True, help="Use no network.")
@project_option
@trust_option
@common
def rollback(session: Session, names: tuple[str, ...], dry_run: bool, offline: bool) -> None:
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
    from adapterhub.api.steps.upgrades.projects import preview_rollback, roll_back
    from adapterhub.cli.projects.upgrade import tell_outcome, tell_preview
    from adapterhub.projects.places import ProjectSources

    project = session.need_project()
    sources = ProjectSources(session, project, offline=offline)
    if dry_run:
        tell_preview(session, project, preview_rollback(session, project, names, sources, bars=session.out))
        return
    outcome, synced = roll_back(session, project, names, sources, bars=session.out)
    tell_outcome(session, project, outcome, synced)
    session.out.hint(_way_forward(session, outcome))


def _way_forward(session: Session, outcome: LockOutcome) -> str:
    """What takes the newer builds again: an upgrade, unless the project file asks for other versions now."""
    asked = {wanted.key: wanted.spec for wanted in session.need_project().adapters}
    for change in outcome.changes:
        left, spec = change.before, asked.get(change.key) if change.key else None
        if left is not None and spec is not None and not spec.matches(left.version):
            return f"`{PROJECT_FILE}` asks for `{spec}`: change that to go forward to {left.version} again"
        if left is not None and session.library.yanks.places(left.digest):
            return f"{left.version} was yanked; only `=={left.version}` in `{PROJECT_FILE}` goes forward to it again"
    return "`adapt upgrade` goes forward again"
