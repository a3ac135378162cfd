"""Whether an adapter has a behaviour contract that says something, and whether signed results are about its base."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.core.errors import CouldNotTell, shown
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.library.audit._subject import AuditedAdapter, Surroundings
from adapterhub.library.results import results_of
from adapterhub.trust.findings import Finding


def check(subject: AuditedAdapter, around: Surroundings) -> Iterator[Finding]:
    """Yield a missing or loose contract, and results that are all about other bases.

    A contract of a newer format is left.
    """
    if subject.manifest is None:
        return
    try:
        contract = contract_in(subject.folder)
    except CouldNotTell:
        return
    if contract is None:
        message = "has no behaviour contract, so no test can say whether it still does its task"
        yield Finding("A_NO_CONTRACT", CONTRACT_FILE, message, hint="`adapt contract record` writes one")
        return
    if loose := contract.bounds.loose:
        message = f"its contract proves nothing: {loose}"
        yield Finding(
            "A_CONTRACT_LOOSE", CONTRACT_FILE, message, hint="ask its author for a contract with tighter bounds"
        )
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
    yield Finding(
        "A_RESULT_OTHER_BASE",
        CONTRACT_FILE,
        f"the result by {shown(one.by)} is about the base {one.result.base[:19]}…, not about the one of this adapter",
        hint="`adapt test` tests it on its own base",
    )
