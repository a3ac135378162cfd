"""Record a contract: into a new build of the library, into a folder, or beside a release that is out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from adapterhub.api.steps.contracts.testing import ContractSubject, engine_name
from adapterhub.core.arguments import StrPath, path_of
from adapterhub.core.digests import Digest, canonical_json, digest_of
from adapterhub.core.disk.files import output_place, write_durably
from adapterhub.core.errors import (
    CouldNotTell,
    Malformed,
    SignatureRefused,
    UsageProblem,
    shown,
)
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.contract.contract import IMAGE, Contract, Recorded
from adapterhub.formats.contract.reader import Plan, read_plan
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.library.contracting import add_contract
from adapterhub.library.results import (
    Kept,
    KeptResults,
    ResultFiles,
    keeps_results,
    results_at,
    results_of,
    take_results,
)
from adapterhub.library.store.catalog import Installed
from adapterhub.trust.signing.results import SignedResult, read_result, sign_result
from adapterhub.trust.signing.trust import Trust, TrustedKey, clock

if TYPE_CHECKING:
    from adapterhub.formats.contract.results import Tested
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library
    from adapterhub.projects.session import Session
    from adapterhub.trust.signing.keys import SigningKey


@dataclass(frozen=True, slots=True)
class LeftOutInput(Documented):
    """An input whose answer was not recorded."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedContract(
    Documented,
    keys="name version contract=contract.digest goldens left_out form=contract.prompt.form path"
    " digest=build.manifest.digest created warnings",
):
    """A contract that was recorded.

    `path` is where it went: into `build`, the new one, or into a folder.
    """

    name: str
    version: str
    contract: Contract
    left_out: tuple[LeftOutInput, ...]
    warnings: tuple[str, ...]
    path: Path
    build: Annotated[Installed | None, "the new build"] = None
    created: Annotated[bool, "false: the build had this contract already"] = True

    @property
    def goldens(self) -> int:
        """How many answers it holds."""
        return len(self.contract.goldens)


def plan_from(examples: StrPath | None, tests: StrPath | None) -> Plan:
    """Return the inputs of one of the two files.

    Raises:
        UsageProblem: not exactly one is given.
        NotFound, Malformed: it cannot be read.
    """
    if (examples is None) == (tests is None):
        raise UsageProblem(
            "recording needs inputs: `--examples FILE` or `--tests tests.toml`, one of the two",
            hint='examples are JSON Lines such as {"prompt": "…"}, with the "completion" that you want if you know it',
        )
    if tests is not None:
        return read_plan(path_of(tests))
    from adapterhub.inference.contracts.answers import plan_of_examples

    assert examples is not None  # one of the two
    return plan_of_examples(path_of(examples))


def put_contract(
    library: Library, subject: ContractSubject, contract: Contract, into: Path | None
) -> tuple[Path, Installed | None, bool]:
    """Write the contract into the folder `into`, or into a new build, or into the folder that the adapter is.

    Returns where, the new build if there is one, and whether anything is new.
    """
    if into is not None:
        name = subject.name.rpartition("/")[2] or "adapter"
        target = output_place(into / f"{name}-{subject.version or '0'}.tests.jsonl")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_durably(target, contract.to_bytes())
        return target, None, True
    if subject.build is None:
        target = output_place(subject.folder / CONTRACT_FILE)
        write_durably(target, contract.to_bytes())
        return target, None, True
    added = add_contract(library, subject.build, contract)
    return added.build.folder / CONTRACT_FILE, added.build, added.created


