"""Check builds against their contracts, once for each build, base, precision and engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

from adapterhub.api.steps.contracts.subjects import ContractSubject, Models, base_for, model_of, subject_of_build
from adapterhub.core.errors import AdapterHubError, BaseNotFound, CouldNotTell
from adapterhub.formats.base.hints import read_hints
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.results import REASONS, Tested, Verdict
from adapterhub.formats.contract.rules import Rules
from adapterhub.library.results import KeptResults

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.generation import Model
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.reporting import Bars

DEFAULT_BUDGET_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """How to check: on which base, in which precision, against which contract, within which bounds.

    `contract` None means the build's own. One that `is_foreign` is of another build; any other must have the digests
    of a build that holds digests alone. `rules` None means those of the project that the library is used in. `bounds`
    tighten the contract. `base_alone` also measures the base. `budget_s` are CPU seconds for one verdict. `again`
    ignores kept results.
    """

    on: BaseSpec | None = None
    dtype: str = "auto"
    load_in: str | None = None
    contract: Contract | None = None
    is_foreign: bool = False
    rules: Rules | None = None
    bounds: Mapping[str, float] = field(default_factory=dict)
    base_alone: bool = False
    budget_s: float = DEFAULT_BUDGET_S
    again: bool = False


def engine_name() -> str:
    """The program that answers, with the versions of all that decide a number."""
    return ", ".join(f"{name} {_version(name)}" for name in ("transformers", "torch", "peft"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def verdict_on(
    library: Library, subject: ContractSubject, question: Question, *, bars: Bars, models: Models | None = None
) -> Tested:
    """The verdict on one build or folder.

    Raises:
        DigestMismatch, Malformed: the contract's bytes are not those of the manifest, or break the format.
        BaseNotFound: the base that `on` names is not here.
        BaseMismatch, UnsupportedAdapter, RefusedAdapter: the adapter cannot be put on the base.
    """
    made = Tested(name=subject.name, version=subject.version, verdict="NONE", engine=engine_name())
    if subject.manifest is not None:
        made = replace(made, digest=subject.manifest.digest)
    try:
        contract = question.contract or subject.contract()
    except CouldNotTell as error:
        return _unknown(made, "kind", error.message)
    if contract is None:
        return made
    digest = _digest_it_counts_for(subject, question, contract)
    if digest is None:
        return _unknown(replace(made, contract=contract.digest), "other-contract", REASONS["other-contract"])
    bounds = contract.bounds.tightened(question.bounds)
    made = replace(made, contract=digest, bounds=asdict(bounds), weights=subject.weights())
    used = contract.digest
    rules = question.rules or library.project_rules()
    if rules is not None and rules.bind(contract):
        made, contract = replace(made, rules=rules.digest), rules.added_to(contract)
    try:
        record = base_for(library, subject, question.on)
    except BaseNotFound as error:
        if question.on is not None:
            raise
        return _unknown(made, "no-base", error.message.splitlines()[0])
    made = replace(made, base=record.label, base_weights=record.fingerprint.weights, load_in=question.load_in or "")
    asked = {**_asked(question, made, record), "contract": used, "bounds": asdict(bounds)}
    if made.rules:
        asked["rules"] = made.rules
    kept = KeptResults(library.store)
    if subject.manifest is not None and not question.again and (found := kept.find(subject.manifest.digest, asked)):
        subject.ensure_undamaged()
        return found.named(subject.name, subject.version)
    result = _measured(library, subject, record, contract, question, made, bars=bars, models=models or Models())
    if subject.manifest is not None and result.verdict in ("PASS", "CHANGED"):
        kept.keep(subject.manifest.digest, asked, result)
    return result


def _digest_it_counts_for(subject: ContractSubject, question: Question, contract: Contract) -> str | None:
    """The digest of the contract that a result is about.

    A build that holds digests alone counts a contract with the same digests as its own; None says that the given one
    has others.
    """
    if question.contract is None or question.is_foreign or contract.visibility == "digests":
        return contract.digest
    own = subject.contract()
    if own is None or own.visibility != "digests":
        return contract.digest
    return own.digest if contract.without_texts().digest == own.digest else None


def _asked(question: Question, made: Tested, record: BaseRecord) -> dict[str, Any]:
    """What decides the result; the tokenizer and the chat template are read now, as they may change under a record."""
    hints = read_hints(record.path) if record.path is not None else record.hints
    return {
        "tokenizer": hints.tokenizer_sha256 or "",
        "chat_template": hints.chat_template_sha256 or "",
        "base": made.base_weights,
        "dtype": question.dtype,
        "load_in": made.load_in,
        "engine": made.engine,
        "base_alone": question.base_alone,
    }


def _measured(
    library: Library,
    subject: ContractSubject,
    record: BaseRecord,
    contract: Contract,
    question: Question,
    made: Tested,
    *,
    bars: Bars,
    models: Models,
) -> Tested:
    kind = contract.kind if contract.kind in ("classify", "embed") else None
    with model_of(library, subject, record, models, dtype=question.dtype, load_in=question.load_in, kind=kind) as (
        model,
        tokenizer,
        base_verdict,
    ):
        result = _checked(made, model, tokenizer, contract, question, bars=bars)
    if contract.recorded.adapter != made.weights:
        told = (*result.warnings, "the contract was recorded from other weights than these")
        result = replace(result, warnings=told)
    return replace(result, base_verdict=base_verdict)


def verdict_on_model(folder: Path, name: str, contract: Contract, question: Question, *, bars: Bars) -> Tested:
    """The verdict on a whole model, into which the adapter of the contract was fused.

    Raises:
        Incompatible: transformers cannot load the model.
    """
    from adapterhub.inference.loader.text import load_base

    made = Tested(name=name, verdict="NONE", engine=engine_name(), contract=contract.digest)
    made = replace(made, bounds=asdict(contract.bounds.tightened(question.bounds)))
    labels = len(contract.goldens[0].logits) if contract.kind == "classify" and contract.goldens else None
    is_encoder = contract.kind == "embed"
    model, tokenizer = load_base(
        folder, dtype=question.dtype, load_in=question.load_in, labels=labels, is_encoder=is_encoder
    )
    return _checked(made, model, tokenizer, contract, question, bars=bars)


def _checked(
    made: Tested,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    contract: Contract,
    question: Question,
    *,
    bars: Bars,
) -> Tested:
    from adapterhub.inference.contracts.checking import check

    with bars.steps(f"test {made.name}", unit="prompts") as progress:
        checked = check(
            model,
            tokenizer,
            contract,
            bounds=contract.bounds.tightened(question.bounds),
            base_alone=question.base_alone,
            budget_s=question.budget_s,
            progress=progress,
        )
    judgement = checked.judgement
    return replace(
        made,
        verdict=judgement.verdict,
        reason=judgement.reason,
        detail=checked.detail or REASONS.get(judgement.reason, ""),
        dtype=str(model.dtype).removeprefix("torch."),
        same=judgement.same,
        retention=judgement.retention,
        retention_worst=judgement.retention_worst,
        kl=judgement.kl,
        cosine=judgement.cosine,
        goldens=judgement.goldens,
        cases=judgement.cases,
        broken=judgement.broken,
        warnings=tuple(judgement.warnings),
        cpu_seconds=round(checked.cpu_seconds, 3),
    )


def _unknown(made: Tested, reason: str, detail: str) -> Tested:
    return replace(made, verdict="UNKNOWN", reason=reason, detail=detail)


def verdicts_on(library: Library, builds: Sequence[Installed], question: Question, *, bars: Bars) -> list[Tested]:
    """The verdicts on builds that have a contract, each base loaded once; a refusal of one is UNKNOWN for that one."""
    models, found = Models(), []
    order = sorted(builds, key=lambda build: (build.base.label, build.full_name, build.manifest.version))
    for build in order:
        subject = subject_of_build(build)
        try:
            result = verdict_on(library, subject, question, bars=bars, models=models)
        except AdapterHubError as error:
            empty = Tested(name=build.full_name, version=build.manifest.version, verdict="UNKNOWN")
            result = _unknown(replace(empty, digest=build.manifest.digest), "refused", error.message.splitlines()[0])
        if result.verdict != "NONE" or question.contract is not None:
            found.append(result)
    return found


def worst(results: Sequence[Tested], *, requires: bool = False) -> Verdict:
    """The verdict on all: CHANGED before UNKNOWN before PASS. NONE counts as UNKNOWN only under `requires`."""
    verdicts = {result.verdict for result in results}
    if "CHANGED" in verdicts:
        return "CHANGED"
    return "UNKNOWN" if "UNKNOWN" in verdicts or (requires and "NONE" in verdicts) else "PASS"
