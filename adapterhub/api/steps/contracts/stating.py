"""Sign the results of tests, and read those that testers signed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import CouldNotTell, Malformed, SignatureRefused, UsageProblem, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.library.results import (
    KeptResults,
    ResultFiles,
    keeps_results,
    results_at,
    results_of,
    take_results,
)
from adapterhub.trust.signing.results import SignedResult, read_result, sign_result
from adapterhub.trust.signing.trust import Trust, TrustedKey, clock

if TYPE_CHECKING:
    from adapterhub.api.steps.contracts.subjects import ContractSubject
    from adapterhub.formats.contract.results import Tested
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.session import Session
    from adapterhub.trust.signing.keys import SigningKey


_DAY_S: Final = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedResults(Documented, keys="name version digest results refusals"):
    """The signed results on one build, the latest first.

    `bases` are the names of known bases by the digest of their weights.
    """

    name: str
    version: str
    digest: Digest
    results: tuple[SignedResult, ...]
    refusals: Annotated[tuple[str, ...], "why other files do not count"]
    bases: Mapping[str, str]


def ensure_can_be_stated(subject: ContractSubject) -> None:
    """Refuse to sign a result before any model is loaded for it.

    Raises:
        UsageProblem: the folder has no manifest, so there are no bytes that a statement could be about.
    """
    if subject.manifest is None:
        raise UsageProblem(
            f"`{shown(subject.label, 200)}` has no `adapterhub.json`, so a signed result has nothing to be about",
            hint="`adapt add` makes a build of the folder",
        )


def state_result(library: Library, subject: ContractSubject, result: Tested, key: SigningKey) -> Path | None:
    """Sign a result and write it beside the build; None where the verdict is no result.

    Its `sequence` is one above those of the same key on the same build, so it supersedes them.
    """
    from adapterhub.formats.contract.results import statement  # a push reads results, and needs no XML

    assert subject.manifest is not None  # see `ensure_can_be_stated`
    manifest = subject.manifest.digest
    files = ResultFiles.of_library(library.store, manifest)
    if subject.build is None:
        files = ResultFiles.beside(subject.folder.absolute(), manifest)
    mine = Trust(keys=(TrustedKey(name="mine", key=key.public),))
    last = 0
    for raw in files.read():
        try:
            one = read_result(raw, mine, full_name=subject.name, manifest=manifest, now=clock())
        except SignatureRefused:
            continue
        last = max(last, one.result.sequence if one.signer else 0)
    made = statement(result, sequence=last + 1)
    return None if made is None else files.add(sign_result(made, key))


def sign_results(library: Library, build: Installed, results: Sequence[Tested], signer: SigningKey) -> None:
    """Sign the verdicts that a test before a push gave, so that they go along."""
    from adapterhub.api.steps.contracts.subjects import subject_of_build

    for one in results:
        if one.digest == build.manifest.digest:
            state_result(library, subject_of_build(build), one, signer)


def fetch_results(session: Session, library: Library, subject: ContractSubject) -> int:
    """Take the signed results on an installed build that the servers of its namespace have; returns how many are new.

    Raises:
        UsageProblem: it is a folder, or has no namespace.
        RemoteUnreachable: a server does not answer.
    """
    build = subject.build
    if build is None or build.namespace is None:
        raise UsageProblem(
            f"`{shown(subject.label, 200)}` has no namespace, so no server has results on it",
            hint="leave out `--fetch`",
        )
    spec, count = AdapterSpec.parse(f"{build.full_name}=={build.manifest.version}"), 0
    for source in session.sources_of(spec, None, token=None):
        for release in source.releases(spec) if keeps_results(source) else ():
            if release.digest == build.manifest.digest:
                count += take_results(library, results_at(source, release), release.digest, build.full_name)
    return count


def signed_results(library: Library, subject: ContractSubject) -> SignedResults:
    """The signed results that the library has on an installed build, each verified now.

    Raises:
        UsageProblem: it is a folder.
    """
    build = subject.build
    if build is None:
        raise UsageProblem("signed results are shown for installed builds", hint="`adapt install` brings them along")
    found, refusals = results_of(library, build.manifest.digest, build.full_name)
    return SignedResults(
        name=build.full_name,
        version=build.manifest.version,
        digest=build.manifest.digest,
        results=tuple(found),
        refusals=tuple(refusals),
        bases={one.fingerprint.weights: one.alias or "" for one in library.bases.list()},
    )


def contract_line(library: Library, build: Installed) -> str:
    """Whether a build has a contract, and when it was last tested by it on this machine."""
    if build.manifest.file(CONTRACT_FILE) is None:
        return "no contract"
    from adapterhub.api.steps.contracts.subjects import subject_of_build

    try:
        contract = subject_of_build(build).contract()
    except CouldNotTell:
        return "contract: of a newer format, which this version cannot test"
    if contract is None:
        return "no contract"
    goldens = len(contract.goldens)
    what = f"contract: {goldens} golden{'s' * (goldens != 1)}"
    found = KeptResults(library.store).latest(build.manifest.digest, contract.digest)
    if found is None:
        return f"{what}, not tested here"
    result, days = found.result, int((time.time() - found.time) // _DAY_S)
    when = "tested today" if days <= 0 else f"not tested for {days} day{'s' * (days != 1)}"
    when += ", before its base changed" * _has_other_base(library, result)
    where = f" on {shown(result.base, 200)}" if result.base else ""
    return f"{what}, {when}: {result.verdict}{where}"


def _has_other_base(library: Library, result: Tested) -> bool:
    """Whether the files of the base here are not those that were asked."""
    for record in library.bases.list():
        if record.fingerprint.weights == result.base_weights and record.path is not None and record.path.exists():
            try:
                return library.bases.state(record) != result.base_state
            except (Malformed, CouldNotTell):
                return True
    return False
