"""`adapt doctor`: check this installation and name the fix for each problem."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.params import Session, common, jobs_option, places_option, project_option, remote_options
from adapterhub.core.errors import EXIT_SOME_FAILED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.api.health import Line
    from adapterhub.api.upkeep import Repaired


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
@jobs_option("Read N builds at a time [default: 1].")
@project_option
@remote_options
@common
def doctor(session: Session, is_repair: bool, dry_run: bool, **options: Any) -> None:
    """Check the installation: dependencies, command, home, disk, links, index, project and hub connection.

    With --repair, repairs the store. Files that do not match their digest move to `quarantine/` and are never deleted.
    Correct bytes come from the store itself, from other adapters, from the place an adapter was installed from, or from
    --from. Exits with code 0 when everything is healthy or repaired, and with 3 when something could not be repaired
    or --dry-run found damage.

    \b
    Examples:
      adapt doctor --offline
      adapt doctor --rebuild-index --jobs 4
      adapt doctor --repair --dry-run
    """
    found: Any = session.opened.doctor(repair=is_repair, dry_run=dry_run, argv0=sys.argv[0], **options)  # type: ignore[call-overload]
    if is_repair:
        session.out.result(found.to_json(), lambda: _say(session, found))
        if not found.mended:
            session.out.hint("install or add these again, or fetch them with `--from DIR`")
        if not found.mended or (dry_run and found.steps):
            raise SystemExit(EXIT_SOME_FAILED)
        return
    lines: Sequence[Line] = found

    def text() -> None:
        session.out.table(("check", "state", "fact"), [(line.what, line.state, line.fact) for line in lines])
        for line in lines:
            session.out.hint(line.hint)

    session.out.result([line.to_json() for line in lines], text)
    if any(line.state == "failed" for line in lines):
        raise SystemExit(EXIT_SOME_FAILED)


def _say(session: Session, repaired: Repaired) -> None:
    would = "would be " if repaired.dry_run else ""
    for step in repaired.steps:
        action = f"{would}{step.action}" if step.is_mended else step.action
        session.out.line(f"{action}\t{step.path}" + (f"\t{step.detail}" if step.detail else ""))
    if not repaired.steps:
        session.out.line("nothing is damaged")
