"""`adapt verify`: every check over adapters, with the finding, its place and what was expected."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.core.errors import EXIT_SOME_FAILED, AdapterHubError, CouldNotTell, DigestMismatch, UsageProblem
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adapterhub.core.digests import Progress
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.trust.verify import Finding, Report

_UNSIGNED = "is not signed"
_EXIT_CODES = {"ok": 0, "failed": EXIT_SOME_FAILED, "unknown": CouldNotTell.exit_code}


@click.command()
@click.argument("adapters", nargs=-1, metavar="SPEC|FOLDER...", shell_complete=complete_spec_or_folder)
@click.option("--all", "everything", is_flag=True, help="Every installed adapter.")
@click.option("--base", type=BASE, help="Check against this base, where the adapter declares none.")
@click.option("--strict", is_flag=True, help="Files beside a signature that it does not cover are an error.")
@click.option("--notes", is_flag=True, help="Show notes, too (files passed over, scales).")
@common
def verify(
    session: Session,
    adapters: tuple[str, ...],
    everything: bool,
    base: BaseSpec | None,
    strict: bool,
    notes: bool,
) -> None:
    """Check bytes, format, tensor pairs and shapes, scale, numbers, base and signature.

    Exit code 0: all well. 3: a check failed. 12: bytes do not match their digest. 17: a check could not be carried
    out, such as pairing with a base that is not known here.

    \b
    Examples:
      adapt verify --all
      adapt verify ./out/legal-qa --base base-7b
    """
    if bool(adapters) == everything:
        raise UsageProblem("give adapters or folders, or `--all`", hint="`adapt verify --help` shows examples")
    library = session.project_library
    record = library.bases.find(base) if base is not None else None
    reports: list[tuple[str, Report]] = []
    with session.out.progress("verify", None) as progress:
        for label, report in _reports(library, adapters, record, progress):
            reports.append((label, _strictly(report) if strict else report))
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
    from adapterhub.core.specs import AdapterSpec, names_folder
    from adapterhub.distribution.choosing import look_up
    from adapterhub.trust.verify import verify_folder

    if not adapters:
        yield from _everything(library, record, progress)
    for text in adapters:
        if names_folder(text):
            folder = Path(text).expanduser()
            report = verify_folder(
                folder,
                base_tensors=record.tensors if record else None,
                base_fingerprint=record.fingerprint if record else None,
                progress=progress,
            )
            yield text, _with_signature(library, folder, report)
        else:
            spec = AdapterSpec.parse(text)
            build, _ = look_up(library, spec, wanted=wanted_from(library, spec, None))
            yield f"{build.full_name} {build.manifest.label}", _of_build(library, build, record, progress)


def _everything(library: Library, record: BaseRecord | None, progress: Progress) -> Iterator[tuple[str, Report]]:
    """Every installed build, then the store itself where something is found."""
    from adapterhub.library.upkeep.damage import damaged_index, damaged_objects
    from adapterhub.trust.verify import Finding, Report

    looked_at = []
    for build in library.installed():
        if build.folder != library.folder_for(build.manifest, build.namespace):
            continue  # its manifest names another build: told among the broken ones
        seen = _inode_of(build.folder)
        try:
            report = _of_build(library, build, record, progress)
        except FileNotFoundError:
            if _inode_of(build.folder) == seen:
                raise
            continue
        if report.errors and _inode_of(build.folder) != seen:  # removed, and perhaps added anew, while we looked
            continue
        looked_at.append(build)
        yield f"{build.full_name} {build.manifest.label}", report
    hint = "`adapt doctor --repair` mends what it can"
    findings = [
        Finding(code="E_MANIFEST", severity="error", where=where, message=broken.reason, hint=hint)
        for broken in library.broken()
        if (where := broken.folder.relative_to(library.root).as_posix())
    ]
    damages = (*damaged_objects(library, looked_at, progress), *damaged_index(library))
    findings += [damage.finding(library.root) for damage in damages]
    if findings:
        yield "the store", Report.of(findings)


def _inode_of(folder: Path) -> int | None:
    """Which folder it is; None when there is none."""
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None


def _of_build(library: Library, build: Installed, record: BaseRecord | None, progress: Progress) -> Report:
    """The checks of an installed build, and what its signature says."""
    from adapterhub.formats.release import Release
    from adapterhub.library.admission.admission import Admission
    from adapterhub.library.admission.findings import signature_findings

    report = library.verify(build, record, progress)
    release = Release(manifest=build.manifest, namespace=build.namespace, origin=library.label)
    place = library.origins.place_of(build.manifest.digest, build.full_name)
    found = signature_findings(Admission(library), release, lambda: library.provenance(release), place)
    return _joined(report, found)


def _with_signature(library: Library, folder: Path, report: Report) -> Report:
    """The checks of a folder with what its signature says, if it has one: of its manifest, else of its very files."""
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.formats.manifest import MANIFEST_FILE, SIGNATURE_FILE
    from adapterhub.formats.release import Release
    from adapterhub.library.admission.admission import Admission
    from adapterhub.library.admission.findings import signature_findings
    from adapterhub.library.directory import PlainFolder
    from adapterhub.trust.signing.provenance import provenance_of
    from adapterhub.trust.verify.checks.digests import read_manifest_file
    from adapterhub.trust.verify.listing import list_folder

    if not os.path.lexists(folder / SIGNATURE_FILE):
        return report
    try:
        entry = list_folder(folder).taken.get(MANIFEST_FILE)
        if entry is not None:
            manifest = read_manifest_file(entry)
            release = Release(manifest=manifest, namespace=None, origin=str(folder))
        else:
            release = PlainFolder(folder).releases(AdapterSpec.parse("unnamed"))[0]
    except (AdapterHubError, OSError):  # the report says what is wrong with it
        return report
    place = os.path.abspath(folder)  # noqa: PTH100 - as the user names it, links and all
    return _joined(report, signature_findings(Admission(library), release, lambda: provenance_of(folder), place))


def _joined(report: Report, found: Sequence[Finding]) -> Report:
    from adapterhub.trust.verify import Report

    return Report.of([*report.findings, *found], report.facts)


def _strictly(report: Report) -> Report:
    """With an error for what a signature does not cover."""
    from adapterhub.library.admission.findings import as_error
    from adapterhub.trust.verify import Report

    return Report.of([as_error(finding) for finding in report.findings], report.facts)


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
        signed = [f.message for f in report.notes if f.code == "N_SIGNATURE" and f.message != _UNSIGNED]
        out.line(f"{label}: {words[report.status]}" + "".join(f", {message}" for message in signed))
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
