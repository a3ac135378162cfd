"""Check builds against their contracts, once for each build, base, precision and engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.api.steps.finding import find_base
from adapterhub.core.arguments import path_of
from adapterhub.core.digests import Digest, digest_of
from adapterhub.core.disk.files import digest_of_file, read_json, read_plain
from adapterhub.core.errors import AdapterHubError, BaseNotFound, CouldNotTell, DigestMismatch, UsageProblem, shown
from adapterhub.core.specs import AdapterSpec, BaseSpec, names_folder
from adapterhub.distribution.choosing import find_installed
from adapterhub.distribution.finding import ensure_folder
from adapterhub.formats.contract.contract import ENCODERS, IMAGE, Contract
from adapterhub.formats.contract.reader import MAX_BYTES, Rules, contract_in
from adapterhub.formats.contract.results import REASONS, Tested, Verdict
from adapterhub.formats.contract.standards import Bounds
from adapterhub.formats.manifest import CONFIG_FILE, CONTRACT_FILE, WEIGHTS_FILE, BaseRef, Manifest
from adapterhub.library.merged import binding_lines
from adapterhub.library.results import KeptResults
from adapterhub.projects.session import wanted_from
from adapterhub.trust.verify import ensure_undamaged, manifest_in
from adapterhub.trust.verify.checks.digests import differing
from adapterhub.trust.verify.subject import list_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from adapterhub.inference.generation import Model
    from adapterhub.library.bases.records import BaseRecord, Bases
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.reporting import Bars

_TASKS = {"SEQ_CLS": "classify", "FEATURE_EXTRACTION": "embed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractSubject:
    """An adapter to test or to record; `build` is None for a folder outside of the library."""

    folder: Path
    label: str
    manifest: Manifest | None
    build: Installed | None = None

    @property
    def name(self) -> str:
        """Its full name, or the folder."""
        return self.build.full_name if self.build else self.label

    @property
    def place(self) -> str | Path:
        """The spec of exactly this build, or the folder."""
        return self.build.spec if self.build else self.folder

    @property
    def base(self) -> BaseRef | None:
        """The base that it declares, or that was pinned for it."""
        return self.build.base if self.build else self.manifest.base if self.manifest else None

    @property
    def version(self) -> str:
        """Its version; empty for a plain folder."""
        return self.manifest.version if self.manifest else ""

    def weights(self) -> Digest:
        """The digest of its weights."""
        entry = self.manifest.file(WEIGHTS_FILE) if self.manifest else None
        return entry.sha256 if entry else digest_of_file(self.folder / WEIGHTS_FILE)[0]

    def contract(self) -> Contract | None:
        """Its contract; None without one.

        Raises:
            DigestMismatch: the file is not the one of the manifest.
            Malformed, CouldNotTell: as `contract_in`.
        """
        entry = self.manifest.file(CONTRACT_FILE) if self.manifest else None
        if entry is not None:
            where = self.folder / CONTRACT_FILE
            try:
                actual: str = digest_of(read_plain(where, max(MAX_BYTES, entry.size_bytes)))
            except OSError as error:
                actual = f"no file ({error.strerror})"
            if actual != entry.sha256:
                hint = "`adapt doctor --repair` mends what it can"
                raise DigestMismatch(str(where), expected=entry.sha256, actual=actual, hint=hint)
        return contract_in(self.folder)

    def ensure_undamaged(self) -> None:
        """Hash every file, for a caller that loads none of them.

        Raises:
            DigestMismatch: one is not the file of the manifest.
        """
        ensure_undamaged(differing(list_folder(self.folder), self.manifest), f"{self.folder}/")

    def kind(self) -> str | None:
        """The kind of contract that its task calls for: `classify`, `embed`, or None for one that writes text."""
        try:
            value = read_json(self.folder / CONFIG_FILE)
        except (OSError, ValueError):
            return None
        return _TASKS.get(str(value.get("task_type"))) if isinstance(value, dict) else None


def subject_of(library: Library, text: str) -> ContractSubject:
    """The adapter that a spec or a folder names.

    Raises:
        AdapterNotFound, NoCompatibleRelease, SpecError: no installed build has the name, or none fits.
        NotFound: there is no such folder.
    """
    if names_folder(text):
        folder = path_of(text)
        ensure_folder(folder)
        return ContractSubject(folder=folder, label=text, manifest=manifest_in(folder))
    spec = AdapterSpec.parse(text)
    build, _ = find_installed(library, spec, wanted=wanted_from(library, spec, None))
    return subject_of_build(build)


def subject_of_build(build: Installed) -> ContractSubject:
    """An installed build."""
    return ContractSubject(folder=build.folder, label=build.spec, manifest=build.manifest, build=build)


def base_for(library: Library, subject: ContractSubject, on: BaseSpec | None) -> BaseRecord:
    """The base to ask on as its files are now: `on`, else the one that the adapter was made for.

    Raises:
        BaseNotFound: it is unknown, or its weights are not on this machine.
        BaseMismatch: its weights are not the registered ones.
    """
    declared = subject.base.fingerprint if subject.base else None
    record: BaseRecord | None
    if on is None and declared is None:
        record = find_base(library, [{subject.label: 1.0}], None)
    elif on is not None:
        record = library.bases.find(on).narrowed(declared=declared)
    else:
        assert declared is not None  # the base that only the user could know was found above
        record = library.bases.by_fingerprint(declared)
    if record is None or record.path is None or not record.path.is_dir():
        label = record.label if record else subject.base.label if subject.base else subject.label
        if record is not None and record.path is not None and record.path.is_file():
            raise BaseNotFound(
                f"base `{label}` is one file, which lacks the settings that a test needs",
                hint="register its folder with `adapt base add FOLDER --as NAME`, then pass `--base NAME`",
            )
        raise BaseNotFound(
            f"the weights of base `{label}` are not on this machine",
            hint="register a local copy with `adapt base add PATH --as NAME`, then pass `--base NAME`",
        )
    return library.bases.current(record)


class Models:
    """The base in memory: the last one that was loaded, so that builds of one base load it once.

    One whose files have changed since is loaded again.
    """

    def __init__(self, bases: Bases) -> None:
        self._bases = bases
        self._key: tuple[Any, ...] = ()
        self._held: tuple[Any, Any] | None = None

    def load(
        self,
        record: BaseRecord,
        dtype: str,
        load_in: str | None,
        *,
        labels: int | None = None,
        is_encoder: bool = False,
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base, with an untrained head for so many labels, or the encoder alone."""
        from adapterhub.inference.loader.text import load_base

        assert record.path is not None  # see `base_for`
        path = record.path
        return self._kept(
            (self._bases.state(record), path, dtype, load_in, labels, is_encoder),
            lambda: load_base(path, dtype=dtype, load_in=load_in, labels=labels, is_encoder=is_encoder),
        )

    def pipeline(self, record: BaseRecord, dtype: str) -> Any:
        """A base that draws images."""
        from adapterhub.inference.images import load_pipeline

        assert record.path is not None  # see `base_for`
        path = record.path
        return self._kept((self._bases.state(record), path, dtype), lambda: (load_pipeline(path, dtype=dtype), None))[0]

    def _kept(self, key: tuple[Any, ...], load: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        if self._held is None or key != self._key:
            self._held = None  # two bases may not fit
            self._held = load()
            self._key = key
        return self._held


@contextlib.contextmanager
def model_of(
    library: Library,
    subject: ContractSubject,
    record: BaseRecord,
    models: Models,
    *,
    dtype: str,
    load_in: str | None,
    kind: str | None,
) -> Iterator[tuple[Any, Any, str]]:
    """The base with the adapter on it, the tokenizer, and how the bases compare in one word.

    For the kind `image`, it is an `AdaptedPipeline`, which has its tokenizers in itself.

    Raises:
        UsageProblem: a pipeline is needed and the base is none, or `load_in` is given for one.
        BaseMismatch, UnsupportedAdapter, RefusedAdapter, DigestMismatch: as `attach`.
    """
    from adapterhub.inference.classification import kinds_of
    from adapterhub.inference.loader import attach

    adapter = subject.build or subject.folder
    if kind == IMAGE:
        from adapterhub.inference.contracts.images import AdaptedPipeline

        if load_in is not None:
            raise UsageProblem("`--load-in` packs a model of texts, and this base draws images", hint="omit it")
        whole = library.bases.current(library.bases.whole(record))
        pipeline, named = models.pipeline(whole, dtype), BaseSpec.parse(whole.alias or str(whole.path))
        with attach(pipeline, adapter, library=library, base=named) as attached:
            yield AdaptedPipeline(pipeline=pipeline, attached=attached), None, attached.adapters[0].verdict.name
        return
    named = BaseSpec.parse(record.alias or str(record.path))
    labels = kinds_of(library, [subject.place], named, allow_base_mismatch=False).labels if kind != "embed" else None
    base, tokenizer = models.load(record, dtype, load_in, labels=labels, is_encoder=kind == "embed")
    with attach(base, adapter, library=library, base=named) as attached:
        yield attached.model, tokenizer, attached.adapters[0].verdict.name


DEFAULT_BUDGET_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TestQuestion:
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
    library: Library, subject: ContractSubject, question: TestQuestion, *, bars: Bars, models: Models | None = None
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


def _held_to(library: Library, question: TestQuestion, made: Tested, contract: Contract) -> tuple[Tested, Contract]:
    """The result so far with its bounds and rules, those of the project too, and the contract with the rules in it."""
    bounds = contract.bounds.tightened(question.bounds).no_looser_than(library.project_bounds())
    made = replace(made, bounds=asdict(bounds))
    rules = question.rules or library.project_rules()
    if rules is None or not rules.bind(contract):
        return made, contract
    return replace(made, rules=rules.digest), rules.added_to(contract)


def _digests_held(subject: ContractSubject, question: TestQuestion, contract: Contract) -> Digest | None:
    """The build's own contract where that holds digests alone and the given one has texts: the result is about it."""
    if question.contract is None or question.is_foreign or contract.visibility == "digests":
        return None
    own = subject.contract()
    return own.digest if own is not None and own.visibility == "digests" else None


def what_decides(library: Library, question: TestQuestion, record: BaseRecord) -> dict[str, Any]:
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
    question: TestQuestion,
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
    library: Library, folder: Path, name: str, contract: Contract, question: TestQuestion, *, bars: Bars
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
    question: TestQuestion,
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
    library: Library, builds: Sequence[Installed], question: TestQuestion, *, bars: Bars, models: Models | None = None
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
    library: Library, merge: Installed, question: TestQuestion, *, bars: Bars, models: Models | None = None
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
