"""What other commands do with contracts: let a build in, keep the result of a merge or a resize, or refuse it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.steps.contracts.testing import (
    ContractSubject,
    Models,
    TestQuestion,
    subject_of_build,
    verdict_on,
    verdict_on_model,
    verdicts_on,
    verdicts_on_merge,
)
from adapterhub.core.errors import AdapterHubError, BehaviourChanged, CouldNotTell, problem_list, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.contract.results import Tested
from adapterhub.library.merged import is_bare_merge
from adapterhub.library.store.catalog import Installed
from adapterhub.projects.builds import locked_build
from adapterhub.projects.locking import DropIn
from adapterhub.projects.values import LockedAdapter

if TYPE_CHECKING:
    from adapterhub.core.arguments import Testing
    from adapterhub.core.specs import AdapterName
    from adapterhub.distribution.finding import FoundAdapter
    from adapterhub.formats.release import Release
    from adapterhub.library.library import Library
    from adapterhub.projects.reporting import Bars, Reporter
    from adapterhub.projects.values import Lock, Locked
    from adapterhub.weights.recipes.combination import Combination, Ingredient


@dataclass(slots=True)
class ContractGate:
    """Holds builds to their contracts before they come in, go out, are linked, are served or replace another.

    `results` has the verdicts so far. Bases stay in memory between builds. Under `warn` everything passes, and a
    warning names what would not.
    """

    library: Library
    testing: Testing
    out: Reporter
    question: TestQuestion = field(default_factory=TestQuestion)
    results: list[Tested] = field(default_factory=list)
    models: Models = field(init=False)

    def __post_init__(self) -> None:
        self.models = Models(self.library.bases)

    def __call__(self, folder: Path, release: Release) -> None:
        """Test the staged files of a release before they appear in the library.

        Raises:
            BehaviourChanged, CouldNotTell: as `admit`.
        """
        subject = ContractSubject(folder=folder, label=release.full_name, manifest=release.manifest)
        self.admit(subject, undone="Nothing was installed")

    def admit(self, build: ContractSubject | Installed, *, undone: str, merges: bool = False) -> None:
        """Test a build, with `merges` one without a contract by the lines of its parents that bind it.

        Raises:
            BehaviourChanged: it is CHANGED, or the base alone passes where that was asked for, too.
            CouldNotTell: no verdict is possible, or it has no contract. The message ends with `undone`.
        """
        found: list[Tested] = []
        if merges and isinstance(build, Installed) and is_bare_merge(build):
            found = verdicts_on_merge(self.library, build, self.question, bars=self.out, models=self.models)
        self.results += found
        for result in found or [self.ask(build, self.question)]:
            settle(result, self.testing, self.out, ending=undone)

    def ask(self, build: ContractSubject | Installed, question: TestQuestion) -> Tested:
        """The verdict on a build, which `results` keeps."""
        subject = subject_of_build(build) if isinstance(build, Installed) else build
        result = verdict_on(self.library, subject, question, bars=self.out, models=self.models)
        self.results.append(result)
        return result

    def admit_all(self, builds: Sequence[Installed], question: TestQuestion, *, undone: str) -> None:
        """Test the builds that have a contract, and merges by the lines that bind them; name those without any.

        Raises:
            BehaviourChanged, CouldNotTell: some do not pass; names all of these.
        """
        self.results += verdicts_on(self.library, builds, question, bars=self.out, models=self.models)
        for build in builds:
            if is_bare_merge(build):
                try:
                    self.results += verdicts_on_merge(self.library, build, question, bars=self.out, models=self.models)
                except CouldNotTell as error:
                    self.out.note(f"not tested: {shown(build.full_name)} {build.manifest.version}, {error.message}")
        told = {result.digest for result in self.results}
        if bare := [build for build in builds if build.manifest.digest not in told]:
            names = ", ".join(f"`{shown(build.full_name)}` {build.manifest.version}" for build in bare)
            self.out.note(f"not tested, for want of a contract: {names}")
        settle_all(self.results, self.testing, self.out, undone=undone)


def settle_all(results: Sequence[Tested], testing: Testing, out: Reporter, *, undone: str) -> None:
    """Refuse what did not pass, all in one message; `warn` only says so.

    Raises:
        BehaviourChanged, CouldNotTell: some did not pass.
    """
    failed = [result for result in results if not result.passed]
    lines = [shown(_line(result), 400) for result in failed]
    if testing == "warn":
        for line in lines:
            out.warn(line)
    elif failed:
        message = problem_list(f"these builds do not pass their contracts. {undone}", lines)
        kind = BehaviourChanged if any(result.verdict == "CHANGED" for result in failed) else CouldNotTell
        raise kind(message, hint="`--test=warn` only warns")


def _line(result: Tested) -> str:
    why = "; ".join(result.broken) if result.verdict == "CHANGED" else f"{result.reason}: {result.detail}"
    return f"{result.label}: {result.verdict}, {why}"


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
    question: TestQuestion
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
            TestQuestion(on=self.on),
            self.bars,
            carries=len(adapters) == 1 and adapters[0].weight == 1,
            is_model=self.is_model,
            results=self.results,
        )
        test(folder)


def merge_test(library: Library, combination: Combination, on: BaseSpec | None = None, *, bars: Bars) -> MergeTest:
    """The test of a merge, on its parents' base unless another is named."""
    return MergeTest(library, tuple(combination.leaves()), TestQuestion(on=on), bars)


