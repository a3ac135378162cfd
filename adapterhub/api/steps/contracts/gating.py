"""What other commands do with contracts: let a build in, keep the result of a merge or a resize, or refuse it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.steps.contracts.subjects import ContractSubject, Models, subject_of_build
from adapterhub.api.steps.contracts.testing import Question, verdict_on, verdict_on_model
from adapterhub.core.errors import BehaviourChanged, CouldNotTell, problem_list, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.reading import contract_in
from adapterhub.formats.contract.results import Tested

if TYPE_CHECKING:
    from adapterhub.core.arguments import Testing
    from adapterhub.distribution.finding import FoundAdapter
    from adapterhub.formats.release import Release
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.reporting import Bars, Reporter
    from adapterhub.weights.recipes.combination import Combination, Ingredient


def contract_gate(
    library: Library, testing: Testing | None, question: Question | None = None, *, bars: Bars, out: Reporter
) -> ContractGate | None:
    """The gate for what comes into a library; None where no test is asked for."""
    return None if testing is None else ContractGate(library, question or Question(), testing, bars, out)


@dataclass(slots=True)
class ContractGate:
    """Tests builds before they come in or go out; `results` has the verdicts so far.

    Its bases stay in memory between builds.
    """

    library: Library
    question: Question
    testing: Testing
    bars: Bars
    out: Reporter
    results: list[Tested] = field(default_factory=list)
    models: Models = field(init=False)

    def __post_init__(self) -> None:
        self.models = Models(self.library.bases)

    def __call__(self, folder: Path, release: Release) -> None:
        """Test the staged files of a release.

        Raises:
            BehaviourChanged: it is CHANGED.
            CouldNotTell: no verdict is possible, or it has no contract.
        """
        subject = ContractSubject(folder=folder, label=release.full_name, manifest=release.manifest)
        self._settle(subject, self.question, ending="Nothing was installed")

    def before_sending(self, build: Installed) -> None:
        """Test an installed build that is about to be published, and the base alone against its contract.

        Raises:
            BehaviourChanged, CouldNotTell: as above; also for a contract that the base alone passes.
        """
        self._settle(subject_of_build(build), replace(self.question, base_alone=True), ending="Nothing was sent")

    def _settle(self, subject: ContractSubject, question: Question, *, ending: str) -> None:
        result = verdict_on(self.library, subject, question, bars=self.bars, models=self.models)
        self.results.append(result)
        settle(result, self.testing, self.out, ending=ending)


def settle(
    result: Tested, testing: Testing, out: Reporter, *, ending: str, hint: str = "`--test=warn` only warns"
) -> None:
    """Say that a build passed, or refuse it; `warn` only says so.

    Raises:
        BehaviourChanged, CouldNotTell: it did not pass; the message ends with `ending`.
    """
    if result.passed:
        out.note(f"{result.label}: PASS, {result.kept}")
        return
    if result.verdict == "CHANGED":
        text, reasons = f"`{shown(result.label, 200)}` has changed", list(result.broken)
    elif result.verdict == "NONE":
        text, reasons = f"`{shown(result.label, 200)}` has no contract", []
    else:
        text, reasons = (
            f"no verdict is possible for `{shown(result.label, 200)}`",
            [f"{result.reason}: {result.detail}"],
        )
    if testing == "warn":
        out.warn("; ".join([text, *(shown(reason, 400) for reason in reasons)]))
        return
    message = problem_list(f"{text}. {ending}", [shown(reason, 400) for reason in reasons])
    if result.verdict == "CHANGED":
        raise BehaviourChanged(message, hint=hint)
    raise CouldNotTell(message, hint=hint)


# ---------------------------------------------------------------- results of merges
@dataclass(slots=True)
class MergeTest:
    """Tests what a merge, a resize or a fusion made, against the contracts of its parents.

    The goldens of a merge's parents inform; their `never` and `leave_alone` lines bind. With `carries`, the one
    parent's contract is the result's own, and all of it binds. Without `measures` no numbers go into the manifest,
    which then is the one that a recipe records. A result that `is_model` is asked without an adapter. All parents
    share one budget.
    """

    library: Library
    parents: Sequence[Ingredient | FoundAdapter]
    question: Question
    bars: Bars
    carries: bool = False
    measures: bool = True
    is_model: bool = False
    results: list[Tested] = field(default_factory=list)

    def __call__(self, folder: Path) -> Mapping[str, float]:
        """Test the new folder; returns the measured shares for the manifest, `test_same_<parent>` and so on.

        Raises:
            BehaviourChanged: a line that binds is broken; the message has a row for each parent.
            CouldNotTell: no parent has a contract, or one cannot be checked.
        """
        models = Models(self.library.bases)
        contracts = [(parent, contract) for parent in self.parents if (contract := contract_in(parent.folder))]
        if not contracts:
            raise CouldNotTell(
                "no parent has a contract, so there is nothing to test. Nothing was written",
                hint="`adapt contract record NAME` records one",
            )
        for parent, contract in contracts:
            self.results.append(
                self._verdict(folder, parent, contract if self.carries else binding(contract), models=models)
            )
        self._refuse()
        if self.carries or not self.measures:
            return {}
        return {
            f"test_{what}_{result.name}": float(f"{number:.3g}")
            for result in self.results
            for what, number in (("same", result.same), ("retention", result.retention), ("effect", result.effect))
            if number is not None
        }

    def _verdict(
        self, folder: Path, parent: Ingredient | FoundAdapter, contract: Contract, *, models: Models
    ) -> Tested:
        name, question = name_of(parent), replace(self.question, contract=contract, budget_s=self.budget_left_s)
        if self.is_model:
            return verdict_on_model(self.library, folder, name, contract, question, bars=self.bars)
        if question.on is None:
            question = replace(question, on=_base_of(self.library, parent))
        subject = ContractSubject(folder=folder, label=name, manifest=None)
        return verdict_on(self.library, subject, question, bars=self.bars, models=models)

    @property
    def budget_left_s(self) -> float:
        """The CPU seconds that the verdicts so far leave to the next one."""
        return max(0.0, self.question.budget_s - sum(result.cpu_seconds for result in self.results))

    def _refuse(self) -> None:
        broken = [(result, text) for result in self.results for text in self.binding_problems(result)]
        rows = [result.row for result in self.results]
        if broken:
            what = "the result has changed" if self.carries else "the merge breaks a rule of its parents"
            lines = [*rows, *(f"{result.name}: {shown(text, 400)}" for result, text in broken)]
            raise BehaviourChanged(problem_list(f"{what}. Nothing was written", lines))
        unknown = [result for result in self.results if result.verdict == "UNKNOWN" and result.reason != "no-gap"]
        if unknown:
            lines = [f"{result.name}: {result.reason}: {shown(result.detail, 400)}" for result in unknown]
            raise CouldNotTell(problem_list("no verdict is possible for the result. Nothing was written", lines))

    def binding_problems(self, result: Tested) -> list[str]:
        """What counts against the result: everything for the same adapter, the binding lines for a merge."""
        if self.carries:
            return list(result.broken)
        wrong = [case for case in result.cases if case.kind != "golden" and case.verdict == "CHANGED"]
        return [f"`{case.kind}` line `{case.id}`: {case.problem}" for case in wrong]


def binding(contract: Contract) -> Contract:
    """The contract as it holds for a merge: without the `expect` lines, which demand the parent's task."""
    return replace(contract, expects=contract.nevers)


