"""Whether a build has a PASS that counts: about these very bytes, this contract, this base and these rules.

It was measured in this library, or a tester whom the user trusts signed it. Nothing is run here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from adapterhub.core.dates import parse_newest_allowed, time_text
from adapterhub.core.digests import Digest, canonical_json, hex_of
from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import BaseMismatch, CouldNotTell, Malformed, NotAllowed, shown
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.reader import Rules, contract_in
from adapterhub.formats.contract.standards import Standards, looser_than
from adapterhub.formats.derived.record import DerivedRecord
from adapterhub.formats.manifest import CONFIG_FILE, CONTRACT_FILE, WEIGHTS_FILE, Manifest
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.library import Library
from adapterhub.library.merged import binding_lines, is_bare_merge
from adapterhub.library.results import KeptResults, results_of
from adapterhub.library.store.blobs import Store
from adapterhub.library.store.catalog import Installed
from adapterhub.trust.signing.results import SignedResult
from adapterhub.trust.verify import open_files

LOCAL: Final = "local"
_REASONS_SHOWN: Final = 3
_CHANGED: Final = "says CHANGED"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedBase:
    """The base that a result must be about; `state` is what its files are now, None if they are not here."""

    weights: Digest
    state: Digest | None = None

    @classmethod
    def of(cls, library: Library, record: BaseRecord) -> AskedBase:
        """Return the base of a record, by its current files.

        Raises:
            BaseMismatch: they hold other weights than the registered ones.
            Malformed, CouldNotTell: they cannot be read.
        """
        if record.path is None or not record.path.exists():
            return cls(weights=record.fingerprint.weights)
        now = library.bases.current(record)
        return cls(weights=now.fingerprint.weights, state=library.bases.state(now))


_Precision = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The subject that a result must have to count."""

    standards: Standards
    contract: Contract
    base: AskedBase
    rules: Rules | None = None

    @property
    def bounds(self) -> Mapping[str, float]:
        """The bounds that decide: those of the contract, or tighter ones that are asked."""
        return asdict(self.contract.bounds.no_looser_than(self.standards.bounds))

    @property
    def rules_digest(self) -> Digest | None:
        """The rules that the result must name, if they say anything of such an adapter."""
        return self.rules.digest if self.rules is not None and self.rules.bind(self.contract) else None


def why_not_passed(
    library: Library,
    build: Installed,
    standards: Standards,
    *,
    base: Callable[[], AskedBase | None],
    rules: Rules | None = None,
    fetch: Callable[[], bool] = lambda: False,
    is_merge: bool = False,
) -> str | None:
    """Return why a build has no PASS that counts on `base`, by its own contract; None if it has one.

    `base` reads the base. `fetch` looks for more signed results if no result here suffices, and returns whether it
    found any. One that `is_merge` and has no contract of its own needs a PASS for the lines of its parents' contracts
    that bind it.
    """
    is_bare = is_merge and is_bare_merge(build)
    contract = None if is_bare else _usable_contract(build)
    if isinstance(contract, str):
        return contract
    try:
        asked_base = base()
    except (BaseMismatch, Malformed, CouldNotTell) as error:
        return error.message.splitlines()[0]
    if asked_base is None:
        return "its base is not known, so no result can be about it"
    if contract is None:
        return _merge_problem(library, build, standards, base=asked_base, rules=rules)
    asked = _Asked(standards=standards, contract=contract, base=asked_base, rules=rules)
    passed, refuted = _measured_here(library, build, asked)
    if passed:
        return None
    reasons = _against_signed(library, build, asked, refuted)
    if reasons is not None and fetch():
        reasons = _against_signed(library, build, asked, refuted)
    if reasons is None:
        return None
    what = "has no PASS on this base" + (" by the rules of the project" if asked.rules_digest else "")
    what += " within `tests-bounds`" if standards.bounds else ""
    return "; ".join([what, *reasons[:_REASONS_SHOWN]])


def _usable_contract(build: Installed) -> Contract | str:
    """Return the contract of a build, or why none can be counted on."""
    name = f"{build.full_name}=={build.manifest.version}"
    try:
        contract = contract_in(build.folder)
    except CouldNotTell as error:
        return error.message
    listed = build.manifest.file(CONTRACT_FILE)
    if contract is None or listed is None:
        return "has no contract"
    if contract.digest != listed.sha256:
        return f"its contract is not the one of its manifest; `adapt verify {name}` says more"
    return f"its contract is too loose: {loose}" if (loose := contract.bounds.loose) else contract


def _merge_problem(
    library: Library, merge: Installed, standards: Standards, *, base: AskedBase, rules: Rules | None
) -> str | None:
    """Return why a merge has no PASS that counts; None if it has one for each parent that binds it."""
    try:
        bound = binding_lines(library, merge, rules)
    except CouldNotTell as error:
        return error.message
    if not bound:
        return (
            "no line binds it: a merge needs a `never` or `leave_alone` line in a parent's contract, or the rules of "
            "the policy `tests-never`"
        )
    asked = [(one, _Asked(standards=standards, contract=one.contract, base=base, rules=rules)) for one in bound]
    missing = [one.parent for one, about in asked if not _measured_here(library, merge, about)[0]]
    if not missing:
        return None
    by = " by the rules of the project" if any(about.rules_digest for _, about in asked) else ""
    return f"the merge has no PASS on this base{by} for the lines that bind it, of {', '.join(missing)}"


