"""`adapt audit`: audit signatures, origins, stray files and licences of installed adapters."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.checking import audited
from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.params import Session, common
from adapterhub.cli.output import json_text
from adapterhub.core.errors import EXIT_SOME_FAILED, CouldNotTell, DigestMismatch, UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.library.audit import Audited

_SCHEMA = "adapterhub/audit/1"
_COLUMNS = ("adapter", "code", "severity", "where", "finding")


@click.command()
@click.argument("adapters", nargs=-1, metavar="[SPEC|FOLDER...]", shell_complete=complete_spec_or_folder)
@click.option("--strict", is_flag=True, help="Let warnings and unknowns set the exit code, too.")
@click.option("--verify", "with_bytes", is_flag=True, help="Also check every byte, as `adapt verify` does.")
@click.option("--offline", is_flag=True, help="Do not ask servers whether an adapter was withdrawn.")
@click.option("--ignore", multiple=True, metavar="CODE", help="Skip findings with this code; may be repeated.")
@click.option("--notes", is_flag=True, help="Also show notes: signers, combined licences and missing contracts.")
@click.option("--sarif", is_flag=True, help="Print one SARIF 2.1.0 document, for code scanning services.")
@common
def audit(
    session: Session,
    adapters: tuple[str, ...],
    strict: bool,
    with_bytes: bool,
    offline: bool,
    ignore: tuple[str, ...],
    notes: bool,
    sarif: bool,
) -> None:
    """Audit installed adapters or folders: stray files, signatures, base, withdrawals, lineage, licences, names.

    Changes nothing. Asks the server that each adapter came from whether it has been withdrawn.

    Exits with code 0 without errors (with --strict: without warnings and unknowns, too), 3 with errors (with --strict:
    or warnings), 12 when --verify finds bytes that do not match their digest, and 17 when --strict finds only unknowns.

    \b
    Examples:
      adapt audit
      adapt audit legal-qa@base-7b --offline --notes
      adapt audit --strict --ignore W_UNSIGNED --json
      adapt audit --sarif > audit.sarif
    """
    if sarif and session.out.as_json:
        raise UsageProblem("`--sarif` and `--json` exclude each other: both print the audit to stdout")
    audits = list(audited(session, adapters, ignore, with_bytes=with_bytes, offline=offline, bars=session.out))
    if sarif:
        import adapterhub
        from adapterhub.library.audit import to_sarif

        document: dict[str, Any] = to_sarif(audits, root=session.root, version=adapterhub.__version__)
        sys.stdout.write(json_text(document, indent=1) + "\n")
    else:
        session.out.result(lambda: _document(audits, strict=strict), lambda: _say(session, audits, notes=notes))
    code = _exit_code(audits, strict=strict)
    if code:
        raise SystemExit(code)


def _exit_code(audited: Sequence[Audited], *, strict: bool) -> int:
    """The code of the worst finding: wrong bytes before other errors, and those before unknowns."""
    severities = {finding.severity for one in audited for finding in one.report.findings}
    if any(finding.code == "E_DIGEST" for one in audited for finding in one.report.errors):
        return DigestMismatch.exit_code
    if "error" in severities or (strict and "warning" in severities):
        return EXIT_SOME_FAILED
    return CouldNotTell.exit_code if strict and "unknown" in severities else 0


def _counts(audited: Sequence[Audited]) -> dict[str, int]:
    every = [finding.severity for one in audited for finding in one.report.findings]
    return {severity: every.count(severity) for severity in ("error", "warning", "unknown", "note")}


def _document(audited: Sequence[Audited], *, strict: bool) -> dict[str, Any]:
    return {
        "schema": _SCHEMA,
        "exit_code": _exit_code(audited, strict=strict),
        "counts": _counts(audited),
        "ignored": sum(one.ignored for one in audited),
        "adapters": [one.to_json() for one in audited],
    }


def _say(session: Session, audited: Sequence[Audited], *, notes: bool) -> None:
    out = session.out
    rows = [
        (
            one.target.label,
            f.code,
            f.severity,
            f.where,
            f.message + (f"; expected {f.expected}" if f.expected else ""),
        )
        for one in audited
        for f in one.report.findings
        if notes or f.severity != "note"
    ]
    if rows:
        out.table(_COLUMNS, rows)
    for hint in dict.fromkeys(f.hint for one in audited for f in one.report.findings if f.severity == "error"):
        out.hint(hint)
    counts, ignored = _counts(audited), sum(one.ignored for one in audited)
    summary = (
        f"{len(audited)} audited: {counts['error']} errors, {counts['warning']} warnings, {counts['unknown']} unknown"
    )
    out.note(f"{summary}, {ignored} ignored" if ignored else summary)