def name_of(parent: Ingredient | FoundAdapter) -> str:
    """The bare name of a parent, for a row or a key."""
    return Path(parent.label.partition("==")[0]).name


def _base_of(library: Library, parent: Ingredient | FoundAdapter) -> BaseSpec | None:
    record = library.bases.by_fingerprint(parent.base.fingerprint) if parent.base.fingerprint else None
    return BaseSpec.parse(record.alias) if record and record.alias else None


@dataclass(slots=True)
class WrittenTest:
    """Tests what a command writes for other programs before it gets its name: a model, or an adapter for the base `on`.

    `results` has a verdict for each adapter in it that has a contract.
    """

    library: Library
    bars: Bars
    is_model: bool = False
    on: BaseSpec | None = None
    results: list[Tested] = field(default_factory=list)

    def __call__(self, folder: Path, adapters: Sequence[FoundAdapter]) -> None:
        """Test the new folder; one adapter in it must pass its whole contract, several as for a merge.

        Raises:
            BehaviourChanged, CouldNotTell: as for a merge.
        """
        test = MergeTest(
            self.library,
            adapters,
            Question(on=self.on),
            self.bars,
            carries=len(adapters) == 1 and adapters[0].weight == 1,
            is_model=self.is_model,
            results=self.results,
        )
        test(folder)


def merge_test(library: Library, combination: Combination, on: BaseSpec | None = None, *, bars: Bars) -> MergeTest:
    """The test of a merge, on its parents' base unless another is named."""
    return MergeTest(library, tuple(combination.leaves()), Question(on=on), bars)


def same_adapter_test(library: Library, combination: Combination, *, bars: Bars) -> MergeTest:
    """The test of an adapter in another form, such as at a lower rank."""
    return MergeTest(library, tuple(combination.leaves()), Question(), bars, carries=True)