def _measured_here(library: Library, build: Installed, asked: _Asked) -> tuple[set[_Precision], set[_Precision]]:
    """Return the precisions in which the build passes by results in this library, and those in which it cannot.

    A later result may differ, as with a newer engine; but a PASS does not outweigh a CHANGED of a stronger check, which
    also measured the plain base. A CHANGED within bounds that are tighter than required does not count.
    """
    passed: set[_Precision] = set()
    refuted: set[_Precision] = set()
    if asked.standards.by and LOCAL not in asked.standards.by:
        return passed, refuted
    for kept in KeptResults(library.store).all(build.manifest.digest):
        one = kept.result
        about = (one.contract, one.base_weights, one.rules or None)
        is_now = asked.base.state is None or one.base_state == asked.base.state
        if not is_now or about != (asked.contract.digest, asked.base.weights, asked.rules_digest):
            continue
        precision = (one.dtype, one.load_in)
        if one.verdict == "CHANGED":
            if one.base_alone:
                refuted.add(precision)
            if one.base_alone or not looser_than(asked.bounds, one.bounds):
                passed.discard(precision)
        elif not looser_than(one.bounds, asked.standards.bounds) and (one.base_alone or precision not in refuted):
            refuted.discard(precision)
            passed.add(precision)
    return passed, refuted


def _against_signed(library: Library, build: Installed, asked: _Asked, refuted: set[_Precision]) -> list[str] | None:
    """Return why no signed result suffices, one reason each; None if one does."""
    found, refusals = results_of(library, build.manifest.digest, build.full_name)
    reasons = {one.digest: _against(one, asked) for one in found}
    changed = [one.result for one in found if reasons[one.digest] == _CHANGED]
    for one in found:
        if reasons[one.digest] is not None:
            continue
        is_refuted = not one.result.base_alone and (one.result.dtype, one.result.load_in) in refuted
        if not is_refuted and not any(map(one.result.is_outweighed_by, changed)):
            return None
        reasons[one.digest] = "did not measure the base alone, and one that did says CHANGED"
    listed = [f"the result by {shown(one.by)} {reasons[one.digest]}" for one in found]
    return listed + [f"a result does not count: {refusal}" for refusal in refusals]


def _against(one: SignedResult, asked: _Asked) -> str | None:
    """Return why a signed result does not suffice; None if it does."""
    result, standards = one.result, asked.standards
    if one.standing != "trusted":
        return "does not count: " + {
            "unknown_key": "the key is not trusted",
            "expired": "the key has ended",
            "out_of_scope": "the key is not trusted for this adapter",
        }.get(one.standing, one.standing)
    if standards.by and one.signer not in standards.by:
        return "does not count: `tests-by` does not name the key"
    if result.contract != asked.contract.digest:
        return "is about another contract"
    if result.base != asked.base.weights:
        return f"is about another base, {result.base[:19]}…"
    if result.rules != asked.rules_digest:
        return "was measured by other rules than `tests-never`"
    if loose := looser_than(result.bounds, standards.bounds):
        return f"was measured with a looser bound than `tests-bounds`: `{loose[0]}`"
    if standards.max_age is not None:
        oldest = parse_newest_allowed(standards.max_age).moment(time.time())
        if result.time < oldest:
            return f"is of {time_text(result.time)}, and `tests-max-age` is {standards.max_age}"
    return None if result.verdict == "PASS" else _CHANGED


_LIMIT_BYTES: Final = 16 << 20


def derived_record(store: Store, folder: Path, manifest: Manifest) -> DerivedRecord:
    """Return the record of a build in `folder`; computing one takes a few seconds and numpy.

    Raises:
        DigestMismatch: a file does not have the digest in the manifest.
        MalformedConfig, MalformedTensorFile: a file cannot be read.
    """
    weights, config = manifest.digests[WEIGHTS_FILE], manifest.digests[CONFIG_FILE]
    path = store.root / "cache" / "derived" / f"{hex_of(weights)}-{hex_of(config)[:12]}.json"
    with contextlib.suppress(OSError, ValueError):  # absent, damaged, or of an older schema: it is made again
        return DerivedRecord.from_json(read_json(path, _LIMIT_BYTES))
    from adapterhub.formats.derived.deriving import derive

    subject = open_files(folder, manifest.digests)
    with contextlib.closing(subject.held) as held:
        record = derive(subject.config, subject.weights, held.read, weights_digest=weights, config_digest=config)
    with contextlib.suppress(NotAllowed):  # a library that cannot be written keeps none
        store.write(path, canonical_json(record.to_json()), sync=False)
    return record
