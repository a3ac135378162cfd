"""The policy `tests` of a project: which locked builds passed their contract on the base of the project.

A verdict counts if it is about these very bytes, their own contract, the base of the project and the rules that it
names. It was measured in this library, or a tester whom the user trusts signed it. Nothing is run here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterhub.core.dates import parse_newest_allowed, time_text
from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError, CouldNotTell, NotAllowed, problem_list, shown
from adapterhub.formats.contract.bounds import LOOSEST, looser_than
from adapterhub.formats.contract.contract import CONTRACT_FILE, Contract
from adapterhub.formats.contract.reading import contract_in
from adapterhub.formats.contract.rules import Rules, read_rules
from adapterhub.library.library import Library
from adapterhub.library.results import KeptResults, keeps_results, results_at, results_of, take_results
from adapterhub.library.store.catalog import Installed
from adapterhub.projects.builds import exact_spec, label_of, locked_build
from adapterhub.projects.sync._bringing import Places
from adapterhub.projects.values import Lock, Locked, Policy
from adapterhub.trust.signing.results import SignedResult

LOCAL: Final = "local"
_REASONS_SHOWN: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a result must be about to count."""

    policy: Policy
    contract: Contract
    base: Digest
    rules: Digest | None
    now: float


def ensure_tested(
    library: Library, project: Path, lock: Lock, entries: Iterable[Locked], places: Places
) -> tuple[str, ...]:
    """Apply the policy `tests` of a lock to builds that are in the library; returns warnings under `warn`.

    Where no result here suffices, the places of a build are searched for signed ones.

    Raises:
        NotAllowed: under `require`; names each build that may not be used, and why.
        NotFound, Malformed: the rules of the project cannot be read.
    """
    policy = lock.policy
    if not policy.looks_at_tests:
        return ()
    rules = read_rules(project / policy.tests_never) if policy.tests_never is not None else None
    problems = []
    for entry in entries:
        build = locked_build(library, entry)
        reason = None if build is None else _problem(library, build, entry, lock, rules, places)
        if reason is not None:
            problems.append(f"`{entry.key}` {label_of(entry)}: {reason}")
    if not problems:
        return ()
    if policy.tests == "warn":
        return tuple(problems)
    title = 'the policy `tests = "require"` refuses what did not pass its contract; no folder was changed'
    hint = "`adapt test NAME` tests a build here; `adapt key trust NAME FILE` lets the signed results of a tester count"
    raise NotAllowed(problem_list(title, problems), hint=hint)


def _problem(
    library: Library, build: Installed, entry: Locked, lock: Lock, rules: Rules | None, places: Places
) -> str | None:
    """Why a build does not meet the policy; None if it does."""
    try:
        contract = contract_in(build.folder)
    except CouldNotTell as error:
        return error.message
    listed = build.manifest.file(CONTRACT_FILE)
    if contract is None or listed is None:
        return "has no contract"
    if contract.digest != listed.sha256:
        return f"its contract is not the one of its manifest; `adapt verify {exact_spec(entry)}` says more"
    if contract.bounds.is_loose:
        return f"its contract is too loose: {_loose(contract)}"
    declared = build.base.fingerprint
    base = (lock.base.weights if lock.base else None) or (declared.weights if declared else None)
    if base is None:
        return "its base is not known, so no result can be about it"
    asked = _Asked(
        policy=lock.policy,
        contract=contract,
        base=base,
        rules=rules.digest if rules is not None and rules.bind(contract) else None,
        now=time.time(),
    )
    if _passed_here(library, build, asked):
        return None
    reasons = _against_signed(library, build, asked)
    if reasons is not None and _fetch(library, build, entry, places):
        reasons = _against_signed(library, build, asked)
    if reasons is None:
        return None
    what = "has no PASS on this base" + (" by the rules of the project" if asked.rules else "")
    what += " within `tests-bounds`" if asked.policy.tests_bounds else ""
    return "; ".join([what, *reasons[:_REASONS_SHOWN]])


def _passed_here(library: Library, build: Installed, asked: _Asked) -> bool:
    if asked.policy.tests_by and LOCAL not in asked.policy.tests_by:
        return False
    latest: dict[object, str] = {}  # a newer engine may say otherwise
    for one in KeptResults(library.store).all(build.manifest.digest):
        about = (one.contract, one.base_weights, one.rules or None)
        is_tight = not looser_than(one.bounds, asked.policy.bounds)
        if is_tight and about == (asked.contract.digest, asked.base, asked.rules):
            precision = (one.dtype, one.load_in, *sorted(one.bounds.items()))
            latest[precision] = one.verdict
    return "PASS" in latest.values()


def _against_signed(library: Library, build: Installed, asked: _Asked) -> list[str] | None:
    """Why no signed result suffices, one reason each; None if one does."""
    found, refusals = results_of(library, build.manifest.digest, build.full_name)
    reasons = []
    for one in found:
        reason = _against(one, asked)
        if reason is None:
            return None
        reasons.append(f"the result by {shown(one.by)} {reason}")
    return reasons + [f"a result does not count: {refusal}" for refusal in refusals]


def _against(one: SignedResult, asked: _Asked) -> str | None:
    """Why a signed result does not suffice; None if it does."""
    result, policy = one.result, asked.policy
    if one.standing != "trusted":
        return "does not count: " + {
            "unknown_key": "the key is not trusted",
            "expired": "the key has ended",
            "out_of_scope": "the key is not trusted for this adapter",
        }.get(one.standing, one.standing)
    if policy.tests_by and one.signer not in policy.tests_by:
        return "does not count: `tests-by` does not name the key"
    if result.contract != asked.contract.digest:
        return "is about another contract"
    if result.base != asked.base:
        return f"is about another base, {result.base[:19]}…"
    if result.rules != asked.rules:
        return "was measured by other rules than `tests-never`"
    if loose := looser_than(result.bounds, policy.bounds):
        return f"was measured with a looser bound than `tests-bounds`: `{loose[0]}`"
    if policy.tests_max_age is not None:
        oldest = parse_newest_allowed(policy.tests_max_age).moment(asked.now)
        if result.time < oldest:
            return f"is of {time_text(result.time)}, and `tests-max-age` is {policy.tests_max_age}"
    return None if result.verdict == "PASS" else "says CHANGED"


def _fetch(library: Library, build: Installed, entry: Locked, places: Places) -> bool:
    """Look for signed results where the build may lie; whether any came. A place that fails is passed over."""
    count = 0
    try:
        for source in places(entry):
            if source is library or not keeps_results(source):
                continue
            for release in source.releases(exact_spec(entry)):
                if release.digest == entry.digest:
                    count += take_results(library, results_at(source, release), entry.digest, build.full_name)
    except AdapterHubError:
        return count > 0
    return count > 0


def _loose(contract: Contract) -> str:
    values = [(name, getattr(contract.bounds, name), least) for name, least in LOOSEST.items()]
    return ", ".join(
        f"`{name}` {value:g}, expected at least {least:g}" for name, value, least in values if value < least
    )
