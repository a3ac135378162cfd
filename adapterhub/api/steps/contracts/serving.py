"""`serve --test`: what a server is given passes its contract on the served base before the engine starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adapterhub.api.steps.contracts.gating import settle
from adapterhub.api.steps.contracts.subjects import Models, subject_of_build
from adapterhub.api.steps.contracts.testing import Question, verdict_on, verdicts_on_merge
from adapterhub.core.specs import BaseSpec
from adapterhub.library.merged import is_bare_merge

if TYPE_CHECKING:
    from adapterhub.core.arguments import Testing
    from adapterhub.formats.contract.results import Tested
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.reporting import Bars, Reporter


@dataclass(slots=True)
class ServeTest:
    """Tests each build on `base`, which stays in memory meanwhile; `results` has the verdicts. A kept one is free."""

    library: Library
    base: BaseRecord
    testing: Testing
    bars: Bars
    out: Reporter
    results: list[Tested] = field(default_factory=list)
    models: Models = field(init=False)

    def __post_init__(self) -> None:
        self.models = Models(self.library.bases)

    def __call__(self, build: Installed) -> tuple[str, ...]:
        """Test a build; a merge without a contract by the lines that bind it.

        Raises:
            BehaviourChanged, CouldNotTell: it does not pass, or has no contract, and `testing` is `keep`.
        """
        question = Question(on=BaseSpec.parse(self.base.alias or str(self.base.path)))
        found: list[Tested] = []
        if is_bare_merge(build):
            found = verdicts_on_merge(self.library, build, question, bars=self.bars, models=self.models)
        if not found:
            subject = subject_of_build(build)
            found = [verdict_on(self.library, subject, question, bars=self.bars, models=self.models)]
        self.results += found
        for result in found:
            settle(result, self.testing, self.out, ending="It is not served")
        return ()
