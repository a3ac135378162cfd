"""`adapt yank` and `adapt unyank`: withdraw a published version without deleting it, and take that back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.params import SPEC, Session, common, remote_options

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec


@click.command()
@click.argument("spec", type=SPEC)
@click.option("--reason", default="", metavar="TEXT", help="Why; users see it [default: no reason given].")
@click.option("--dry-run", is_flag=True, help="Show what would be yanked; change nothing.")
@remote_options
@common
def yank(session: Session, spec: AdapterSpec, dry_run: bool, **options: Any) -> None:
    """Yank a published version: nothing new installs it, and what is locked goes on.

    Our registry records the yank. On the Hub and other servers, a commit writes the reason to `adapterhub.yanked.json`,
    and the tag `yanked-v<version>` marks the version. SPEC names a repository or an adapter, and one version. To yank
    again replaces the reason; `adapt unyank` takes the yank back.

    \b
    Examples:
      adapt yank acme/legal-qa==1.1.0 --reason "trained on leaked labels"
      adapt yank acme/legal-qa-base-7b==1.1.0 --remote ours --dry-run
    """
    done = session.opened.yank(spec, dry_run=dry_run, **options)
    what = f"{done.repo} {', '.join(done.versions)} on {done.server}"
    already = f"{what} is already yanked: {done.yanked}"
    would = f"would yank {what}: {done.yanked}"
    session.out.result(
        done.to_json(),
        lambda: session.out.line(f"yanked {what}: {done.yanked}" if done.is_done else would if dry_run else already),
    )
    if done.is_done:
        session.out.hint(f"`adapt unyank '{done.repo}=={done.versions[0]}'` takes it back")


@click.command()
@click.argument("spec", type=SPEC)
@click.option("--dry-run", is_flag=True, help="Show which version would be restored; change nothing.")
@remote_options
@common
def unyank(session: Session, spec: AdapterSpec, dry_run: bool, **options: Any) -> None:
    """Take the yank of a published version back, so that it is installed again.

    \b
    Example:
      adapt unyank acme/legal-qa==1.1.0
    """
    done = session.opened.unyank(spec, dry_run=dry_run, **options)
    what = f"{done.repo} {', '.join(done.versions)} on {done.server}"
    would = f"would take back the yank of {what}"
    not_yanked = f"{what} is not yanked"
    session.out.result(
        done.to_json(),
        lambda: session.out.line(f"took back the yank of {what}" if done.is_done else would if dry_run else not_yanked),
    )
