"""Check builds against their contracts, once for each build, base, precision and engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

from adapterhub.api.steps.contracts.subjects import ContractSubject, Models, base_for, model_of, subject_of_build
from adapterhub.core.errors import AdapterHubError, BaseNotFound, CouldNotTell, shown
from adapterhub.formats.contract.contract import ENCODERS, IMAGE, Contract
from adapterhub.formats.contract.reader import Rules
from adapterhub.formats.contract.results import REASONS, Tested, Verdict
from adapterhub.formats.contract.standards import Bounds
from adapterhub.library.merged import binding_lines
from adapterhub.library.results import KeptResults

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from adapterhub.core.digests import Digest
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
    tighten the contract, as those of that project do. `base_alone` also measures the base. `budget_s` are CPU seconds
    for one verdict. `again` ignores kept results.
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


def engine_name(kind: str = "") -> str:
    """The program that answers, with the versions of all that decide a number."""
    programs = ("diffusers",) * (kind == IMAGE) + ("transformers", "torch", "peft")
    return ", ".join(f"{name} {_version(name)}" for name in programs)


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
    held = _digests_held(subject, question, contract)
    made = replace(made, contract=held or contract.digest)
    if held is not None and contract.without_texts().digest != held:
        return _unknown(made, "other-contract", REASONS["other-contract"])
    used = contract.digest
    made, contract = _held_to(library, question, replace(made, weights=subject.weights()), contract)
    try:
        record = base_for(library, subject, question.on)
    except BaseNotFound as error:
        if question.on is not None:
            raise
        return _unknown(made, "no-base", error.message.splitlines()[0])
    made = replace(made, base=record.label, base_weights=record.fingerprint.weights, load_in=question.load_in or "")
    made = replace(made, base_state=library.bases.state(record), base_alone=question.base_alone)
    if contract.kind == IMAGE:
        made = replace(made, engine=engine_name(IMAGE))
    about = {"contract": used, "bounds": dict(made.bounds), "engine": made.engine, "rules": made.rules}
    loaded = models or Models(library.bases)

    def asked() -> dict[str, Any]:
        return {**what_decides(library, question, record), **about}

    def measure() -> Tested:
        return _measured(library, subject, record, contract, question, made, bars=bars, models=loaded)

    return kept_or_measured(library, subject, asked, measure, again=question.again)


def kept_or_measured(
    library: Library,
    subject: ContractSubject,
    asked: Callable[[], Mapping[str, Any]],
    measure: Callable[[], Tested],
    *,
    again: bool,
) -> Tested:
    """The kept result of the very same question, else a new one, which is kept if it is a verdict on a build.

    `asked` reads the question from disk, before and after a measurement.

    Raises:
        DigestMismatch: a kept result would be shown, and the build is damaged.
        CouldNotTell: the base changed meanwhile.
    """
    question, manifest = asked(), subject.manifest.digest if subject.manifest else None
    kept = KeptResults(library.store)
    if manifest is not None and not again and (found := kept.find(manifest, question)):
        subject.ensure_undamaged()
        return found.named(subject.name, subject.version)
    result, now = measure(), asked()
    if now["base"] != question["base"]:
        raise CouldNotTell(
            f"the files of base `{result.base}` changed while `{shown(result.label, 200)}` was tested",
            hint="wait until they are written, and test again",
        )
    if manifest is not None and now == question and result.verdict in ("PASS", "CHANGED"):
        kept.keep(manifest, question, result)
    return result


def _held_to(library: Library, question: Question, made: Tested, contract: Contract) -> tuple[Tested, Contract]:
    """The result so far with its bounds and rules, those of the project too, and the contract with the rules in it."""
    bounds = contract.bounds.tightened(question.bounds).no_looser_than(library.project_bounds())
    made = replace(made, bounds=asdict(bounds))
    rules = question.rules or library.project_rules()
    if rules is None or not rules.bind(contract):
        return made, contract
    return replace(made, rules=rules.digest), rules.added_to(contract)


def _digests_held(subject: ContractSubject, question: Question, contract: Contract) -> Digest | None:
    """The build's own contract where that holds digests alone and the given one has texts: the result is about it."""
    if question.contract is None or question.is_foreign or contract.visibility == "digests":
        return None
    own = subject.contract()
    return own.digest if own is not None and own.visibility == "digests" else None


def what_decides(library: Library, question: Question, record: BaseRecord) -> dict[str, Any]:
    """What decides any result; of the base, all that its files are now."""
    packing = {"packing": f"bitsandbytes {_version('bitsandbytes')}"} if question.load_in else {}
    return {
        "base": library.bases.state(record),
        "dtype": question.dtype,
        "load_in": question.load_in or "",
        "engine": engine_name(),
        "tokenizers": _version("tokenizers"),
        "base_alone": question.base_alone,
        **packing,
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
    kind = contract.kind if contract.kind in (*ENCODERS, IMAGE) else None
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


def verdict_on_model(
    library: Library, folder: Path, name: str, contract: Contract, question: Question, *, bars: Bars
) -> Tested:
    """The verdict on a whole model, into which the adapter of the contract was fused.

    Raises:
        Incompatible: transformers cannot load the model.
    """
    from adapterhub.inference.loader.text import load_base

    made = Tested(name=name, verdict="NONE", engine=engine_name(), contract=contract.digest)
    if contract.kind == IMAGE:
        detail = "it is one model, and the contract asks a whole pipeline; test the adapter without fusing it"
        return _unknown(made, "kind", detail)
    made, contract = _held_to(library, question, made, contract)
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
            bounds=Bounds(**made.bounds),
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
        effect=judgement.effect,
        goldens=judgement.goldens,
        cases=judgement.cases,
        broken=judgement.broken,
        warnings=tuple(judgement.warnings),
        cpu_seconds=round(checked.cpu_seconds, 3),
    )


def _unknown(made: Tested, reason: str, detail: str) -> Tested:
    return replace(made, verdict="UNKNOWN", reason=reason, detail=detail)


def verdicts_on(
    library: Library, builds: Sequence[Installed], question: Question, *, bars: Bars, models: Models | None = None
) -> list[Tested]:
    """The verdicts on builds that have a contract, each base loaded once; a refusal of one is UNKNOWN for that one."""
    models, found = models or Models(library.bases), []
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


def verdicts_on_merge(
    library: Library, merge: Installed, question: Question, *, bars: Bars, models: Models | None = None
) -> list[Tested]:
    """The verdicts on a merge without a contract, by the lines that bind it: one for each parent that has such lines.

    Raises:
        CouldNotTell: a parent is not here, or has no contract.
    """
    models, found = models or Models(library.bases), []
    for one in binding_lines(library, merge, question.rules or library.project_rules()):
        asked = replace(question, contract=one.contract, is_foreign=True)
        found += verdicts_on(library, [merge], asked, bars=bars, models=models)
    return found


def worst(results: Sequence[Tested], *, requires: bool = False) -> Verdict:
    """The verdict on all: CHANGED before UNKNOWN before PASS. NONE counts as UNKNOWN only under `requires`."""
    verdicts = {result.verdict for result in results}
    if "CHANGED" in verdicts:
        return "CHANGED"
    return "UNKNOWN" if "UNKNOWN" in verdicts or (requires and "NONE" in verdicts) else "PASS"
