"""The result of one check of one build against a contract, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from adapterhub.core.display import html_table

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
class TestedCase:
    """One line of a contract, checked. Losses are in nats per token; `effect` is for an image, as in `Tested`."""

    __test__ = False  # for pytest, which takes the name for a test's

    id: str
    kind: str
    verdict: Verdict
    same: bool | None = None
    loss: float | None = None
    recorded_loss: float | None = None
    base_loss: float | None = None
    retention: float | None = None
    effect: float | None = None
    text: str | None = None
    recorded_text: str | None = None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """The JSON value."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Tested:
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
    digest: str = ""
    weights: str = ""
    contract: str = ""
    rules: str = ""
    verdict: Verdict
    reason: str = ""
    detail: str = ""
    base: str = ""
    base_weights: str = ""
    base_state: str = ""
    base_verdict: str = ""
    dtype: str = ""
    load_in: str = ""
    base_alone: bool = False
    engine: str = ""
    same: float | None = None
    retention: float | None = None
    retention_worst: float | None = None
    kl: float | None = None
    cosine: float | None = None
    effect: float | None = None
    goldens: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    cases: Sequence[TestedCase] = ()
    bounds: Mapping[str, float] = field(default_factory=dict, hash=False)
    broken: Sequence[str] = ()
    warnings: Sequence[str] = ()
    cpu_seconds: float = 0.0
    is_cached: bool = False

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
    def label(self) -> str:
        """The build in words."""
        return f"{self.name} {self.version}".strip()

    def to_json(self) -> dict[str, Any]:
        """The JSON value."""
        value = asdict(self) | {"cases": [case.to_json() for case in self.cases]}
        value |= {"metrics": dict(self.metrics)}
        return value | {"bounds": dict(self.bounds), "broken": list(self.broken), "warnings": list(self.warnings)}

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
