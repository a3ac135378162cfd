"""The worth of a local build's signature, as findings that join those of `verify`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from adapterhub.core.errors import SignatureRefused
from adapterhub.formats.manifest import SIGNATURE_FILE
from adapterhub.formats.release import Provenance, Release
from adapterhub.library.admission.admission import Admission
from adapterhub.library.admission.decision import Decision
from adapterhub.trust.signing.appraisal import unsigned_beside
from adapterhub.trust.verify import Finding, Severity
from adapterhub.trust.verify.report import some

_NOT_SIGNED: Final = "inspect them, then delete them or copy the adapter's own files to another folder"


def signature_findings(
    admission: Admission, release: Release, read: Callable[[], Provenance], place: str
) -> list[Finding]:
    """Findings about the signature that `read` returns, and about unsigned files beside it.

    A false signature and one that the policy refuses are errors; a good one is a note. A missing signature is a note,
    unless the policy requires one. First use does not count: it concerns only builds that arrive. Files that git or a
    download left in the folder give a warning, or an error where the policy requires signatures.
    """
    try:
        provenance = read()
        decision = admission.decide(release, provenance, place)
    except SignatureRefused as error:
        return [_finding("E_SIGNATURE", "error", error.clause, hint=error.hint)]
    found = [_of_signature(decision)]
    beside = unsigned_beside(provenance)
    if beside and decision.policy != "off":
        warning = _finding("W_NOT_SIGNED", "warning", f"does not cover {some(beside, len(beside))}", hint=_NOT_SIGNED)
        found.append(as_error(warning) if decision.policy == "require" else warning)
    return found


def as_error(finding: Finding) -> Finding:
    """`W_NOT_SIGNED` as the error that `--strict` and required signatures make of it; other findings unchanged."""
    if finding.code != "W_NOT_SIGNED":
        return finding
    return replace(finding, code="E_NOT_SIGNED", severity="error")


def _of_signature(decision: Decision) -> Finding:
    standing, message = decision.appraisal.standing, decision.appraisal.message
    if decision.is_refused:
        return _finding("E_SIGNATURE", "error", message, hint="`adapt key policy` shows the policies in force")
    if standing in ("trusted", "unsigned") or decision.policy == "off":
        return _finding("N_SIGNATURE", "note", message)
    return _finding("W_SIGNATURE", "warning", message)


def _finding(code: str, severity: Severity, message: str, *, hint: str = "") -> Finding:
    return Finding(code=code, severity=severity, where=SIGNATURE_FILE, message=message, hint=hint)
