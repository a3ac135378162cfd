"""`adapt verify`: run every check on adapters and print each finding with its place and the expected value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from adapterhub.api.steps.checking import bytes_to_check, reports_of, strictly
from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.core.errors import EXIT_SOME_FAILED, CouldNotTell, DigestMismatch, UsageProblem

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.trust.verify import Report

_UNSIGNED = "is not signed"
_EXIT_CODES = {"ok": 0, "failed": EXIT_SOME_FAILED, "unknown": CouldNotTell.exit_code}


@click.command()
@click.argument("adapters", nargs=-1, metavar="SPEC|FOLDER...", shell_complete=complete_spec_or_folder)
@click.option("--all", "everything", is_flag=True, help="Check every installed adapter.")
@click.option("--base", type=BASE, help="Check against this base if the adapter declares none.")
@click.option("--strict", is_flag=True, help="Fail when a signed folder has files that its signature does not cover.")
@click.option("--notes", is_flag=True, help="Also show notes, such as ignored files and scales.")
@click.option("--offline", is_flag=True, help="Ask no server whether it has yanked an adapter.")
@common
def verify(
    session: Session,
    adapters: tuple[str, ...],
    everything: bool,
    base: BaseSpec | None,
    strict: bool,
    notes: bool,
    offline: bool,
) -> None:
    """Check an adapter's bytes, format, tensor pairs and shapes, scale, numbers, base and signature.

    Also warns about an installed adapter that its server has yanked: asks the server, and if it does not answer, says
    what it said last.

    Exits with code 0 when every check passes, 3 when one fails, 12 when bytes do not match their digest, and 17 when a
    check cannot run, for example because the base is not registered here.

    \b
    Examples:
      adapt verify --all
      adapt verify ./out/legal-qa --base base-7b
    """
    if bool(adapters) == everything:
        raise UsageProblem("give adapters or folders, or `--all`", hint="see the examples of `adapt verify --help`")
    record = session.library.bases.find(base) if base is not None else None
    reports: list[tuple[str, Report]] = []
    total = bytes_to_check(lambda: session.project_library, adapters) if session.out.shows_bars else None
    find_source = None if offline else session.place_source
    with session.out.progress("verify", total) as progress:
        found = reports_of(lambda: session.project_library, adapters, record, progress, find_source=find_source)
        for label, report in found:
            reports.append((label, strictly(report) if strict else report))
    session.out.result(
        [{"adapter": label, **report.to_json()} for label, report in reports],
        lambda: _say(session, reports, notes=notes),
    )
    code = _exit_code([report for _, report in reports])
    if code:
        raise SystemExit(code)


def _exit_code(reports: list[Report]) -> int:
    """The code of the worst status: wrong bytes before other failures, and those before unknowns."""
    if any(f.code == "E_DIGEST" for report in reports for f in report.errors):
        return DigestMismatch.exit_code
    for status in ("failed", "unknown"):
        if any(report.status == status for report in reports):
            return _EXIT_CODES[status]
    return 0


def _say(session: Session, reports: list[tuple[str, Report]], *, notes: bool) -> None:
    out = session.out
    words = {"ok": "ok", "failed": "FAILED", "unknown": "unknown"}
    for label, report in reports:
        signed = [f.message for f in report.notes if f.code == "N_SIGNATURE" and f.message != _UNSIGNED]
        out.line(f"{label}: {words[report.status]}" + "".join(f", {message}" for message in signed))
        for finding in report.findings:
            if finding.severity == "note" and not notes:
                continue
            place = f"{finding.where}: " if finding.where else ""
            expected = f"; expected {finding.expected}" if finding.expected else ""
            out.line(f"  [{finding.code}] {finding.severity}: {place}{finding.message}{expected}")
            if finding.severity == "error":
                out.hint(finding.hint or f"`adapt explain {finding.code}` says what to do")
    if not reports:
        out.line("nothing is installed")
