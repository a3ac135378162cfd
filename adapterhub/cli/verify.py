"""`adapt verify`: every check over adapters, with the finding, its place and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.params import BASE, Session, common, wanted_from
from adapterhub.errors import EXIT_SOME_FAILED, CouldNotTell, DigestMismatch, UsageProblem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adapterhub.bases import BaseRecord
    from adapterhub.digests import Progress
    from adapterhub.library import Library
    from adapterhub.specs import BaseSpec
    from adapterhub.verify import Report

_EXIT_CODES = {"ok": 0, "failed": EXIT_SOME_FAILED, "unknown": CouldNotTell.exit_code}


@click.command()
@click.argument("adapters", nargs=-1, metavar="SPEC|FOLDER...")
@click.option("--all", "everything", is_flag=True, help="Every installed adapter.")
@click.option("--base", type=BASE, help="Check against this base, where the adapter declares none.")
@click.option("--notes", is_flag=True, help="Show notes, too (files passed over, scales).")
@common
def verify(session: Session, adapters: tuple[str, ...], everything: bool, base: BaseSpec | None, notes: bool) -> None:
    """Check bytes, format, tensor pairs and shapes, scale, numbers and base.

    Exit code 0: all well. 3: a check failed. 12: bytes do not match their digest. 17: a check could not be carried
    out, such as pairing with a base that is not known here.

    \b
    Examples:
      adapt verify --all
      adapt verify ./out/legal-qa --base base-7b
    """
    if bool(adapters) == everything:
        raise UsageProblem("give adapters or folders, or `--all`", hint="`adapt verify --help` shows examples")
    library = session.library
    record = library.bases.find(base) if base is not None else None
    reports: list[tuple[str, Report]] = []
    with session.out.progress("verify", None) as progress:
        for label, report in _reports(library, adapters, record, progress):
            reports.append((label, report))
    session.out.result(
        [{"adapter": label, **report.to_json()} for label, report in reports],
        lambda: _say(session, reports, notes=notes),
    )
    code = _exit_code([report for _, report in reports])
    if code:
        raise SystemExit(code)


def _reports(
    library: Library, adapters: tuple[str, ...], record: BaseRecord | None, progress: Progress
) -> Iterator[tuple[str, Report]]:
    from adapterhub.install import find_installed
    from adapterhub.specs import AdapterSpec
    from adapterhub.verify import verify_folder

    if not adapters:
        for build in library.installed():
            yield f"{build.full_name} {build.manifest.label}", library.verify(build, record, progress)
    for text in adapters:
        if text.startswith((".", "/", "~")):
            yield (
                text,
                verify_folder(
                    Path(text).expanduser(),
                    base_tensors=record.tensors if record else None,
                    base_fingerprint=record.fingerprint if record else None,
                    progress=progress,
                ),
            )
        else:
            spec = AdapterSpec.parse(text)
            build, _ = find_installed(library, spec, wanted=wanted_from(library, spec, None))
            yield f"{build.full_name} {build.manifest.label}", library.verify(build, record, progress)


def _exit_code(reports: list[Report]) -> int:
    """Of all: bytes that do not match come before other failures, and those before what could not be told."""
    if any(f.code == "E_DIGEST" for report in reports for f in report.errors):
        return DigestMismatch.exit_code
    for status in ("failed", "unknown"):
        if any(report.status == status for report in reports):
            return _EXIT_CODES[status]
    return 0


def _say(session: Session, reports: list[tuple[str, Report]], *, notes: bool) -> None:
    out = session.out
    words = {"ok": "ok", "failed": "FAILED", "unknown": "could not tell"}
    for label, report in reports:
        out.line(f"{label}: {words[report.status]}")
        for finding in report.findings:
            if finding.severity == "note" and not notes:
                continue
            place = f"{finding.where}: " if finding.where else ""
            expected = f"; expected {finding.expected}" if finding.expected else ""
            out.line(f"  [{finding.code}] {finding.severity}: {place}{finding.message}{expected}")
            if finding.severity == "error":
                out.hint(finding.hint)
    if not reports:
        out.line("nothing is installed")
