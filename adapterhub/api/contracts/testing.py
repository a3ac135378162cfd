"""Behaviour contracts from Python: test whether adapters still answer as they did, and record how they do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

from adapterhub.api.opened import BaseLike, OpenedLibrary, base_of, text_of
from adapterhub.core.arguments import (
    Budget,
    GoldenCount,
    GoldenTokens,
    LoadIn,
    LoadPrecision,
    Margin,
    RunnerName,
    StrPath,
    TestsPolicy,
    parsed,
    path_of,
)
from adapterhub.core.errors import NotAllowed, UsageProblem, problem_list, shown
from adapterhub.core.extras import extra_named
from adapterhub.library.store.catalog import AdapterLike

if TYPE_CHECKING:
    from adapterhub.api.steps.contracts.recording import RecordedContract, SignedResults
    from adapterhub.api.steps.contracts.running import EmittedTask
    from adapterhub.api.steps.contracts.testing import ContractSubject
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.formats.contract.results import Tested, Verdict
    from adapterhub.formats.contract.standards import Standards
    from adapterhub.formats.prompts.form import PromptForm
    from adapterhub.library.library import Library
    from adapterhub.trust.signing.keys import SigningKey


_NAMED: Final = 10


@dataclass(frozen=True, slots=True, repr=False)
class Verdicts(Sequence["Tested"]):
    """The verdict on each adapter; `verdict` is the worst of them."""

    results: tuple[Tested, ...]
    verdict: Verdict

    @property
    def outcome(self) -> str:
        """The worst outcome: `broken`, `drifts`, `cannot_run` or `works`; empty without a result."""
        from adapterhub.formats.contract.results import OUTCOMES

        return next((one for one in OUTCOMES if any(result.outcome == one for result in self.results)), "")

    @overload
    def __getitem__(self, at: int) -> Tested: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Tested, ...]: ...
    def __getitem__(self, at: int | slice) -> Tested | tuple[Tested, ...]:
        return self.results[at]

    def __len__(self) -> int:
        return len(self.results)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the JSON value."""
        return [result.to_json() for result in self.results]

    def __repr__(self) -> str:
        return f"<{self.verdict}: {', '.join(map(repr, self.results[:3]))}{', …' * (len(self) > 3)}>"


