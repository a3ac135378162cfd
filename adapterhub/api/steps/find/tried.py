"""What a trial of candidates finds: the losses of each build, and which lead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from adapterhub.formats.documented import Documented


@dataclass(frozen=True, slots=True, kw_only=True)
class NotTried(Documented):
    """A candidate that was not tried, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Documented):
    """How a build answers the examples. Losses are in nats a token of the answers, on the first `examples`.

    `share` is the part of the gap between the base alone and the best that the build closes: 1 for the best, below 0
    if the base alone does better.
    """

    loss: Annotated[float, "loss in nats a token"]
    base_loss: Annotated[float, "of the base alone, on the same examples"]
    share: Annotated[float | None, "of the gap between base and best; null where no build beats the base"]
    examples: Annotated[int, "how many were asked: 1 for those that the first round left behind"]
    form: Annotated[str, "the prompt form that did better, such as `raw`"]
    leads: Annotated[bool, "as good as the best: within 1 % of the gap, and better than the base"]
    cpu_s: Annotated[float, "CPU seconds, loading included"]
    is_cached: Annotated[bool, "every loss was measured earlier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedBuild(Documented):
    """A build of a search, with its trial."""

    name: str
    version: str
    digest: str
    spec: Annotated[str, "selects exactly this build"]
    tried: Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried(Documented):
    """What a search found, best first by trial; `best` is None where no build beats the base alone."""

    query: str
    base: str
    base_loss: Annotated[float | None, "of the base alone on all examples; null: there was nothing to try"]
    examples: int
    best: Annotated[str | None, "the name of the first that leads; null: the base alone does better"]
    results: tuple[TriedBuild, ...]
    left_out: tuple[NotTried, ...] = ()
