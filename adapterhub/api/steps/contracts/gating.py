"""What other commands do with contracts: let a build in, keep the result of a merge or a resize, or refuse it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.steps.contracts.testing import ContractSubject, Tester, TestQuestion, subject_of_build
from adapterhub.core.errors import AdapterHubError, BehaviourChanged, CouldNotTell, problem_list, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.contract.results import Tested
from adapterhub.library.merged import is_bare_merge
from adapterhub.library.store.catalog import Installed
from adapterhub.projects.builds import base_here, locked_build
from adapterhub.projects.locking import DropIn
from adapterhub.projects.values import LockedAdapter

WITHOUT_TEST = "leave out `--test` to write it in spite of that"

if TYPE_CHECKING:
    from adapterhub.core.arguments import Testing
    from adapterhub.core.specs import AdapterName
    from adapterhub.distribution.finding import FoundAdapter
    from adapterhub.formats.release import Release
    from adapterhub.library.library import Library
    from adapterhub.projects.session import Session
    from adapterhub.projects.values import Lock, Locked
    from adapterhub.weights.recipes.combination import Ingredient


@dataclass(slots=True)
class ContractGate:
    """Holds builds to their contracts before they come in, go out, are linked, are served or replace another.

    `results` has the verdicts so far. Bases stay in memory between builds. Under `warn` everything passes, and a
    warning names what would not.
    """

    session: Session
    testing: Testing
    question: TestQuestion = field(default_factory=TestQuestion)
    results: list[Tested] = field(default_factory=list)
    tester: Tester = field(init=False)

    def __post_init__(self) -> None:
        self.tester = Tester(self.session.library, self.session)

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
            BehaviourChanged: it is CHANGED, or the plain base passes as well where the gate checks that.
            CouldNotTell: no verdict is possible, or it has no contract. The message ends with `undone`.
        """
        found: list[Tested] = []
        if merges and isinstance(build, Installed) and is_bare_merge(build):
            found = self.tester.on_merge(build, self.question)
        self.results += found
        for result in found or [self.ask(build, self.question)]:
            name = shown(result.label, 200)
            texts = {"CHANGED": f"`{name}` has changed", "NONE": f"`{name}` has no contract"}
            text = texts.get(result.verdict, f"no verdict is possible for `{name}`")
            reasons = [shown(reason, 400) for reason in result.why]
            if result.passed:
                self.session.out.note(f"{result.label}: PASS, {result.kept}")
            elif self.testing == "warn":
                self.session.out.warn("; ".join([text, *reasons]))
            else:
                raise _refusal(problem_list(f"{text}. {undone}", reasons), [result])

    def ask(self, build: ContractSubject | Installed, question: TestQuestion) -> Tested:
        """Return the verdict on a build, which `results` keeps."""
        subject = subject_of_build(build) if isinstance(build, Installed) else build
        result = self.tester.verdict(subject, question)
        self.results.append(result)
        return result

    def admit_locked(self, lock: Lock, entries: Sequence[Locked]) -> None:
        """Test the builds of a lock on its base, merges by the lines that bind them; name those without a contract.

        These come in: the policy `tests` of a project is what demands a contract.

        Raises:
            BehaviourChanged, CouldNotTell: some do not pass; names all of these.
        """
        builds = [build for entry in entries if (build := locked_build(self.session.library, entry)) is not None]
        question = replace(self.question, on=base_of_lock(self.session.library, lock))
        self.results += self.tester.verdicts(builds, question)
        for build in filter(is_bare_merge, builds):
            try:
                self.results += self.tester.on_merge(build, question)
            except CouldNotTell as error:
                self.session.out.note(f"not tested: {shown(build.full_name)} {build.manifest.version}, {error.message}")
        told = {result.digest for result in self.results}
        if bare := [build for build in builds if build.manifest.digest not in told]:
            names = ", ".join(f"`{shown(build.full_name)}` {build.manifest.version}" for build in bare)
            self.session.out.note(f"not tested, for want of a contract: {names}")
        failed = [result for result in self.results if not result.passed]
        lines = [shown(f"{one.label}: {one.verdict}, {'; '.join(one.why)}", 400) for one in failed]
        if failed and self.testing != "warn":
            title = "these builds do not pass their contracts. No folder was changed"
            raise _refusal(problem_list(title, lines), failed)
        for line in lines:
            self.session.out.warn(line)


def _refusal(message: str, failed: Sequence[Tested]) -> BehaviourChanged | CouldNotTell:
    kind = BehaviourChanged if any(result.verdict == "CHANGED" for result in failed) else CouldNotTell
    return kind(message, hint="`--test=warn` only warns")


