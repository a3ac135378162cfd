"""`sync --test`: every locked build passes its contract on the project's base before a folder changes.

A merge, which has no contract of its own, keeps the lines of its inputs' contracts that bind every merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adapterhub.api.steps.contracts.subjects import Models
from adapterhub.api.steps.contracts.testing import Question, verdicts_on, verdicts_on_merge
from adapterhub.core.errors import BehaviourChanged, CouldNotTell, problem_list, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.library.merged import is_bare_merge
from adapterhub.projects.builds import locked_build
from adapterhub.projects.values import LockedMerge

if TYPE_CHECKING:
    from adapterhub.core.arguments import Testing
    from adapterhub.formats.contract.results import Tested
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.reporting import Bars, Reporter
    from adapterhub.projects.values import Lock, Locked


@dataclass(slots=True)
class SyncTest:
    """Tests the builds of a lock. `results` has the verdicts. It refuses no build for want of a contract, but names it.

    The policy `tests` of a project is what demands a contract.
    """

    library: Library
    testing: Testing
    bars: Bars
    out: Reporter
    results: list[Tested] = field(default_factory=list)

    def __call__(self, lock: Lock, entries: Sequence[Locked]) -> None:
        """Test the builds, each base loaded once; a kept result of the very same question is free.

        Raises:
            BehaviourChanged, CouldNotTell: one does not pass, and `testing` is `keep`; names all of these.
        """
        found = [(entry, build) for entry in entries if (build := locked_build(self.library, entry)) is not None]
        question, models = Question(on=base_of_lock(self.library, lock)), Models(self.library.bases)
        builds = [build for _, build in found]
        self.results += verdicts_on(self.library, builds, question, bars=self.bars, models=models)
        for entry, build in found:
            if isinstance(entry, LockedMerge) and is_bare_merge(build):
                self._test_merge(build, question, models)
        told = {result.digest for result in self.results}
        if bare := [build for build in builds if build.manifest.digest not in told]:
            names = ", ".join(f"`{shown(build.full_name)}` {build.manifest.version}" for build in bare)
            self.out.note(f"not tested, for want of a contract: {names}")
        if not (failed := [result for result in self.results if not result.passed]):
            return
        lines = [shown(_line(result), 400) for result in failed]
        if self.testing == "warn":
            for line in lines:
                self.out.warn(line)
            return
        message = problem_list("these builds do not pass their contracts. No folder was changed", lines)
        hint = "`--test=warn` only warns"
        if any(result.verdict == "CHANGED" for result in failed):
            raise BehaviourChanged(message, hint=hint)
        raise CouldNotTell(message, hint=hint)

    def _test_merge(self, merge: Installed, question: Question, models: Models) -> None:
        try:
            self.results += verdicts_on_merge(self.library, merge, question, bars=self.bars, models=models)
        except CouldNotTell as error:
            self.out.note(f"not tested: {shown(merge.full_name)} {merge.manifest.version}, {error.message}")


def base_of_lock(library: Library, lock: Lock) -> BaseSpec | None:
    """The base of a project by its name here; None where the lock names none."""
    if lock.base is None:
        return None
    here = (record for record in library.bases.list() if record.fingerprint.weights == lock.base.weights)
    return BaseSpec.parse(next((record.alias for record in here if record.alias), lock.base.spec))


def _line(result: Tested) -> str:
    why = "; ".join(result.broken) if result.verdict == "CHANGED" else f"{result.reason}: {result.detail}"
    return f"{result.label}: {result.verdict}, {why}"