def where_recorded(subject: ContractSubject, record: BaseRecord, model: Any, tokenizer: Any) -> Recorded:
    """Describe where a contract is recorded; without a `tokenizer`, `model` is a pipeline that has its own."""
    kind = IMAGE if tokenizer is None else ""
    programs = dict(part.split(" ", 1) for part in engine_name(kind).split(", "))
    engine = "diffusers" if kind == IMAGE else "transformers"
    if kind == IMAGE:
        vocabulary, tokens = model.vocabulary, model.tokenizers_digest
    else:
        vocabulary, tokens = model.get_input_embeddings().weight.shape[0], record.hints.tokenizer_sha256
    return Recorded(
        base=record.fingerprint.weights,
        base_dtype=str(model.dtype).removeprefix("torch."),
        adapter=subject.weights(),
        tokenizer_sha256=tokens or digest_of(canonical_json(sorted(tokenizer.get_vocab().items(), key=lambda i: i[1]))),
        vocabulary=vocabulary,
        engine=f"{engine} {programs[engine]}",
        torch=programs["torch"],
        peft=programs["peft"],
    )


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
    """Sign a result and write it beside the build; None if the verdict is not a result.

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
    """Sign the verdicts of a test before a push, so that the push includes them."""
    from adapterhub.api.steps.contracts.testing import subject_of_build

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
    """Return the signed results that the library has on an installed build, each verified now.

    Raises:
        UsageProblem: it is a folder.
    """
    build = subject.build
    if build is None:
        raise UsageProblem("signed results are shown for installed builds", hint="`adapt install` copies them as well")
    found, refusals = results_of(library, build.manifest.digest, build.full_name)
    return SignedResults(
        name=build.full_name,
        version=build.manifest.version,
        digest=build.manifest.digest,
        results=tuple(found),
        refusals=tuple(refusals),
        bases={one.fingerprint.weights: one.alias or "" for one in library.bases.list()},
    )


MOST_BASES_SHOWN: Final = 3
"""Further bases in a line on a contract, with the latest result on each."""


def contract_line(library: Library, build: Installed, weights: str = "") -> str:
    """Describe a build's contract, and its latest result on each base that it was tested on here.

    The base with these `weights` comes first, by default that of the build.
    """
    if build.manifest.file(CONTRACT_FILE) is None:
        return "no contract"
    from adapterhub.api.steps.contracts.testing import subject_of_build

    try:
        contract = subject_of_build(build).contract()
    except CouldNotTell:
        return "contract: of a newer format, which this version cannot test"
    if contract is None:
        return "no contract"
    goldens = len(contract.goldens)
    what = f"contract: {goldens} golden{'s' * (goldens != 1)}"
    own = build.base.fingerprint.weights if build.base.fingerprint else ""
    found = KeptResults(library.store).latest(build.manifest.digest, contract.digest, weights or own)
    if not found:
        return f"{what}, not tested here"
    (kept, *others), now = found, time.time()
    result, days = kept.result, int((now - kept.time) // _DAY_S)
    when = "tested today" if days <= 0 else f"not tested for {days} day{'s' * (days != 1)}"
    when += ", before its base changed" * _has_other_base(library, result)
    first = f"{what}, {when}: {', '.join(filter(None, (_verdict_on_base(result), result.drifted)))}"
    more = [_briefly(one, now) for one in others[:MOST_BASES_SHOWN]]
    rest = len(others) - len(more)
    return "; ".join([first, *more, *([f"{rest} more base{'s' * (rest != 1)}"] if rest else [])])


def _briefly(kept: Kept, now: float) -> str:
    """Return a result in a few words."""
    days, result = int((now - kept.time) // _DAY_S), kept.result
    drift = "" if result.drift is None else f", drift {result.drift:.3f}"
    ago = f", {days} day{'s' * (days != 1)} ago" if days > 0 else ""
    return f"{_verdict_on_base(result)}{drift}{ago}"


def _verdict_on_base(result: Tested) -> str:
    return f"{result.verdict} on {shown(result.base, 200)}" if result.base else result.verdict


def _has_other_base(library: Library, result: Tested) -> bool:
    """Return whether the files of the base here are not those that were asked."""
    for record in library.bases.list():
        if record.fingerprint.weights == result.base_weights and record.path is not None and record.path.exists():
            try:
                return library.bases.state(record) != result.base_state
            except (Malformed, CouldNotTell):
                return True
    return False