@parsed
class WithContracts(OpenedLibrary):
    """Everything about behaviour contracts."""

    @extra_named("`Library.test`")
    def test(
        self,
        *adapters: AdapterLike,
        everything: bool = False,
        base: BaseLike | None = None,
        on: BaseLike | None = None,
        dtype: LoadPrecision = "auto",
        load_in: LoadIn | None = None,
        tests: Contract | StrPath | None = None,
        rules: StrPath | None = None,
        bounds: Mapping[str, float] | None = None,
        base_alone: bool = False,
        budget: Budget = 120.0,
        again: bool = False,
        require: bool = False,
        runner: RunnerName | None = None,
        task: StrPath | None = None,
        junit: StrPath | None = None,
        statement: StrPath | None = None,
        sign: bool = False,
        key: str | None = None,
        password: str | None = None,
    ) -> Verdicts:
        """Test whether adapters still answer as their contracts record.

        Args:
            adapters: specs, builds or folders.
            everything: test every installed build that has a contract; a base is loaded once for all its builds.
            base: the base to test on; default: the one that each was made for.
            on: any other base, to learn what works there: other weights and another vocabulary are permitted, for this
                test only. With `everything`, only the newest version of each name is tested, and `adapters` are parts
                of names or patterns as in `list`.
            dtype: precision of the base in memory.
            load_in: `4bit` or `8bit` packs the base's linear layers.
            tests: a contract, or a file of one, instead of the build's own.
            rules: a file of additional `never` and `leave_alone` lines; default: `tests-never` of the project.
            bounds: tighter bounds by name, such as `{"same": 1.0}`.
            base_alone: also measure the base, and compare it with the recording.
            budget: CPU seconds that one verdict may take.
            again: ask again, whatever results are kept.
            require: count a build without a contract as UNKNOWN in the worst verdict.
            runner: let an installed tool test, `lm-eval` or `pytest`.
            task: for the tool: a task of lm-eval instead of the contract's goldens, or tests of pytest.
            junit: write the results into this file as JUnit XML.
            statement: write the one result into this file as an in-toto statement.
            sign: sign the results, and write each beside its build; UNKNOWN and NONE are not signed.
            key: name of the key; default: ADAPTERHUB_KEY, or your only key.
            password: of the key; default: ADAPTERHUB_PASSWORD.

        Returns:
            A sequence of results with the worst `.verdict` and `.outcome`. Each has `.verdict`, which is PASS, CHANGED,
            UNKNOWN or NONE; `.outcome`, which is `works`, `drifts`, `broken` or `cannot_run`; `.reason`, `.broken`,
            `.same`, `.retention`, `.drift`, `.metrics` and `.cases`. With `on`, the worst come first, and an adapter
            that does not fit is UNKNOWN.

        Raises:
            NotFound: an adapter, the base or a file is not here.
            DigestMismatch, Malformed: a contract is damaged.
            BaseMismatch: an adapter does not fit the base.
            UsageProblem: options exclude each other, or the runner is not installed, or has no such task.
            EngineFailed: the runner ended without a result.
        """
        from adapterhub.api.steps.contracts.recording import ensure_can_be_stated
        from adapterhub.api.steps.contracts.testing import Tester, TestQuestion, subject_of, worst, worst_first
        from adapterhub.api.steps.keys import signing_key
        from adapterhub.formats.contract.reader import read_rules

        _refuse_first(
            (
                not adapters if not everything else bool(adapters) and on is None,
                "give adapters or folders, or `--all`",
                "see `adapt test --help`",
            ),
            (
                everything and on is None and (sign or bool(key)),
                "`--sign` and `--key` are for adapters that are named, or for `--on`",
                "name some",
            ),
            (on is not None and base is not None, "`--base` and `--on` both name the base to ask on", "leave out one"),
            (on is not None and base_alone, "`--base-alone` holds a base to the recording on another one", "omit it"),
            (on is not None and runner is not None, "`--runner` tests adapters on their own base", "omit `--on`"),
            (key is not None and not sign, "`--key` chooses the key of `--sign`", "add `--sign`"),
            (
                statement is not None and (everything or len(adapters) != 1),
                "`--statement` is about one build",
                "name one adapter",
            ),
            (task is not None and runner is None, "`--task` is for `--runner`", "add `--runner lm-eval` or `pytest`"),
            (runner is not None and everything, "`--runner` tests the adapters that you name", "leave out `--all`"),
            (runner is not None and sign, "a runner's result cannot be signed", "sign the verdict without `--runner`"),
        )
        question = TestQuestion(
            on=base_of(base if on is None else on),
            is_other_base=on is not None,
            dtype=dtype,
            load_in=load_in,
            contract=_contract(tests),
            rules=read_rules(path_of(rules)) if rules is not None else None,
            bounds=dict(bounds or {}),
            base_alone=base_alone,
            budget_s=budget,
            again=again,
        )
        library = self.session.project_library
        tester = Tester(library, self.session)
        signer = signing_key(self.session, key, password) if sign else None
        if everything and on is not None:
            subjects = self._newest([str(name) for name in adapters])
        else:
            subjects = [subject_of(library, text_of(adapter)) for adapter in adapters]
        for subject in subjects if sign else ():
            ensure_can_be_stated(subject)
        if on is not None:
            results = tester.on_other_base(subjects, question)
        elif runner is not None:
            from adapterhub.api.steps.contracts.running import run_on

            results = [run_on(library, one, question, runner, _path(task), bars=self.reports) for one in subjects]
        elif everything:
            results = tester.verdicts(list(library.installed()), question)
        else:
            results = [tester.verdict(subject, question) for subject in subjects]
        self._write_results(results, junit, statement)
        if signer is not None:
            self._sign_results(subjects, results, signer)
        if on is not None:
            results = worst_first(results)
        for result in results if on is None else ():  # the outcome tells what a warning would
            for warning in result.warnings:
                self.reports.warn(f"`{shown(result.label, 200)}`: {warning}")
        return Verdicts(tuple(results), worst(results, requires=require))

    def _newest(self, names: Sequence[str]) -> list[ContractSubject]:
        """Return the newest version of each installed name that has a contract, and note the names without one.

        `names` are parts of names, or patterns.
        """
        from adapterhub.api.searching import search_installed
        from adapterhub.api.steps.contracts.testing import newest_with_contract, subject_of_build

        wanted = {row.full_name for row in search_installed(self.session, None, names=names)}
        builds = [one for one in self.session.project_library.installed() if one.full_name in wanted]
        found, without = newest_with_contract(builds)
        if without:
            listed = ", ".join(f"`{shown(name)}`" for name in without[:_NAMED])
            more = f" and {len(without) - _NAMED} more" if len(without) > _NAMED else ""
            self.reports.note(f"the newest version has no contract: {listed}{more}")
        return [subject_of_build(build) for build in found]

    def _write_results(self, results: Sequence[Tested], junit: StrPath | None, statement: StrPath | None) -> None:
        from adapterhub.formats.contract.results import junit as junit_text
        from adapterhub.formats.contract.results import statement as statement_of

        if junit is not None:
            _write(junit, junit_text(results))
        if statement is not None:
            if (made := statement_of(results[0])) is not None:
                _write(statement, json.dumps(made) + "\n")
            else:
                self.reports.warn(f"no statement was written: {results[0].verdict} says nothing to state")

    def _sign_results(self, subjects: Sequence[ContractSubject], results: Sequence[Tested], signer: SigningKey) -> None:
        from adapterhub.api.steps.contracts.recording import state_result

        for subject, result in zip(subjects, results, strict=True):
            path, label = state_result(self, subject, result, signer), shown(result.label, 200)
            if path is None:
                self.reports.warn(f"`{label}`: nothing was signed: {result.verdict} says nothing to state")
            else:
                self.reports.note(f"signed the result of `{label}` with {signer.name}: {path}")

    @property
    def contracts(self) -> Contracts:
        """The contracts of adapters: `record`, `results`, `export`, and your own `policy`."""
        return Contracts(self)


