"""Check builds against their contracts, once for each build, base, precision and engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.api.steps.finding import find_base
from adapterhub.core.arguments import path_of
from adapterhub.core.digests import Digest, digest_of
from adapterhub.core.disk.files import digest_of_file, read_json, read_plain
from adapterhub.core.errors import AdapterHubError, BaseNotFound, CouldNotTell, DigestMismatch, UsageProblem, shown
from adapterhub.core.specs import AdapterSpec, BaseSpec, names_folder, version_of
from adapterhub.distribution.choosing import find_installed
from adapterhub.distribution.finding import ensure_folder
from adapterhub.formats.contract.contract import ENCODERS, IMAGE, Contract
from adapterhub.formats.contract.reader import MAX_BYTES, Rules, contract_in
from adapterhub.formats.contract.results import OUTCOMES, Tested, Verdict
from adapterhub.formats.manifest import CONFIG_FILE, CONTRACT_FILE, WEIGHTS_FILE, BaseRef, Manifest
from adapterhub.library.merged import binding_lines
from adapterhub.library.results import KeptResults
from adapterhub.projects.session import wanted_from
from adapterhub.trust.verify import ensure_undamaged, manifest_in
from adapterhub.trust.verify.checks.digests import differing
from adapterhub.trust.verify.subject import list_folder

if TYPE_CHECKING:
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.session import Session

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
        """Return the digest of its weights."""
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
        """Return the kind of contract for its task: `classify`, `embed`, or None for one that writes text."""
        try:
            value = read_json(self.folder / CONFIG_FILE)
        except (OSError, ValueError):
            return None
        return _TASKS.get(str(value.get("task_type"))) if isinstance(value, dict) else None


def subject_of(library: Library, text: str) -> ContractSubject:
    """Return the adapter that a spec or a folder names.

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
    """Return an installed build."""
    return ContractSubject(folder=build.folder, label=build.spec, manifest=build.manifest, build=build)


