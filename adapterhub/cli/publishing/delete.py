"""`adapt delete`: delete a published version or a whole repository."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.params import SPEC, Session, common, remote_option
from adapterhub.cli.output import listed
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.withdrawal import Withdrawn


@click.command()
@click.argument("spec", type=SPEC, metavar="SPEC|ORG/REPO")
@click.option("--yes", "-y", is_flag=True, help="Delete without a prompt.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted; change nothing.")
@remote_option
@common
def delete(session: Session, spec: AdapterSpec, yes: bool, dry_run: bool, **options: Any) -> None:
    """Delete a published version from a server, or the whole repository if you name no version.

    A machine that has it locked and not installed can no longer install it; `adapt yank` withdraws a version and keeps
    such installs working. A deleted version loses its tag; its bytes stay in the repository's history, which only the
    deletion of the repository removes. Our registry never takes other bytes under a version that was deleted.
    `adapt remove` removes an adapter from your own library.

    \b
    Examples:
      adapt delete acme/legal-qa==1.1.0 --dry-run
      adapt delete acme/legal-qa --yes
    """

    def agree(plan: Withdrawn) -> None:
        _confirm(session, _described(plan, is_version=spec.is_exact), yes=yes)

    done = session.opened.delete(spec, dry_run=dry_run, agree=agree, **options)
    what = _described(done, is_version=spec.is_exact)
    session.out.result(done.to_json(), lambda: session.out.line(f"{'would delete' if dry_run else 'deleted'} {what}"))


def _described(plan: Withdrawn, *, is_version: bool) -> str:
    if is_version:
        return f"version {plan.versions[0]} of {plan.repo} on {plan.server}"
    versions = f"all its versions ({listed(plan.versions, 5)})" if plan.versions else "no version"
    return f"the repository {plan.repo} on {plan.server}, with {versions}"


def _confirm(session: Session, what: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageProblem(
            f"cannot ask before deleting {what}: not a terminal. Nothing was deleted", hint="pass `--yes` to confirm"
        )
    session.out.warn("no machine can install it any more, and this cannot be undone")
    click.confirm(f"Delete {what}?", abort=True, err=True)
