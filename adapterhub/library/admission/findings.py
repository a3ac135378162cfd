"""What a signature says of a build that is here, as a finding beside those of the checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from adapterhub.core.errors import SignatureRefused
from adapterhub.formats.manifest import SIGNATURE_FILE
from adapterhub.formats.release import Provenance, Release
from adapterhub.library.admission.signatures import SignatureAdmission, refuses
from adapterhub.trust.signing.appraisal import Appraisal, unsigned_beside
from adapterhub.trust.signing.trust import Policy
from adapterhub.trust.verify import Finding, Severity
from adapterhub.trust.verify.report import some

_NOT_SIGNED: Final = "look into them, and delete them or copy the adapter's own files out"


def signature_findings(
    gate: SignatureAdmission, release: Release, read: Callable[[], Provenance], place: str
) -> list[Finding]:
    """What the signature is worth, and what lies beside it unsigned.

    An error for a false signature or one that the policy refuses, a note for one that is good. `read` gives the
    signature. None is a note, too, unless the policy requires one. What was seen before is not asked: that is about
    what may come in. Files that git or a download left there are warned of; a policy that requires signatures makes an
    error of them.
    """
    try:
        provenance = read()
        judgement, policy = gate.judge(release, provenance, place)
    except SignatureRefused as error:
        return [_finding("E_SIGNATURE", "error", error.clause, hint=error.hint)]
    found = [_of_signature(judgement, policy)]
    beside = unsigned_beside(provenance)
    if beside and policy != "off":
        warning = _finding("W_NOT_SIGNED", "warning", f"does not cover {some(beside, len(beside))}", hint=_NOT_SIGNED)
        found.append(as_error(warning) if policy == "require" else warning)
    return found


def as_error(finding: Finding) -> Finding:
    """`W_NOT_SIGNED` as the error that `--strict` and required signatures make of it; any other finding as it was."""
    if finding.code != "W_NOT_SIGNED":
        return finding
    return replace(finding, code="E_NOT_SIGNED", severity="error")


def _of_signature(judgement: Appraisal, policy: Policy | None) -> Finding:
    if refuses(policy, judgement.standing):
        return _finding("E_SIGNATURE", "error", judgement.message, hint="`adapt key policy` shows what is asked")
    if judgement.standing in ("trusted", "unsigned") or policy == "off":
        return _finding("N_SIGNATURE", "note", judgement.message)
    return _finding("W_SIGNATURE", "warning", judgement.message)


def _finding(code: str, severity: Severity, message: str, *, hint: str = "") -> Finding:
    return Finding(code=code, severity=severity, where=SIGNATURE_FILE, message=message, hint=hint)
