"""`adapt yank`: withdraw a published version without deleting it, and take that back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.params import SPEC, Session, common, remote_option

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec


@click.command()
@click.argument("spec", type=SPEC)
@click.option("--reason", default="", metavar="TEXT", help="Why; users see it [default: no reason given].")
@click.option("--undo", is_flag=True, help="Take the yank back, so that the version is installed again.")
@click.option("--dry-run", is_flag=True, help="Show what would be yanked or restored; change nothing.")
@remote_option
@common
def yank(session: Session, spec: AdapterSpec, undo: bool, dry_run: bool, **options: Any) -> None:
    """Yank a published version: nothing new installs it, and what is locked goes on.

    Our registry records the yank. On the Hub and other servers, a commit writes the reason to `adapterhub.yanked.json`,
    and the tag `yanked-v<version>` marks the version. SPEC names a repository or an adapter, and one version. To yank
    again replaces the reason.

    \b
    Examples:
      adapt yank acme/legal-qa==1.1.0 --reason "trained on leaked labels"
      adapt yank acme/legal-qa-base-7b==1.1.0 --remote ours --dry-run
      adapt yank acme/legal-qa==1.1.0 --undo
    """
    done = session.opened.yank(spec, undo=undo, dry_run=dry_run, **options)
    what = f"{done.repo} {', '.join(done.versions)} on {done.server}"
    if undo:
        did, would, already = f"took back the yank of {what}", f"would take back the yank of {what}", "is not yanked"
    else:
        did, would = f"yanked {what}: {done.yanked}", f"would yank {what}: {done.yanked}"
        already = f"is already yanked: {done.yanked}"
    text = did if done.is_done else would if dry_run else f"{what} {already}"
    session.out.result(done.to_json(), lambda: session.out.line(text))
    if done.is_done and not undo:
        session.out.hint(f"`adapt yank '{done.repo}=={done.versions[0]}' --undo` takes it back")