def base_for(library: Library, subject: ContractSubject, on: BaseSpec | None) -> BaseRecord:
    """Return the base to test on as its files are now: `on`, or the one that the adapter was made for.

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
            way = "register its folder with `adapt base add FOLDER --as NAME`, then pass `--base NAME`"
            if record.path.suffix == ".gguf":
                way = f"`adapt export {subject.label} --format gguf --test --gguf {record.path}` asks it in llama.cpp"
            raise BaseNotFound(f"base `{label}` is one file, which lacks the settings that a test needs", hint=way)
        raise BaseNotFound(
            f"the weights of base `{label}` are not on this machine",
            hint="register a local copy with `adapt base add PATH --as NAME`, then pass `--base NAME`",
        )
    return library.bases.current(record)


class Models:
    """The base in memory: the last one that was loaded, so that builds of one base load it once.

    One whose files have changed since is loaded again.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._key: tuple[Any, ...] = ()
        self._held: tuple[Any, Any] | None = None

    @contextlib.contextmanager
    def of(
        self,
        subject: ContractSubject,
        record: BaseRecord,
        *,
        dtype: str,
        load_in: str | None = None,
        kind: str | None = None,
        is_other_base: bool = False,
    ) -> Iterator[tuple[Any, Any, str]]:
        """Provide the base with the adapter on it, the tokenizer, and how the bases compare in one word.

        For the kind `image`, it is an `AdaptedPipeline`, which has its tokenizers in itself. `is_other_base` permits
        any base that has the adapter's modules.

        Raises:
            UsageProblem: a pipeline is needed and the base is not one, or `load_in` is given for one.
            BaseMismatch, UnsupportedAdapter, RefusedAdapter, DigestMismatch: as `attach`.
        """
        from adapterhub.inference.classification import kinds_of
        from adapterhub.inference.loader.attachment import attach, attach_to_test
        from adapterhub.inference.loader.text import load_base

        put_on = attach_to_test if is_other_base else attach
        library, adapter = self._library, subject.build or subject.folder
        if kind == IMAGE:
            from adapterhub.inference.contracts.images import AdaptedPipeline
            from adapterhub.inference.images import load_pipeline

            if load_in is not None:
                raise UsageProblem("`--load-in` packs a model of texts, and this base draws images", hint="omit it")
            record = library.bases.current(library.bases.whole(record))
        named, path = BaseSpec.parse(record.alias or str(record.path)), record.path
        assert path is not None  # see `base_for`
        if kind == IMAGE:
            pipeline, _ = self._kept((record, dtype), lambda: (load_pipeline(path, dtype=dtype), None))
            with put_on(pipeline, adapter, library=library, base=named) as attached:
                yield AdaptedPipeline(pipeline=pipeline, attached=attached), None, attached.adapters[0].verdict.name
            return
        is_encoder, labels = kind == "embed", None
        if not is_encoder:  # an untrained head for so many labels
            labels = kinds_of(library, [adapter], named, allow_base_mismatch=is_other_base).labels
        base, tokenizer = self._kept(
            (record, dtype, load_in, labels, is_encoder),
            lambda: load_base(path, dtype=dtype, load_in=load_in, labels=labels, is_encoder=is_encoder),
        )
        with put_on(base, adapter, library=library, base=named) as attached:
            yield attached.model, tokenizer, attached.adapters[0].verdict.name

    def _kept(self, asked: tuple[Any, ...], load: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        record, *how = asked
        key = (self._library.bases.state(record), record.path, *how)
        if self._held is None or key != self._key:
            self._held = None  # two bases may not fit
            self._held = load()
            self._key = key
        return self._held


DEFAULT_BUDGET_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TestQuestion:
    """How to check: on which base, in which precision, against which contract, within which bounds.

    `contract` None means the build's own. One that `is_foreign` is of another build; any other must have the digests of
    a build that holds only digests. `rules` None means those of the project that the library is used in. `bounds`
    tighten the contract, as those of that project do. `is_other_base` permits any base that has the adapter's modules,
    to learn what it does there. `base_alone` also measures the base. `budget_s` are CPU seconds for one verdict.
    `again` ignores kept results.
    """

    on: BaseSpec | None = None
    is_other_base: bool = False
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
    """Return the program that answers, with the versions of all that decide a number."""
    programs = ("diffusers",) * (kind == IMAGE) + ("transformers", "torch", "peft")
    return ", ".join(f"{name} {_version(name)}" for name in programs)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


class Tester:
    """Asks builds what their contracts hold. The base in memory stays from one build to the next."""

    def __init__(self, library: Library, session: Session) -> None:
        self._library, self._session, self._models = library, session, Models(library)
        self._has_bar = False

    def verdict(self, subject: ContractSubject, question: TestQuestion) -> Tested:
        """Return the verdict on one build or folder.

        Raises:
            DigestMismatch, Malformed: the contract's bytes are not those of the manifest, or break the format.
            BaseNotFound: the base that `on` names is not here.
            BaseMismatch, UnsupportedAdapter, RefusedAdapter: the adapter cannot be put on the base.
        """
        library = self._library
        made = Tested(name=subject.name, version=subject.version, verdict="NONE", engine=engine_name())
        if subject.manifest is not None:
            made = replace(made, digest=subject.manifest.digest)
        try:
            contract = question.contract or subject.contract()
        except CouldNotTell as error:
            return made.unknown("kind", error.message)
        if contract is None:
            return made
        held = _digests_held(subject, question, contract)
        made = replace(made, contract=held or contract.digest)
        if held is not None and contract.without_texts().digest != held:
            return made.unknown("other-contract")
        used = contract.digest
        made, contract = self._held_to(question, replace(made, weights=subject.weights()), contract)
        try:
            record = base_for(library, subject, question.on)
        except BaseNotFound as error:
            if question.on is not None:
                raise
            return made.unknown("no-base", error.message.splitlines()[0])
        made = replace(made, base=record.label, base_weights=record.fingerprint.weights, load_in=question.load_in or "")
        made = replace(made, base_state=library.bases.state(record), base_alone=question.base_alone)
        if contract.kind == IMAGE:
            made = replace(made, engine=engine_name(IMAGE))
        about = {"contract": used, "bounds": dict(made.bounds), "engine": made.engine, "rules": made.rules}

        def asked() -> dict[str, Any]:
            return {**what_decides(library, question, record), **about}

        def measure() -> Tested:
            kind = contract.kind if contract.kind in (*ENCODERS, IMAGE) else None
            with self._models.of(
                subject,
                record,
                dtype=question.dtype,
                load_in=question.load_in,
                kind=kind,
                is_other_base=question.is_other_base,
            ) as (model, tokenizer, base_verdict):
                known = replace(made, base_verdict=base_verdict)
                result = self._checked(known, model, tokenizer, contract, question)
            if contract.goldens and contract.recorded.adapter != made.weights:
                told = (*result.warnings, "the contract was recorded from other weights than these")
                result = replace(result, warnings=told)
            return result

        is_meant = partial(self._may_be_shown, subject, record, question)
        return kept_or_measured(library, subject, asked, measure, again=question.again, is_meant=is_meant)

    def _may_be_shown(
        self, subject: ContractSubject, record: BaseRecord, question: TestQuestion, found: Tested
    ) -> bool:
        """Return whether the caller might put the adapter on the base of a kept result."""
        if not found.is_of_other_base or question.is_other_base:
            return True
        return subject.build is not None and self._library.mismatch_allowed(subject.build, record.fingerprint)

    def on_model(self, folder: Path, name: str, contract: Contract, question: TestQuestion) -> Tested:
        """Return the verdict on a whole model, into which the adapter of the contract was fused.

        Raises:
            Incompatible: transformers cannot load the model.
        """
        from adapterhub.inference.loader.text import load_base

        made = Tested(name=name, verdict="NONE", engine=engine_name(), contract=contract.digest)
        if contract.kind == IMAGE:
            detail = "it is one model, and the contract asks a whole pipeline; test the adapter without fusing it"
            return made.unknown("kind", detail)
        made, contract = self._held_to(question, made, contract)
        labels = len(contract.goldens[0].logits) if contract.kind == "classify" and contract.goldens else None
        model, tokenizer = load_base(
            folder,
            dtype=question.dtype,
            load_in=question.load_in,
            labels=labels,
            is_encoder=contract.kind == "embed",
        )
        return self._checked(made, model, tokenizer, contract, question)

    def _held_to(self, question: TestQuestion, made: Tested, contract: Contract) -> tuple[Tested, Contract]:
        """Return the result so far with its bounds and rules, also the project's, and the contract with the rules."""
        bounds = contract.bounds.tightened(question.bounds).no_looser_than(self._session.project_bounds())
        made = replace(made, bounds=asdict(bounds))
        rules = question.rules or self._session.project_rules()
        if rules is None or not rules.bind(contract):
            return made, contract
        return replace(made, rules=rules.digest), rules.added_to(contract)

    def _checked(self, made: Tested, model: Any, tokenizer: Any, contract: Contract, question: TestQuestion) -> Tested:
        from adapterhub.inference.contracts.checking import check

        alone, budget = question.base_alone, question.budget_s
        bar: contextlib.AbstractContextManager[Callable[[int, int], None]]
        bar = contextlib.nullcontext(lambda _done, _total: None)  # one bar at a time
        if not self._has_bar:
            bar = self._session.out.steps(f"test {made.name}", unit="prompts")
        with bar as progress:
            return check(model, tokenizer, contract, made, base_alone=alone, budget_s=budget, progress=progress)

    def verdicts(self, builds: Sequence[Installed], question: TestQuestion) -> list[Tested]:
        """Return the verdicts on builds that have a contract, base after base.

        A refusal of one is UNKNOWN for that one.
        """
        found = []
        for build in sorted(builds, key=lambda build: (build.base.label, build.full_name, build.manifest.version)):
            result = self._verdict_or_refusal(subject_of_build(build), question)
            if result.verdict != "NONE" or question.contract is not None:
                found.append(result)
        return found

    def on_other_base(self, subjects: Sequence[ContractSubject], question: TestQuestion) -> list[Tested]:
        """Return the verdicts of all subjects on the one base that `question` names.

        A refusal of one is UNKNOWN for that one.

        Each verdict is kept as it comes, so that a run that is cut goes on where it stopped. The base is loaded once
        for each kind of adapter, and not at all if every verdict is kept.

        Raises:
            BaseNotFound: the base is unknown, or its weights are not on this machine.
            BaseMismatch: its weights are not the registered ones.
        """
        found: dict[int, Tested] = {}
        if not subjects:
            return []
        base = base_for(self._library, subjects[0], question.on)
        by_kind = sorted(range(len(subjects)), key=lambda at: (subjects[at].kind() or "", at))
        with self._session.out.steps(f"test on {base.label}", unit="adapters") as progress:
            self._has_bar = True
            try:
                for done, at in enumerate(by_kind):
                    progress(done, len(subjects))
                    found[at] = replace(self._verdict_or_refusal(subjects[at], question), base=base.label)
                progress(len(subjects), len(subjects))
            finally:
                self._has_bar = False
        return [found[at] for at in range(len(subjects))]

    def _verdict_or_refusal(self, subject: ContractSubject, question: TestQuestion) -> Tested:
        try:
            return self.verdict(subject, question)
        except AdapterHubError as error:
            empty = Tested(name=subject.name, version=subject.version, verdict="UNKNOWN")
            empty = replace(empty, digest=subject.manifest.digest if subject.manifest else "")
            return empty.unknown("refused", ": ".join(line.strip() for line in error.message.splitlines()[:2]))

    def on_merge(self, merge: Installed, question: TestQuestion) -> list[Tested]:
        """Return the verdicts on a merge without a contract, by the lines that bind it: one per parent that has any.

        Raises:
            CouldNotTell: a parent is not here, or has no contract.
        """
        lines = binding_lines(self._library, merge, question.rules or self._session.project_rules())
        asked = [replace(question, contract=one.contract, is_foreign=True) for one in lines]
        return [result for each in asked for result in self.verdicts([merge], each)]


def kept_or_measured(
    library: Library,
    subject: ContractSubject,
    asked: Callable[[], Mapping[str, Any]],
    measure: Callable[[], Tested],
    *,
    again: bool,
    is_meant: Callable[[Tested], bool] = lambda _kept: True,
) -> Tested:
    """Return the kept result of the same question, or a new one, which is kept if it is a verdict on a build.

    `asked` reads the question from disk, before and after a measurement. A kept result that is not `is_meant` is passed
    over: it is about a base on which this caller must not put the adapter.

    Raises:
        DigestMismatch: a kept result would be shown, and the build is damaged.
        CouldNotTell: the base changed meanwhile.
    """
    question, manifest = asked(), subject.manifest.digest if subject.manifest else None
    kept = KeptResults(library.store)
    if manifest is not None and not again and (found := kept.find(manifest, question)) and is_meant(found):
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


def _digests_held(subject: ContractSubject, question: TestQuestion, contract: Contract) -> Digest | None:
    """Return the build's own contract if it holds digests and the given one has texts: the result is about it."""
    if question.contract is None or question.is_foreign or contract.visibility == "digests":
        return None
    own = subject.contract()
    return own.digest if own is not None and own.visibility == "digests" else None


def what_decides(library: Library, question: TestQuestion, record: BaseRecord) -> dict[str, Any]:
    """Return the key of any result; of the base, all that its files are now."""
    packing = {"packing": f"bitsandbytes {_version('bitsandbytes')}"} if question.load_in else {}
    return {
        "base": library.bases.state(record),
        "dtype": question.dtype,
        "load_in": question.load_in or "",
        "engine": engine_name(),
        "tokenizers": _version("tokenizers"),
        "base_alone": question.base_alone,
        "effect": True,  # a result from before it was asked is no answer now
        **packing,
    }


def newest_with_contract(builds: Iterable[Installed]) -> tuple[list[Installed], list[str]]:
    """Of each name and base the newest version that has a contract, by name; and the names whose newest has none."""
    by_name: dict[tuple[str, str], list[Installed]] = {}
    for build in builds:
        by_name.setdefault((build.full_name, build.base.label), []).append(build)
    found, without = [], []
    for (name, _), versions in sorted(by_name.items()):
        newest_first = sorted(versions, key=lambda build: version_of(build.manifest.version), reverse=True)
        tested = [build for build in newest_first if build.manifest.file(CONTRACT_FILE) is not None]
        found += tested[:1]
        without += [] if tested[:1] == newest_first[:1] else [name]
    return found, without


def worst_first(results: Iterable[Tested]) -> list[Tested]:
    """Return the results of a library on one base: the worst outcome first, then by drift."""
    return sorted(results, key=lambda one: ([*OUTCOMES, ""].index(one.outcome), -(one.drift or 0.0), one.label))


def worst(results: Sequence[Tested], *, requires: bool = False) -> Verdict:
    """Return the verdict on all: CHANGED before UNKNOWN before PASS. NONE counts as UNKNOWN only under `requires`."""
    verdicts = {result.verdict for result in results}
    if "CHANGED" in verdicts:
        return "CHANGED"
    return "UNKNOWN" if "UNKNOWN" in verdicts or (requires and "NONE" in verdicts) else "PASS"
