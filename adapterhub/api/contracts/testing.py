"""Behaviour contracts from Python: record what an adapter answers, and test whether it still answers so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

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
    parsed,
    path_of,
)
from adapterhub.core.errors import UsageProblem
from adapterhub.core.extras import extra_named
from adapterhub.library.store.catalog import AdapterLike

if TYPE_CHECKING:
    from adapterhub.api.steps.contracts.emitting import EmittedTask
    from adapterhub.api.steps.contracts.recording import RecordedContract
    from adapterhub.api.steps.contracts.stating import SignedResults
    from adapterhub.api.steps.contracts.testing import Question
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.formats.contract.results import Tested
    from adapterhub.formats.prompts.form import PromptForm


@parsed
class WithContracts(OpenedLibrary):
    """Everything about behaviour contracts."""

    @extra_named("`Library.test`")
    def test(
        self,
        adapter: AdapterLike,
        *,
        on: BaseLike | None = None,
        dtype: LoadPrecision = "auto",
        load_in: LoadIn | None = None,
        tests: Contract | StrPath | None = None,
        rules: StrPath | None = None,
        bounds: Mapping[str, float] | None = None,
        base_alone: bool = False,
        budget: Budget = 120.0,
        again: bool = False,
        sign: bool = False,
        key: str | None = None,
        password: str | None = None,
        runner: RunnerName | None = None,
        task: StrPath | None = None,
    ) -> Tested:
        """Test whether an adapter still answers as its contract records.

        Args:
            adapter: a spec, a build or a folder.
            on: the base to ask on; default: the one that it was made for.
            dtype: precision of the base in memory.
            load_in: `4bit` or `8bit` packs the base's linear layers.
            tests: a contract, or a file of one, instead of the build's own.
            rules: a file of `never` and `leave_alone` lines to hold it to, too; default: `tests-never` of the project.
            bounds: tighter bounds by name, such as `{"same": 1.0}`.
            base_alone: also measure the base, and compare it with the recording.
            budget: CPU seconds that the verdict may take.
            again: ask again, whatever results are kept.
            sign: sign the result, and write it beside the build; UNKNOWN and NONE are none.
            key: name of the key; default: ADAPTERHUB_KEY, else your only key.
            password: of the key; default: ADAPTERHUB_PASSWORD.
            runner: let an installed tool test, `lm-eval` or `pytest`; its results are not kept.
            task: for the tool: a task of lm-eval instead of the contract's goldens, or tests of pytest.

        Returns:
            `.verdict` is PASS, CHANGED, UNKNOWN or NONE; `.reason`, `.broken`, `.same`, `.retention`, `.metrics`,
            `.cases`.

        Raises:
            NotFound: the adapter, the base or a file is not here.
            DigestMismatch, Malformed: the contract is damaged.
            BaseMismatch: the adapter does not fit the base.
            UsageProblem: the runner is not installed, or has no such task.
            EngineFailed: the runner ended without a result.
        """
        from adapterhub.api.steps.contracts.stating import ensure_can_be_stated, state_result
        from adapterhub.api.steps.contracts.subjects import subject_of
        from adapterhub.api.steps.contracts.testing import verdict_on
        from adapterhub.api.steps.keys import signing_key
        from adapterhub.formats.contract.rules import read_rules

        question = _question(on, dtype, load_in, tests, bounds, base_alone=base_alone, budget=budget, again=again)
        if rules is not None:
            question = replace(question, rules=read_rules(path_of(rules)))
        subject = subject_of(self, text_of(adapter))
        if runner is not None:
            from adapterhub.api.steps.contracts.running import Runner, run_on

            if sign:
                raise UsageProblem("a runner's result cannot be signed", hint="sign the verdict without `runner`")
            return run_on(self, subject, question, Runner(name=runner, task=_path(task)), bars=self.reports)
        if sign:
            ensure_can_be_stated(subject)
        signer = signing_key(self.session, key, password) if sign else None
        result = verdict_on(self, subject, question, bars=self.reports)
        if signer is not None:
            state_result(self, subject, result, signer)
        return result

    def test_results(self, adapter: AdapterLike, *, fetch: bool = False) -> SignedResults:
        """The signed results that the library has on an installed build, each verified now.

        Args:
            adapter: the installed adapter.
            fetch: take those at the servers of its namespace first.

        Returns:
            `.results`, the latest first, with `.result`, `.signer` and `.standing`; `.refusals` of files that do not
            count.

        Raises:
            NotFound: the adapter is not here.
        """
        from adapterhub.api.steps.contracts.stating import fetch_results, signed_results
        from adapterhub.api.steps.contracts.subjects import subject_of

        subject = subject_of(self, text_of(adapter))
        if fetch:
            fetch_results(self.session, self, subject)
        return signed_results(self, subject)

    def emit_task(
        self,
        adapter: AdapterLike,
        folder: StrPath,
        *,
        tests: Contract | StrPath | None = None,
        on: BaseLike | None = None,
    ) -> EmittedTask:
        """Write the goldens of a contract as a task of lm-evaluation-harness; nothing is run.

        Args:
            adapter: a spec, a build or a folder.
            folder: where the task's YAML file and its JSON Lines go.
            tests: a contract, or a file of one, instead of the adapter's own.
            on: the base whose chat template frames the prompts; only the form `chat` needs it.

        Returns:
            `.task` is the name, `.files` are the paths, `.command` runs the task in that folder.

        Raises:
            NotFound: the adapter, or the file of a contract, is not here.
            CouldNotTell: there is no contract.
            Incompatible: the tool cannot ask these goldens.
        """
        from adapterhub.api.steps.contracts.emitting import emit_task
        from adapterhub.api.steps.contracts.subjects import subject_of

        subject = subject_of(self, text_of(adapter))
        return emit_task(self, subject, path_of(folder), contract=_contract(tests), on=base_of(on))

    @extra_named("`Library.test_all`")
    def test_all(
        self,
        *,
        on: BaseLike | None = None,
        dtype: LoadPrecision = "auto",
        load_in: LoadIn | None = None,
        budget: Budget = 120.0,
        again: bool = False,
    ) -> Sequence[Tested]:
        """Test every installed build that has a contract; a base is loaded once for all its builds.

        Args:
            on: the base to ask on; default: the one that each was made for.
            dtype: precision of the bases in memory.
            load_in: `4bit` or `8bit` packs the bases' linear layers.
            budget: CPU seconds that each verdict may take.
            again: ask again, whatever results are kept.

        Returns:
            One result for each build, as `test` gives it.
        """
        from adapterhub.api.steps.contracts.testing import verdicts_on

        question = _question(on, dtype, load_in, None, None, base_alone=False, budget=budget, again=again)
        return verdicts_on(self, list(self.installed()), question, bars=self.reports)

    @extra_named("`Library.record_contract`")
    def record_contract(
        self,
        adapter: AdapterLike,
        *,
        examples: StrPath | None = None,
        tests: StrPath | None = None,
        prompt: PromptForm | None = None,
        count: GoldenCount = 20,
        max_new_tokens: GoldenTokens | None = None,
        margin: Margin = 0.05,
        digests: bool = False,
        vectors: bool = False,
        allow_secrets: bool = False,
        on: BaseLike | None = None,
        dtype: LoadPrecision = "auto",
        into: StrPath | None = None,
    ) -> RecordedContract:
        """Ask an adapter, and record what it answers: in a new build, or in the folder that `adapter` is.

        Args:
            adapter: a spec, a build or a folder.
            examples: inputs as JSON Lines, `{"prompt": …}` each, with a `completion` where you know what you want.
            tests: inputs and demands as a `tests.toml`; one of the two is needed.
            prompt: the prompt form; default: that of the plan, else of the build, else `raw`.
            count: how many answers to keep.
            max_new_tokens: length of an answer; default: that of the prompt form, else 64.
            margin: leave out answers that a change of so many nats would flip.
            digests: record digests in place of prompts and answers.
            vectors: also record a classifier's vectors.
            allow_secrets: record texts that look private.
            on: the base to ask on; default: the one that it was made for.
            dtype: precision of the base in memory.
            into: write the contract into this folder, beside a release that is out.

        Returns:
            `.contract`, `.build` (the new one), `.left_out`, `.warnings`, `.path`.

        Raises:
            NotFound: there is no such file.
            Incompatible: adapter and base answer alike, or too few answers are left.
            NotAllowed: a text looks private.
        """
        from adapterhub.api.steps.contracts.recording import Recipe, plan_from, record_contract
        from adapterhub.api.steps.contracts.subjects import subject_of

        recipe = Recipe(
            plan=plan_from(_path(examples), _path(tests)),
            form=prompt,
            count=count,
            max_new_tokens=max_new_tokens,
            margin=margin,
            as_digests=digests,
            vectors=vectors,
            allow_secrets=allow_secrets,
            on=base_of(on),
            dtype=dtype,
            into=_path(into),
        )
        return record_contract(self, subject_of(self, text_of(adapter)), recipe, bars=self.reports)


def _path(place: StrPath | None) -> Path | None:
    return None if place is None else path_of(place)


def _contract(tests: Contract | StrPath | None) -> Contract | None:
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.formats.contract.reading import read_contract

    return tests if tests is None or isinstance(tests, Contract) else read_contract(path_of(tests))


def _question(
    on: BaseLike | None,
    dtype: str,
    load_in: LoadIn | None,
    tests: Contract | StrPath | None,
    bounds: Mapping[str, float] | None,
    *,
    base_alone: bool,
    budget: Budget,
    again: bool,
) -> Question:
    from adapterhub.api.steps.contracts.testing import Question
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.formats.contract.reading import read_contract

    contract = tests if tests is None or isinstance(tests, Contract) else read_contract(path_of(tests))
    return Question(
        on=base_of(on),
        dtype=dtype,
        load_in=load_in,
        contract=contract,
        bounds=dict(bounds or {}),
        base_alone=base_alone,
        budget_s=budget,
        again=again,
    )