@parsed
class Contracts:
    """Records contracts, shows their signed results, exports them for other tools and sets the policy for tests."""

    def __init__(self, library: OpenedLibrary) -> None:
        self._opened, self._session = library, library.session

    @extra_named("`Library.contracts.record`")
    def record(
        self,
        adapter: AdapterLike,
        *,
        examples: StrPath | None = None,
        tests: StrPath | None = None,
        form: PromptForm | None = None,
        count: GoldenCount = 20,
        max_new_tokens: GoldenTokens | None = None,
        margin: Margin = 0.05,
        digests: bool = False,
        vectors: bool = False,
        allow_secrets: bool = False,
        base: BaseLike | None = None,
        dtype: LoadPrecision = "auto",
        detached: StrPath | None = None,
    ) -> RecordedContract:
        """Ask an adapter, and record what it answers: in a new build, or in the folder that `adapter` is.

        Args:
            adapter: a spec, a build or a folder.
            examples: inputs as JSON Lines, `{"prompt": …}` each, with a `completion` where you know what you want.
            tests: inputs and demands as a `tests.toml`; one of the two is needed.
            form: the prompt form; default: that of the plan, then that of the build, then `raw`.
            count: how many answers to keep.
            max_new_tokens: length of an answer; default: that of the prompt form, or 64.
            margin: leave out answers that a change of so many nats would flip.
            digests: record digests in place of prompts and answers.
            vectors: also record a classifier's vectors.
            allow_secrets: record texts that look private.
            base: the base to record on; default: the one that it was made for.
            dtype: precision of the base in memory.
            detached: write the contract into this folder, beside a release that is out.

        Returns:
            `.contract`, `.build` (the new one), `.left_out`, `.warnings`, `.path`.

        Raises:
            NotFound: there is no such file.
            Incompatible: adapter and base answer alike, or too few answers are left.
            NotAllowed: a text looks private.
        """
        from adapterhub.api.steps.contracts.recording import (
            LeftOutInput,
            RecordedContract,
            plan_from,
            put_contract,
            where_recorded,
        )
        from adapterhub.api.steps.contracts.testing import Models, base_for, subject_of
        from adapterhub.core.disk.files import write_durably
        from adapterhub.formats.contract.contract import ENCODERS, IMAGE, private_texts
        from adapterhub.formats.prompts.form import RAW, PromptForm
        from adapterhub.inference.contracts.recording import record

        library, reports, plan = self._session.project_library, self._opened.reports, plan_from(examples, tests)
        subject = subject_of(library, text_of(adapter))
        known = base_for(library, subject, base_of(base))
        draws = library.bases.pipeline_of(known) is not None
        kind = IMAGE if draws else subject.kind()
        if not draws and (plan.image is not None or any(one.seed is not None for one in plan.goldens)):
            raise UsageProblem(
                f"`[image]` and `seed` are for a pipeline that draws, and base `{known.label}` is one model",
                hint="`adapt base add FOLDER --as NAME` registers a pipeline",
            )
        own = subject.manifest.prompt if subject.manifest else None
        form = form or plan.prompt or own or (PromptForm(form="text") if kind in ENCODERS else RAW)
        if max_new_tokens is not None:
            form = replace(form, max_new_tokens=max_new_tokens)
        if draws and form != RAW:
            problem = f"a pipeline takes its prompt unchanged, and this one is asked as {form.label}"
            raise UsageProblem(problem, hint="pass `--prompt raw`")
        with (
            Models(library).of(subject, known, dtype=dtype, kind=kind) as (model, tokenizer, _verdict),
            reports.steps(f"record {subject.name}", unit="prompts") as progress,
        ):
            where = where_recorded(subject, known, model, tokenizer)
            if draws:
                from adapterhub.inference.contracts.images import record_images

                found = record_images(model, plan, where, count=count, progress=progress)
            else:
                kind = kind or ("seq2seq" if model.config.is_encoder_decoder else "causal")
                how: dict[str, Any] = {"count": count, "margin": margin, "vectors": vectors, "progress": progress}
                found = record(model, tokenizer, plan, form, where, kind=kind, **how)
        if not allow_secrets and (private := private_texts(found.contract)):
            title = "some texts look private, and a contract is published with its build. Nothing was recorded"
            raise NotAllowed(problem_list(title, private, 8), hint="change the inputs, or pass `--allow-secrets`")
        contract = found.contract.without_texts() if digests else found.contract
        path, build, created = put_contract(library, subject, contract, _path(detached))
        if digests and detached is not None:
            write_durably(
                path.with_name(f"{path.name.removesuffix('.jsonl')}.private.jsonl"), found.contract.to_bytes()
            )
        for warning in found.warnings:
            reports.warn(warning)
        return RecordedContract(
            name=build.full_name if build else subject.name,
            version=build.manifest.version if build else subject.version,
            contract=contract,
            left_out=tuple(LeftOutInput(*one) for one in found.left_out),
            warnings=tuple(found.warnings),
            path=path,
            build=build,
            created=created,
        )

    def results(self, *adapters: AdapterLike, fetch: bool = False) -> Sequence[SignedResults]:
        """Return the signed results that the library has on installed builds, each verified now.

        Args:
            adapters: the installed adapters.
            fetch: take those at the servers of their namespaces first.

        Returns:
            Of each build `.results`, the latest first, with `.result`, `.signer` and `.standing`; `.refusals` of files
            that do not count.

        Raises:
            NotFound: an adapter is not here.
        """
        from adapterhub.api.steps.contracts.recording import fetch_results, signed_results
        from adapterhub.api.steps.contracts.testing import subject_of

        library = self._session.project_library
        subjects = [subject_of(library, text_of(adapter)) for adapter in adapters]
        for subject in subjects if fetch else ():
            fetch_results(self._session, library, subject)
        return [signed_results(library, subject) for subject in subjects]

    def export(
        self,
        adapter: AdapterLike,
        folder: StrPath,
        *,
        tests: Contract | StrPath | None = None,
        base: BaseLike | None = None,
    ) -> EmittedTask:
        """Write the goldens of a contract as a task of lm-evaluation-harness; nothing is run.

        Args:
            adapter: a spec, a build or a folder.
            folder: where the task's YAML file and its JSON Lines go.
            tests: a contract, or a file of one, instead of the adapter's own.
            base: the base whose chat template frames the prompts; only the form `chat` needs it.

        Returns:
            `.task` is the name, `.files` are the paths, `.command` runs the task in that folder.

        Raises:
            NotFound: the adapter, or the file of a contract, is not here.
            CouldNotTell: there is no contract.
            Incompatible: the tool cannot ask these goldens.
        """
        from adapterhub.api.steps.contracts.running import emit_task
        from adapterhub.api.steps.contracts.testing import subject_of

        library = self._session.project_library
        subject = subject_of(library, text_of(adapter))
        return emit_task(library, subject, path_of(folder), contract=_contract(tests), on=base_of(base))

    def policy(
        self,
        policy: TestsPolicy | None = None,
        *,
        max_age: str | None = None,
        bounds: Mapping[str, float] | None = None,
        reset: bool = False,
    ) -> Standards:
        """Your own defaults for tests, after the changes that are given; a project may ask for more, never for less.

        Args:
            policy: what becomes of a build without a PASS: `off`, `warn` or `require`; default: as before.
            max_age: how old a signed result may be, such as `90d`; default: as before.
            bounds: the loosest bounds of any test, such as `{"same": 0.95}`; others stay as before.
            reset: forget what was set before.

        Raises:
            UsageProblem: a value is impossible; nothing was changed.
        """
        from adapterhub.library.own_settings import OwnSettings, set_own_tests

        root = self._opened.root
        if policy is None and not bounds and max_age is None and not reset:
            return OwnSettings(root).read()
        return set_own_tests(root, policy, max_age=max_age, bounds=bounds, reset=reset)


