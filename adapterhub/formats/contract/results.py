"""The result of one check of one build against a contract, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal

from adapterhub.core.display import html_table
from adapterhub.core.errors import shown
from adapterhub.formats.documented import Documented

Verdict = Literal["PASS", "CHANGED", "UNKNOWN", "NONE"]
"""`PASS`: every bound held. `CHANGED`: one did not. `UNKNOWN`: no verdict is possible. `NONE`: there is no contract."""

REASONS: Final[Mapping[str, str]] = {
    "no-base": "the weights of the base are not on this machine",
    "other-tokenizer": "the tokenizer makes other tokens of the prompts than at the recording",
    "no-template": "the base has no chat template, and the contract asks in its chat",
    "other-scheduler": "the pipeline has another scheduler than at the recording",
    "other-template": "the base has another chat template than at the recording",
    "no-gap": "adapter and base were too close at the recording to tell them apart",
    "too-long": "a prompt has more tokens than this base has room for",
    "budget": "the time for one verdict is over",
    "memory": "the memory does not suffice",
    "kind": "this kind of contract cannot be checked here",
    "limits": "the adapter's chat template passes a limit",
    "other-contract": "the build holds digests alone, and the given contract does not have them",
    "no-texts": "the contract holds digests alone; its prompts are needed to check it",
    "refused": "the build cannot be put on this base",
    "no-bound": "a task has no bound of its own; give one with `--bound METRIC=X`",
    "no-tests": "the runner ran no test",
}
"""Why no verdict is possible, with a sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestedCase(Documented):
    """One line of a contract, checked; losses are in nats per token. `effect` is for an image, as in `Tested`."""

    __test__ = False  # for pytest, which takes the name for a test's

    id: str
    kind: Annotated[str, "`golden`, `expect`, `never` or `leave_alone`; `test` of pytest"]
    verdict: Annotated[Verdict, "`PASS` or `CHANGED`; `UNKNOWN` for a skipped test"]
    same: Annotated[bool | None, "whether the answer is the recorded one, token for token"] = None
    loss: float | None = None
    recorded_loss: float | None = None
    base_loss: Annotated[float | None, "that of the base alone, at the recording"] = None
    retention: float | None = None
    effect: Annotated[float | None, "of an image: share of what the adapter changes in it that is kept"] = None
    text: Annotated[str | None, "the answer now, where it was written"] = None
    recorded_text: str | None = None
    problem: Annotated[str, "empty unless it is CHANGED"] = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Tested(Documented):
    """The verdict on one build. `broken` says which bounds were broken, with number, bound and the worst example.

    `same` and `retention` are shares; `kl` (nats) and `cosine` belong to classifiers and encoders, and `effect` to
    images: the share of what the adapter changes in them. None is what was not measured. `goldens` counts those with
    different prompts. `metrics` are those of a runner, as `task/metric`. `is_cached` results were measured earlier.
    `rules` is the digest of a project's rules that were checked with the contract. `base_state` is the digest of all
    that decides what the base answers, its settings and tokenizer too; `base_alone` says that it was measured as well.
    """

    __test__ = False

    name: str
    version: str = ""
    digest: Annotated[str, "of its manifest; empty for a folder"] = ""
    weights: Annotated[str, "digest of its weights"] = ""
    contract: Annotated[str, "digest of the contract; empty without one"] = ""
    rules: Annotated[str, "digest of the project's `tests-never` that were checked, too; empty without any"] = ""
    verdict: Annotated[Verdict, "`PASS`, `CHANGED`, `UNKNOWN` or `NONE` (there is no contract)"]
    reason: Annotated[str, "one word for UNKNOWN"] = ""
    detail: Annotated[str, "the reason in a sentence"] = ""
    base: Annotated[str, "the base that was asked"] = ""
    base_weights: Annotated[str, "its digest"] = ""
    base_state: Annotated[str, "digest of all that decides what it answers: weights, settings, tokenizer, template"] = (
        ""
    )
    base_verdict: Annotated[str, "how it compares with the base that the adapter was made for"] = ""
    dtype: Annotated[str, "its precision"] = ""
    load_in: str = ""
    base_alone: Annotated[bool, "whether the base was measured, too"] = False
    engine: Annotated[str, "the programs that answered, with versions"] = ""
    same: Annotated[float | None, "share of the goldens with the recorded answer"] = None
    retention: Annotated[float | None, "share of what the adapter gained over its base"] = None
    retention_worst: float | None = None
    kl: Annotated[float | None, "for classifiers: mean KL divergence of the labels, in nats"] = None
    cosine: Annotated[float | None, "for vectors: the least cosine"] = None
    effect: Annotated[float | None, "for images: share of what the adapter changes in them that is kept"] = None
    goldens: Annotated[int, "different prompts with a recorded answer"] = 0
    metrics: Annotated[Mapping[str, float], "what a runner measured, as `task/metric`"] = field(
        default_factory=dict, hash=False
    )
    cases: Sequence[TestedCase] = ()
    bounds: Annotated[Mapping[str, float], "the bounds that held"] = field(default_factory=dict, hash=False)
    broken: Annotated[Sequence[str], "each broken bound with its number"] = ()
    warnings: Sequence[str] = ()
    cpu_seconds: float = 0.0
    is_cached: Annotated[bool, "whether an earlier result of the very same question is shown"] = False

    @property
    def passed(self) -> bool:
        """Whether the verdict is PASS."""
        return self.verdict == "PASS"

    @property
    def kept(self) -> str:
        """What a PASS shows, in words."""
        if self.goldens:
            return f"{'answers' if self.effect is None else 'draws'} as recorded on {self.goldens} prompts"
        return f"keeps {len(self.cases)} {'line' if len(self.cases) == 1 else 'lines'}"

    @property
    def row(self) -> str:
        """One row of a table: what kept how much."""
        same = "-" if self.same is None else f"{self.same:.0%}"
        if self.effect is not None:
            return f"{shown(self.name):20}  same {same:>5}  effect {self.effect:>10.3f}"
        retention = "-" if self.retention is None else f"{self.retention:.3f}"
        return f"{shown(self.name):20}  same {same:>5}  retention {retention:>7}"

    @property
    def label(self) -> str:
        """The build in words."""
        return f"{self.name} {self.version}".strip()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tested:
        """The result that `to_json` wrote.

        Raises:
            TypeError, KeyError: it was written by another version.
        """
        cases = tuple(TestedCase(**case) for case in value["cases"])
        return cls(**{**value, "cases": cases, "broken": tuple(value["broken"])})

    def named(self, name: str, version: str) -> Tested:
        """The same result under the name that the build has here."""
        return replace(self, name=name, version=version)

    def __repr__(self) -> str:
        why = self.reason or "; ".join(self.broken[:1])
        return f"<{self.verdict}: {self.label}, {self.goldens} goldens{f', {why}' if why else ''}>"

    def _repr_html_(self) -> str:
        rows = [(case.id, case.verdict, case.loss, case.recorded_loss, case.problem) for case in self.cases]
        return html_table((f"{self.label}: {self.verdict}", "verdict", "loss", "recorded", "problem"), rows)
