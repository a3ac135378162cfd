"""`adapt sync`: make the project's `adapters/` match the lock file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_group
from adapterhub.cli.options.params import Session, common, project_option, signatures_option
from adapterhub.cli.options.testing import test_option
from adapterhub.cli.output import counted, listed, size_text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from adapterhub.projects.sync import Synced


@click.command()
@click.option("--frozen", is_flag=True, help="Do not update the lock file; fail if it is missing or stale.")
@click.option("--offline", is_flag=True, help="Use no network.")
@click.option("--check", is_flag=True, help="Read every byte again, even of files that appear unchanged.")
@click.option("--prune", is_flag=True, help="Remove folders that the lock file does not list.")
@click.option(
    "--group", "groups", multiple=True, metavar="NAME", shell_complete=complete_group, help="Include an optional group."
)
@click.option("--all-groups", is_flag=True, help="Include every optional group.")
@click.option(
    "--yes",
    "-y",
    "delete_foreign",
    is_flag=True,
    help="With --prune: also delete folders that sync did not make, unprompted.",
)
@test_option("Change folders only if each build answers as its contract records")
@signatures_option
@project_option
@common
def sync(session: Session, **options: Any) -> None:
    """Make the project's `adapters/` match its lock file, with links into the library.

    First updates a lock file that is missing or stale. Fetches each missing build by its digest from its locked source
    and makes each merge again from its recipe. Leaves correct folders untouched, and changes nothing in `adapters/`
    until every build is available.

    A file counts as unchanged, without being read, while its size, times and inode are those that sync left. --check
    reads every byte; use `adapt sync --frozen --check` in CI.

    --test runs the contract of every build on the base of the project, before any folder changes, and a merge by the
    lines of its inputs' contracts that bind it. A kept result of the same build, base and precision is free.

    \b
    Examples:
      adapt sync
      adapt sync --frozen --check
      adapt sync --group eval --prune
      adapt sync --test
    """

    def agree(folders: Sequence[Path]) -> bool:
        session.out.warn("sync did not make these folders; their contents may exist nowhere else:")
        for folder in folders:
            session.out.note(f"  {folder}")
        return click.confirm("Delete them?", err=True)

    asks = agree if sys.stdin.isatty() else None
    synced = session.opened_project.sync(agree=asks, **options)
    session.out.result(synced.to_json(), lambda: say_synced(session, synced))
    for one in synced.tests or ():
        if one.passed:
            session.out.note(f"{one.label}: PASS, {one.kept}")
    ours = [one.path for one in synced.left if one.made_by_sync]
    if ours:
        session.out.note(f"not in the lock file: {_names(ours)}")
        session.out.hint("`adapt sync --prune` removes folders that sync made")
    others = [one.path for one in synced.left if not one.made_by_sync]
    if others and options["prune"]:
        session.out.note(f"kept, because sync did not make them: {_names(others)}")
        session.out.hint("`adapt sync --prune --yes` deletes them, too")


def _names(paths: Sequence[Path]) -> str:
    return listed([f"`{path.name}`" for path in paths])


def say_synced(session: Session, synced: Synced, *, but: Collection[str | None] = ()) -> None:
    """Print what a sync did; it leaves out the names in `but` unless it repaired them."""
    adapters = synced.adapters
    for one in adapters:
        if one.done == "kept" or (one.key in but and not one.repaired):
            continue
        origin = f"  from {one.origin}" if one.origin else ""
        session.out.line(f"{one.done} {one.key}  {one.name} {one.version}{origin}")
        for reason in one.repaired:
            session.out.line(f"  it had changed: {reason}")
    for path in synced.removed:
        session.out.line(f"removed {path.name}")
    changed = len(synced.changed)
    fetched = f", {size_text(synced.fetched_bytes)} fetched" if synced.fetched_bytes else ""
    state = f"{changed} changed" if changed else "all as locked"
    session.out.line(f"{counted(len(adapters), 'adapter')} in {synced.project}/adapters: {state}{fetched}")
