"""`adapt upgrade`: see newer releases, move to the allowed ones, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.arguments import refuse
from adapterhub.cli.completion.completing import complete_spec
from adapterhub.cli.inspect.test import EXIT_CODES
from adapterhub.cli.options.params import (
    Session,
    common,
    jobs_option,
    places_option,
    project_option,
    remote_options,
    signatures_option,
)
from adapterhub.cli.options.testing import test_option
from adapterhub.cli.projects.lock import say_changes
from adapterhub.cli.projects.sync import say_synced
from adapterhub.core.errors import UsageProblem, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.distribution.outdated import Offer, Upgraded
    from adapterhub.projects.syncing import LockPlan


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=complete_spec)
@click.option("--library", "is_library", is_flag=True, help="Upgrade the library even inside a project.")
@click.option("--check", is_flag=True, help="Show newer and withdrawn releases, allowed or not; change nothing.")
@click.option("--undo", is_flag=True, help="Go back to the build of each NAME that the lock held before, and sync.")
@click.option("--dry-run", is_flag=True, help="Show what would change; change nothing.")
@test_option("Take a release only if it passes the contract of the one that it replaces")
@places_option()
@jobs_option("Ask for N adapters at a time [default: 8].", default=8)
@signatures_option
@project_option
@remote_options
@common
def upgrade(
    session: Session, names: tuple[str, ...], is_library: bool, check: bool, undo: bool, **options: Any
) -> None:
    """Move to the newest allowed releases: lock and sync them in a project, install them outside.

    In a project, this is `adapt lock --upgrade [NAME...]` followed by `adapt sync`. In the library, it installs the
    newest release of each name for the same base and keeps the older one. It replaces a yanked version, by an older one
    if there is no newer, and prints the reason of the yank.

    --check lists the adapters that have a newer release, a line for each source that has one, and those that were
    withdrawn; with NAME, also those that are up to date. In a project: the locked version, the one that `adapt upgrade`
    would take (`allowed`), and the newest that fits the base. --dry-run shows what this command would take.

    With --test, a release that passes the contract of the one it replaces is a drop-in. One that does not is left, with
    exit code 3, or 17 without a verdict; --test=warn takes it.

    With --undo, goes back in a project: to the build that the lock held before, also after an edit of `adapters.toml`,
    whose entry is then restored as well. Merges of the adapter follow. Each --undo goes one step further back, among
    the last 20 builds of each name that were locked on this machine; version control has what others locked. `NAME =
    "==VERSION"` in `adapters.toml` keeps a version for good.

    \b
    Examples:
      adapt upgrade --check
      adapt upgrade legal-qa
      adapt upgrade --dry-run
      adapt upgrade legal-qa --test
      adapt upgrade --undo legal-qa --dry-run
    """
    if undo:
        _undo(session, names, check=check, library=is_library, **options)
        return
    project = None if is_library else session.project_here
    if check:
        found = (project or session.opened).upgrade(*names, check=True, **options)
        _say_offers(session, found, is_named=bool(names), is_project=project is not None)
        return
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
        session.out.note("no newer release is allowed; `adapt upgrade --check` shows all releases")
    _exit_for([one.tested.verdict for one in moved.tests or () if not one.kept])


def _say_offers(session: Session, found: Sequence[Offer], *, is_named: bool, is_project: bool) -> None:
    """Print what is newer or was withdrawn, and what to do about it; of named adapters, each."""
    told = [offer for offer in found if is_named or offer.is_worth_telling]
    session.out.result([offer.to_json() for offer in told], lambda: _say_rows(session, told, is_project=is_project))
    for offer in found:
        if offer.has_replaced:
            one = offer.request
            session.out.hint(
                f"`adapt remove '{one.key}=={one.version}'` removes the yanked version; another is installed"
            )
    if any(offer.has_allowed for offer in found):
        session.out.hint("`adapt upgrade` installs the allowed versions")
    elif found and not any(offer.is_worth_telling for offer in found):
        session.out.note("everything is up to date")


def _say_rows(session: Session, told: Sequence[Offer], *, is_project: bool) -> None:
    rows: list[tuple[object, ...]] = []
    for offer in told:
        allowed = (offer.allowed.version if offer.allowed else None,) if is_project else ()
        newest = offer.newest.version if offer.newest else None
        rows.append((offer.request.key, offer.request.version, *allowed, newest, offer.place, _note(offer)))
    had = ("locked", "allowed") if is_project else ("installed",)
    session.out.table(("name", *had, "newest", "place", "note"), rows)


def _note(offer: Offer) -> str:
    if offer.problem is not None:
        return shown(offer.problem.splitlines()[0], 200)
    if offer.yanked is not None:
        return f"yanked: {shown(offer.yanked or 'no reason given', 200)}"
    return "" if offer.allowed is not None else "no release here is allowed"


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


def _undo(
    session: Session, names: Sequence[str], *, dry_run: bool, offline: bool, jobs: int, places: Any, **others: Any
) -> None:
    refuse("`--undo` takes only `--dry-run`, `--offline` and `--project`", **others, **{"from": places})
    if not names:
        raise UsageProblem("`--undo` needs the names that go back", hint="such as `adapt upgrade --undo legal-qa`")
    moved = session.opened_project.rollback(*names, dry_run=dry_run, offline=offline)
    session.out.result(moved.to_json(), lambda: _say_moved(session, moved))
    session.out.hint(moved.way_forward)
