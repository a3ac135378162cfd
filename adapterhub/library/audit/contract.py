"""Whether an adapter has a behaviour contract that says something, and whether signed results are about its base."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.core.errors import CouldNotTell, shown
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.library.audit._subject import AuditedAdapter, Surroundings
from adapterhub.library.results import results_of
from adapterhub.trust.verify import Finding, Severity


def check(subject: AuditedAdapter, around: Surroundings) -> Iterator[Finding]:
    """A missing or loose contract, and results that are all about other bases. A contract of a newer format is left."""
    if subject.manifest is None:
        return
    try:
        contract = contract_in(subject.folder)
    except CouldNotTell:
        return
    if contract is None:
        message = "has no behaviour contract, so no test can say whether it still does its task"
        yield _finding("A_NO_CONTRACT", "note", message, hint="`adapt contract record` writes one")
        return
    if loose := contract.bounds.loose:
        message = f"its contract proves nothing: {loose}"
        yield _finding("A_CONTRACT_LOOSE", "warning", message, hint="ask its author for a contract with tighter bounds")
    if subject.build is not None:
        yield from _results(subject, around)


def _results(subject: AuditedAdapter, around: Surroundings) -> Iterator[Finding]:
    assert subject.build is not None  # only installed builds have results
    declared = subject.base.fingerprint
    found, _ = results_of(around.library, subject.build.manifest.digest, subject.build.full_name)
    trusted = [one for one in found if one.standing == "trusted"]
    if not trusted or declared is None or any(one.result.base == declared.weights for one in trusted):
        return
    one = trusted[0]
    yield _finding(
        "A_RESULT_OTHER_BASE",
        "warning",
        f"the result by {shown(one.by)} is about the base {one.result.base[:19]}…, not about the one of this adapter",
        hint="`adapt test` tests it on its own base",
    )


def _finding(code: str, severity: Severity, message: str, *, hint: str = "") -> Finding:
    return Finding(code=code, severity=severity, where=CONTRACT_FILE, message=message, hint=hint)
