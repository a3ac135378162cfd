"""Builds with a contract, and verdicts on them as a test would give them, without a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterhub.api.steps.contracts.recording import state_result
from adapterhub.api.steps.contracts.testing import subject_of_build
from adapterhub.core.digests import Digest
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.contract.results import Tested, Verdict
from adapterhub.formats.contract.standards import DEFAULT_BOUNDS
from adapterhub.library.contracting import add_contract
from adapterhub.library.library import Library
from adapterhub.library.results import KeptResults
from adapterhub.library.store.catalog import Installed
from adapterhub.trust.signing.keys import KeyFolder
from tests.support.contracts import small_contract


def with_contract(library: Library, build: Installed, **contract: Any) -> Installed:
    """The next version of a build, with a small contract."""
    return add_contract(library, build, small_contract(**contract)).build


def verdict_of(build: Installed, verdict: Verdict = "PASS", **changed: Any) -> Tested:
    """A verdict on a build, on the base that it was made for."""
    contract, base = contract_in(build.folder), build.base.fingerprint
    assert contract is not None
    assert base is not None
    made = Tested(
        name=build.full_name,
        version=build.manifest.version,
        digest=build.manifest.digest,
        weights=contract.recorded.adapter,
        contract=contract.digest,
        verdict=verdict,
        base_weights=base.weights,
        dtype="float32",
        engine="none",
        bounds={"same": DEFAULT_BOUNDS.same},
    )
    return replace(made, **changed)


def measured(library: Library, build: Installed, verdict: Verdict = "PASS", **changed: Any) -> None:
    """As if `adapt test` had given this verdict here, on the base as its files are now."""
    result = verdict_of(build, verdict, **changed)
    record = next(each for each in library.bases.list() if each.fingerprint.weights == build.base.fingerprint.weights)  # type: ignore[union-attr]
    if record.path is not None and record.path.exists():
        result = replace(result, base_state=library.bases.state(record))
    KeptResults(library.store).keep(Digest(result.digest), {"n": str(changed), "verdict": verdict}, result)


def signed(library: Library, build: Installed, key: str, verdict: Verdict = "PASS", **changed: Any) -> Path:
    """As if `adapt test --sign --key` had given this verdict; the file of the result."""
    opened = KeyFolder(library.root).open(key, None)
    path = state_result(library, subject_of_build(build), verdict_of(build, verdict, **changed), opened)
    assert path is not None
    return path
