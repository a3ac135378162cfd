"""`adapt audit`: audit signatures, origins, stray files and licences of installed adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.params import Session, common
from adapterhub.cli.output import json_text
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from adapterhub.library.audit import Audit

_COLUMNS = ("adapter", "code", "severity", "where", "finding")


@click.command()
@click.argument("adapters", nargs=-1, metavar="[SPEC|FOLDER...]", shell_complete=complete_spec_or_folder)
@click.option("--strict", is_flag=True, help="Also let warnings and unknowns set the exit code.")
@click.option("--verify", is_flag=True, help="Also check every byte, as `adapt verify` does.")
@click.option("--log", is_flag=True, help="Also ask each server's log whether it has the adapter and only grew.")
@click.option("--offline", is_flag=True, help="Do not ask servers whether an adapter was withdrawn.")
@click.option("--ignore", multiple=True, metavar="CODE", help="Skip findings with this code; may be repeated.")
@click.option("--notes", is_flag=True, help="Also show notes: signers, combined licences and missing contracts.")
@click.option("--sarif", is_flag=True, help="Print one SARIF 2.1.0 document, for code scanning services.")
@common
def audit(session: Session, adapters: tuple[str, ...], notes: bool, sarif: bool, **options: Any) -> None:
    """Audit installed adapters or folders: stray files, signatures, base, withdrawals, lineage, licences, names.

    Changes nothing. Checks with the server of each adapter whether it has been withdrawn.

    Exits with code 0 without errors (with --strict: nor warnings or unknowns), 3 with errors (with --strict:
    or warnings), 12 when --verify finds bytes that do not match their digest or --log a log with another past, and 17
    when --strict finds only unknowns.

    \b
    Examples:
      adapt audit
      adapt audit legal-qa@base-7b --offline --notes
      adapt audit --strict --ignore W_UNSIGNED --json
      adapt audit --log --notes
      adapt audit --sarif > audit.sarif
    """
    if sarif and session.out.as_json:
        raise UsageProblem("`--sarif` and `--json` exclude each other: both print the audit to stdout")
    found = session.opened.audit(*adapters, **options)
    if sarif:
        session.out.line(json_text(found.to_sarif(), indent=1))
    else:
        session.out.result(found.to_json, lambda: _say(session, found, notes=notes))
    if found.exit_code:
        raise SystemExit(found.exit_code)


def _say(session: Session, found: Audit, *, notes: bool) -> None:
    out = session.out
    rows = [
        (
            one.target.label,
            f.code,
            f.severity,
            f.where,
            f.message + (f"; expected {f.expected}" if f.expected else ""),
        )
        for one in found
        for f in one.report.findings
        if notes or f.severity != "note"
    ]
    if rows:
        out.table(_COLUMNS, rows)
    for hint in dict.fromkeys(f.hint for one in found for f in one.report.findings if f.severity == "error"):
        out.hint(hint)
    counts = found.counts
    said = f"{len(found)} audited: {counts['error']} errors, {counts['warning']} warnings, {counts['unknown']} unknown"
    out.note(f"{said}, {found.ignored} ignored" if found.ignored else said)