def same_adapter_test(library: Library, combination: Combination, *, bars: Bars) -> MergeTest:
    """The test of an adapter in another form, such as at a lower rank."""
    return MergeTest(library, tuple(combination.leaves()), TestQuestion(), bars, carries=True)


Bring = Callable[["Lock", Sequence["Locked"]], object]
"""Brings builds of a lock into the library."""


def admit_locked(gate: ContractGate, lock: Lock, entries: Sequence[Locked]) -> None:
    """Test the builds of a lock on its base; one without a contract is named, and comes in.

    The policy `tests` of a project is what demands a contract.

    Raises:
        BehaviourChanged, CouldNotTell: one does not pass; names all of these.
    """
    builds = [build for entry in entries if (build := locked_build(gate.library, entry)) is not None]
    question = replace(gate.question, on=base_of_lock(gate.library, lock))
    gate.admit_all(builds, question, undone="No folder was changed")


def base_of_lock(library: Library, lock: Lock) -> BaseSpec | None:
    """The base of a project by its name here; None where the lock names none."""
    if lock.base is None:
        return None
    here = (record for record in library.bases.list() if record.fingerprint.weights == lock.base.weights)
    return BaseSpec.parse(next((record.alias for record in here if record.alias), lock.base.spec))


@dataclass(slots=True)
class DropIns:
    """Holds newer builds to the contracts of those that they replace; `results` has a verdict for each."""

    gate: ContractGate
    bring: Bring
    results: list[DropIn] = field(default_factory=list)

    def choose(self, before: Lock, after: Lock) -> dict[AdapterName, LockedAdapter]:
        """Of each build that would be replaced, the one to lock: the newer one if it may, else the older one."""
        found: dict[AdapterName, LockedAdapter] = {}
        for new in after.adapters:
            old = before.entries.get(new.key)
            if not isinstance(old, LockedAdapter) or old.digest == new.digest:
                continue
            tested = self._verdict(before, old, after, new)
            one = DropIn(before=old, after=new, tested=tested, kept=tested.passed or self.gate.testing == "warn")
            self.results.append(one)
            found[new.key] = new if one.kept else old
            if not tested.passed:
                self.gate.out.warn(one.line if one.kept else f"not upgraded: {one.line}")
        return found

    def _verdict(self, before: Lock, old: LockedAdapter, after: Lock, new: LockedAdapter) -> Tested:
        library = self.gate.library
        bare = Tested(name=new.name, version=new.version, digest=new.digest, verdict="NONE")
        try:
            self.bring(before, [old])
            self.bring(after, [new])
            was, now = locked_build(library, old), locked_build(library, new)
            if was is None or now is None or (contract := contract_in(was.folder)) is None:
                return bare
            return self.gate.ask(now, TestQuestion(on=base_of_lock(library, after), contract=contract, is_foreign=True))
        except AdapterHubError as error:
            return replace(bare, verdict="UNKNOWN", reason="refused", detail=error.message.splitlines()[0])

    def ensure_taken(self, before: Lock, after: Lock) -> None:
        """Refuse a lock in which a build was replaced by another than those that may take its place.

        Raises:
            BehaviourChanged: names each; the project file may not allow the locked release any more.
        """
        allowed = {(one.after.key, one.after.digest) for one in self.results if one.kept}
        wrong = [
            entry.key
            for entry in after.adapters
            if (old := before.entries.get(entry.key)) is not None
            and old.digest != entry.digest
            and (entry.key, entry.digest) not in allowed
        ]
        if wrong:
            names = ", ".join(f"`{key}`" for key in wrong)
            raise BehaviourChanged(
                f"{names} cannot stay as locked, and what would replace it did not pass. Nothing was changed",
                hint="`--test=warn` takes it; otherwise require the locked release in `adapters.toml`",
            )