# ---------------------------------------------------------------- results of merges
@dataclass(slots=True)
class MergeTest:
    """Tests what a merge, a resize, a fusion or an export made, against the contracts of its parents.

    The goldens of a merge's parents inform; their `never` and `leave_alone` lines bind. With `carries`, the one
    parent's contract is the result's own, and all of it binds. Without `measures` no numbers go into the manifest,
    which then is the one that a recipe records. A result that `is_model` is asked without an adapter. All parents
    share one budget. `results` has a verdict for each parent that has a contract.
    """

    library: Library
    session: Session
    parents: Sequence[Ingredient | FoundAdapter] = ()
    question: TestQuestion = field(default_factory=TestQuestion)
    carries: bool = False
    measures: bool = True
    is_model: bool = False
    results: list[Tested] = field(default_factory=list)

    def __call__(self, folder: Path, adapters: Sequence[FoundAdapter] = ()) -> Mapping[str, float]:
        """Test the new folder; returns the measured shares for the manifest, `test_same_<parent>` and so on.

        `adapters` are the parents where these were not known before; a single whole one must pass its whole contract.

        Raises:
            BehaviourChanged: a line that binds is broken; the message has a row for each parent.
            CouldNotTell: no parent has a contract, or one cannot be checked.
        """
        tester, parents = Tester(self.library, self.session), adapters or self.parents
        self.carries |= len(adapters) == 1 and adapters[0].weight == 1
        contracts = [(parent, contract) for parent in parents if (contract := contract_in(parent.folder))]
        if not contracts:
            raise CouldNotTell(
                "no parent has a contract, so there is nothing to test. Nothing was written",
                hint="`adapt contract record NAME` records one",
            )
        for parent, contract in contracts:
            bound = contract if self.carries else binding(contract)
            self.results.append(self._verdict(tester, folder, parent, bound))
        self._refuse()
        if self.carries or not self.measures:
            return {}
        return {
            f"test_{what}_{result.name}": float(f"{number:.3g}")
            for result in self.results
            for what, number in (("same", result.same), ("retention", result.retention), ("effect", result.effect))
            if number is not None
        }

    def _verdict(self, tester: Tester, folder: Path, parent: Ingredient | FoundAdapter, contract: Contract) -> Tested:
        left_s = max(0.0, self.question.budget_s - sum(result.cpu_seconds for result in self.results))
        name, question = name_of(parent), replace(self.question, contract=contract, budget_s=left_s)
        if self.is_model:
            return tester.on_model(folder, name, contract, question)
        if question.on is None:
            question = replace(question, on=_base_of(self.library, parent))
        return tester.verdict(ContractSubject(folder=folder, label=name, manifest=None), question)

    def _refuse(self) -> None:
        broken = [(result, text) for result in self.results for text in self._binding_problems(result)]
        rows = [result.row for result in self.results]
        if broken:
            what = "the result has changed" if self.carries else "the merge breaks a rule of its parents"
            lines = [*rows, *(f"{result.name}: {shown(text, 400)}" for result, text in broken)]
            raise BehaviourChanged(problem_list(f"{what}. Nothing was written", lines), hint=WITHOUT_TEST)
        unknown = [result for result in self.results if result.verdict == "UNKNOWN" and result.reason != "no-gap"]
        if unknown:
            lines = [f"{result.name}: {shown(result.why[0], 400)}" for result in unknown]
            raise CouldNotTell(
                problem_list("no verdict is possible for the result. Nothing was written", lines), hint=WITHOUT_TEST
            )

    def _binding_problems(self, result: Tested) -> list[str]:
        """Return the failures of the result: all for the same adapter, the binding lines for a merge."""
        if self.carries:
            return list(result.broken)
        wrong = [case for case in result.cases if case.kind != "golden" and case.verdict == "CHANGED"]
        return [f"`{case.kind}` line `{case.id}`: {case.problem}" for case in wrong]


def binding(contract: Contract) -> Contract:
    """Return the contract as it holds for a merge: without the `expect` lines, which demand the parent's task."""
    return replace(contract, expects=contract.nevers)


def name_of(parent: Ingredient | FoundAdapter) -> str:
    """Return the bare name of a parent, for a row or a key."""
    return Path(parent.label.partition("==")[0]).name


def _base_of(library: Library, parent: Ingredient | FoundAdapter) -> BaseSpec | None:
    record = library.bases.by_fingerprint(parent.base.fingerprint) if parent.base.fingerprint else None
    return BaseSpec.parse(record.alias) if record and record.alias else None


def base_of_lock(library: Library, lock: Lock) -> BaseSpec | None:
    """Return the base of a project by its name here, or a copy that stands for it; None if the lock names none.

    The verdict of a test names the weights that were asked, be they those of the base or of a copy.
    """
    if lock.base is None:
        return None
    record = base_here(library, lock)
    return BaseSpec.parse(record.alias if record else lock.base.spec)


@dataclass(slots=True)
class DropIns:
    """Holds newer builds to the contracts of those that they replace; `results` has a verdict for each.

    `bring` brings builds of a lock into the library.
    """

    gate: ContractGate
    bring: Callable[[Lock, Sequence[Locked]], object]
    results: list[DropIn] = field(default_factory=list)

    def choose(self, before: Lock, after: Lock) -> dict[AdapterName, LockedAdapter]:
        """Choose which build to lock under each name: the newer if it may replace the older, otherwise the older."""
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
                self.gate.session.out.warn(one.line if one.kept else f"not upgraded: {one.line}")
        return found

    def _verdict(self, before: Lock, old: LockedAdapter, after: Lock, new: LockedAdapter) -> Tested:
        library = self.gate.session.library
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