def _refuse_first(*cases: tuple[bool, str, str]) -> None:
    """Raise the first problem that is there; each has its hint.

    Raises:
        UsageProblem: one is there.
    """
    for is_there, problem, hint in cases:
        if is_there:
            raise UsageProblem(problem, hint=hint)


def _path(place: StrPath | None) -> Path | None:
    return None if place is None else path_of(place)


def _contract(tests: Contract | StrPath | None) -> Contract | None:
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.formats.contract.reader import read_contract

    return tests if tests is None or isinstance(tests, Contract) else read_contract(path_of(tests))


def _write(path: StrPath, text: str) -> None:
    from adapterhub.core.disk.files import output_place, write_durably

    write_durably(output_place(path_of(path)), text.encode())


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Adapted:
    """An adapter that is loaded and checked. Call it with a prompt: it answers greedily, in its own prompt form.

    `model` is the base in memory with the adapter on it, `base` the base's name. `contract` is None without one.
    """

    name: str
    version: str
    folder: Path
    base: str
    base_verdict: str
    form: PromptForm
    contract: Contract | None
    model: Any
    tokenizer: Any

    def __call__(self, question: str, *, max_new_tokens: int | None = None) -> str:
        """Return the answer to one question, without special tokens and stop texts."""
        return self.answers([question], max_new_tokens=max_new_tokens)[0]

    def answers(self, questions: Sequence[str], *, max_new_tokens: int | None = None) -> list[str]:
        """Return the answers to several questions, which share a pass.

        Raises:
            UsageProblem: a question does not suit the prompt form, or is too long for the base.
        """
        from adapterhub.inference.generation import Question, Writing, write

        limit = max_new_tokens or self.form.max_new_tokens
        asked = [Question(text=text, form=self.form, max_new_tokens=limit) for text in questions]
        return [answer.text for answer in write(self.model, self.tokenizer, asked, Writing())]

    def __repr__(self) -> str:
        return f"<{self.name} {self.version} on {self.base}, asked as {self.form.label}>"


