"""`adapt audit`: who signed what is installed, where it is from, what lies beside it, what its licences ask."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.params import Session, common
from adapterhub.cli.output import json_text
from adapterhub.core.errors import EXIT_SOME_FAILED, CouldNotTell, DigestMismatch, UsageProblem
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adapterhub.library.audit import Audited, Subject
    from adapterhub.library.library import Library
    from adapterhub.library.store.origins import Origin
    from adapterhub.library.transfer import Source

_SCHEMA = "adapterhub/library/audit/1"
_COLUMNS = ("adapter", "code", "severity", "where", "finding")


@click.command()
@click.argument("adapters", nargs=-1, metavar="[SPEC|FOLDER...]", shell_complete=complete_spec_or_folder)
@click.option("--strict", is_flag=True, help="Warnings, and what could not be told, make the exit code, too.")
@click.option("--verify", "with_bytes", is_flag=True, help="Read every byte as well, as `adapt verify` does.")
@click.option("--offline", is_flag=True, help="Ask no server whether an adapter was withdrawn.")
@click.option("--ignore", multiple=True, metavar="CODE", help="Leave findings with this code out; may be repeated.")
@click.option("--notes", is_flag=True, help="Show notes, too: who signed, what the licences come to.")
@click.option("--sarif", is_flag=True, help="One SARIF 2.1.0 document on stdout, for code scanning services.")
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
    """Audit what is installed, or folders: strays, signatures, base, withdrawals, lineage, licences, names.

    Nothing is changed. The servers that adapters came from are asked whether they were withdrawn since.

    Exit code 0: no errors (with --strict: nothing found but notes). 3: errors (with --strict: or warnings). 12: with
    --verify, bytes do not match their digest. 17: with --strict, something could not be told, and nothing worse.

    \b
    Examples:
      adapt audit
      adapt audit legal-qa@base-7b --offline --notes
      adapt audit --strict --ignore W_UNSIGNED --json
      adapt audit --sarif > audit.sarif
    """
    if sarif and session.out.as_json:
        raise UsageProblem("`--sarif` and `--json` are two forms of the same; give one")
    _refuse_unknown(ignore)
    found = list(_audited(session, adapters, ignore, with_bytes=with_bytes, offline=offline))
    if sarif:
        import adapterhub
        from adapterhub.library.audit import to_sarif

        document: dict[str, Any] = to_sarif(found, root=session.root, version=adapterhub.__version__)
        sys.stdout.write(json_text(document, indent=1) + "\n")
    else:
        session.out.result(lambda: _document(found, strict=strict), lambda: _say(session, found, notes=notes))
    code = _exit_code(found, strict=strict)
    if code:
        raise SystemExit(code)


def _refuse_unknown(codes: Sequence[str]) -> None:
    from adapterhub.library.audit import rule_of

    for code in codes:
        if rule_of(code) is None:
            raise UsageProblem(f"`{code}` is no code of an audit", hint="docs/reference/findings.md lists them")


def _audited(
    session: Session, adapters: Sequence[str], ignore: Sequence[str], *, with_bytes: bool, offline: bool
) -> Iterator[Audited]:
    from adapterhub.library.audit import Surroundings, audit, store_report

    def find_source(origin: Origin) -> Source:
        return session.place_source(origin.place)

    library = session.library
    with session.out.progress("audit", None) as progress:
        around = Surroundings(
            library=library,
            find_source=None if offline else find_source,
            with_bytes=with_bytes,
            progress=progress,
        )
        yield from audit(_subjects(library, adapters, around.installed), around, ignore=ignore)
        broken = None if adapters else store_report(library)
        if broken is not None:
            yield broken


def _subjects(library: Library, adapters: Sequence[str], installed: Sequence[Any]) -> Iterator[Subject]:
    from adapterhub.core.specs import names_folder
    from adapterhub.library.audit import subject_of_build, subject_of_folder

    if not adapters:
        yield from map(subject_of_build, installed)
    for text in adapters:
        if names_folder(text):
            folder = Path(text).expanduser()
            if not folder.is_dir():
                raise UsageProblem(f"there is no folder `{text}`")
            yield subject_of_folder(folder, text)
        else:
            yield from map(subject_of_build, _builds(library, text))


def _builds(library: Library, text: str) -> list[Any]:
    """Every installed build that a spec means, not only the newest."""
    from adapterhub.core.specs import AdapterSpec

    spec = AdapterSpec.parse(text)
    wanted = wanted_from(library, spec, None)
    found = [
        build
        for build in library.builds_named(spec.name, spec.namespace)
        if spec.matches(build.manifest.version)
        and build.manifest.digest.startswith(spec.digest_prefix or "sha256:")
        and (wanted is None or wanted.judge(build.base).verdict.allows_attach)
    ]
    if not found:
        raise library.not_installed(text)
    return found


def _exit_code(found: Sequence[Audited], *, strict: bool) -> int:
    """Bytes that do not match come before other errors, and those before what could not be told."""
    severities = {finding.severity for one in found for finding in one.report.findings}
    if any(finding.code == "E_DIGEST" for one in found for finding in one.report.errors):
        return DigestMismatch.exit_code
    if "error" in severities or (strict and "warning" in severities):
        return EXIT_SOME_FAILED
    return CouldNotTell.exit_code if strict and "unknown" in severities else 0


def _counts(found: Sequence[Audited]) -> dict[str, int]:
    every = [finding.severity for one in found for finding in one.report.findings]
    return {severity: every.count(severity) for severity in ("error", "warning", "unknown", "note")}


def _document(found: Sequence[Audited], *, strict: bool) -> dict[str, Any]:
    return {
        "schema": _SCHEMA,
        "exit_code": _exit_code(found, strict=strict),
        "counts": _counts(found),
        "ignored": sum(one.ignored for one in found),
        "adapters": [one.to_json() for one in found],
    }


def _say(session: Session, found: Sequence[Audited], *, notes: bool) -> None:
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
    counts, ignored = _counts(found), sum(one.ignored for one in found)
    told = (
        f"{len(found)} looked at: {counts['error']} errors, {counts['warning']} warnings, {counts['unknown']} not told"
    )
    out.note(f"{told}, {ignored} ignored" if ignored else told)
