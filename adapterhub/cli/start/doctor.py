"""`adapt doctor`: check this installation and name the fix for each problem."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from adapterhub.api.health import health
from adapterhub.cli.options.params import Session, common, places_option, project_option, remote_options
from adapterhub.core.errors import EXIT_SOME_FAILED, UsageProblem
from adapterhub.library.find.meaning import refresh


@click.command()
@click.option("--rebuild-index", is_flag=True, help="Rebuild the index from the installed folders.")
@click.option(
    "--repair",
    "is_repair",
    is_flag=True,
    help="Check every byte of the store and repair it: quarantine damaged files and fetch them again.",
)
@click.option("--dry-run", is_flag=True, help="With --repair: show the repairs, change nothing.")
@places_option("With --repair: also fetch from this library, directory or PEFT folder; may be repeated.")
@project_option
@remote_options
@common
def doctor(
    session: Session,
    rebuild_index: bool,
    is_repair: bool,
    dry_run: bool,
    places: tuple[Path, ...],
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Check the installation: dependencies, command, home, disk, links, index, project and hub connection.

    With --repair, repairs the store. Files that do not match their digest move to `quarantine/` and are never deleted.
    Correct bytes come from the store itself, from other adapters, from the place an adapter was installed from, or from
    --from. Exits with code 0 when everything is healthy or repaired, and with 3 when something could not be repaired
    or --dry-run found damage.

    \b
    Examples:
      adapt doctor --offline
      adapt doctor --rebuild-index
      adapt doctor --repair --dry-run
    """
    if (dry_run or places) and not is_repair:
        raise UsageProblem("`--dry-run` and `--from` need `--repair`", hint="`adapt doctor --repair --dry-run`")
    if is_repair:
        _repair(session, places, remote, token, dry_run=dry_run, offline=offline)
        return
    if rebuild_index:
        from adapterhub.library.find import sketching

        with session.out.progress("sketch", None, unit="adapters") as progress:
            count = sketching.rebuild_index(session.library, progress)
        session.out.note(f"index rebuilt: {count} builds")
        refresh(session.library)
    lines = health(session, remote=remote, token=token, offline=offline, argv0=sys.argv[0])

    def text() -> None:
        session.out.table(("check", "state", "fact"), [(line.what, line.state, line.fact) for line in lines])
        for line in lines:
            session.out.hint(line.hint)

    session.out.result([line.to_json() for line in lines], text)
    if any(line.state == "failed" for line in lines):
        raise SystemExit(EXIT_SOME_FAILED)


def _repair(
    session: Session, places: tuple[Path, ...], remote: str | None, token: str | None, *, dry_run: bool, offline: bool
) -> None:
    from adapterhub.api.steps.upkeep import repair_store

    steps = repair_store(session, places, remote=remote, token=token, dry_run=dry_run, offline=offline)
    rest = sum(not step.is_mended for step in steps)

    def text() -> None:
        would = "would be " if dry_run else ""
        for step in steps:
            action = f"{would}{step.action}" if step.is_mended else step.action
            session.out.line(f"{action}\t{step.path}" + (f"\t{step.detail}" if step.detail else ""))
        if not steps:
            session.out.line("nothing is damaged")

    session.out.result({"dry_run": dry_run, "mended": rest == 0, "steps": [step.to_json() for step in steps]}, text)
    if rest:
        session.out.hint("install or add these again, or fetch them with `--from DIR`")
    if rest or (dry_run and steps):
        raise SystemExit(EXIT_SOME_FAILED)