@contextlib.contextmanager
def adapted(library: Library, adapter: str, *, on: BaseLike | None = None, dtype: str = "auto") -> Iterator[Adapted]:
    """Put an adapter, a spec or a folder, on its base; all its files are checked as `attach` does.

    Raises:
        AdapterNotFound, NotFound: there is no such adapter.
        BaseNotFound: the base is not on this machine.
        BaseMismatch, RefusedAdapter, DigestMismatch: the adapter does not fit the base, or is damaged.
        Incompatible: it is an encoder's, which writes no text.
    """
    from adapterhub.api.steps.contracts.testing import Models, base_for, subject_of
    from adapterhub.core.errors import Incompatible
    from adapterhub.formats.prompts.form import RAW

    with extra_named("testing an adapter"):
        subject = subject_of(library, adapter)
        if (kind := subject.kind()) is not None:
            raise Incompatible(
                f"`{subject.label}` writes no text: its contract is of the kind `{kind}`",
                hint="`adapt test` tests contracts of every kind",
            )
        record, contract = base_for(library, subject, base_of(on)), subject.contract()
        own = contract.prompt if contract else subject.manifest.prompt if subject.manifest else None
        with Models(library).of(subject, record, dtype=dtype) as (model, tokenizer, verdict):
            yield Adapted(
                name=subject.name,
                version=subject.version,
                folder=subject.folder,
                base=record.label,
                base_verdict=verdict,
                form=own or RAW,
                contract=contract,
                model=model,
                tokenizer=tokenizer,
            )
