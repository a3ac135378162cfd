"""What a signature says of a build that is here, as a finding beside those of the checks."""

from __future__ import annotations

from collections.abc import Callable

from adapterhub.errors import SignatureRefused
from adapterhub.manifest import SIGNATURE_FILE
from adapterhub.signing.gate import Gate, refuses
from adapterhub.transfer import Provenance, Release
from adapterhub.verify import Finding, Severity


def signature_finding(gate: Gate, release: Release, read: Callable[[], Provenance], place: str) -> Finding:
    """One finding: an error for a false signature or one that the policy refuses, a note for one that is good.

    `read` gives the signature. None is a note, too, unless the policy requires one. What was seen before is not asked:
    that is about what may come in.
    """
    try:
        judgement, policy = gate.judge(release, read(), place)
    except SignatureRefused as error:
        return _finding("E_SIGNATURE", "error", error.clause, hint=error.hint)
    if refuses(policy, judgement.standing):
        return _finding("E_SIGNATURE", "error", judgement.message, hint="`adapt key policy` shows what is asked")
    if judgement.standing in ("trusted", "unsigned") or policy == "off":
        return _finding("N_SIGNATURE", "note", judgement.message)
    return _finding("W_SIGNATURE", "warning", judgement.message)


def _finding(code: str, severity: Severity, message: str, *, hint: str = "") -> Finding:
    return Finding(code=code, severity=severity, where=SIGNATURE_FILE, message=message, hint=hint)
