"""Finds the weights of a merge by the drift of its parents' contracts.

The log-odds of the recorded tokens change smoothly with the weights, so few trials suffice: cubic radial functions
(Powell, 1992) go through those of all trials, and the next trial is where they are nearest to the recordings. The
recordings give the log-odds without any adapter. A surface through log-odds is right farther than one through the value
that is minimised, as each token has its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import CouldNotTell
from adapterhub.formats.contract.contract import MOST_ODDS, Contract, unpacked_odds
from adapterhub.inference.contracts.answers import TUNE, AnswerRow, asked_again, scores
from adapterhub.inference.tuning import (
    DEFAULT_BUDGET,
    DEFAULT_L1,
    LARGEST_WEIGHT,
    Tuned,
    TuneProgress,
    ensure_tunable,
    equal_weights,
    penalty,
    rounded_weights,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.loader import AdapterLike, Attached
    from adapterhub.library.library import Library

    Array = NDArray[np.float64]

REACH: Final = 0.5
"""How far from the best trial a search looks, as the spread of what it draws; then near what that found."""

DRAWN: Final = 400
LEAST_STEP: Final = 0.02
LEAST_GAIN: Final = 0.001
PATIENCE: Final = 3
"""Trials in turn that gain less than such a share of the value, after which a search ends."""

POWER: Final = 3
"""Cubic functions of the distance."""


def can_tune(contracts: Mapping[str, Contract]) -> bool:
    """Return whether each contract has the log-odds of its answers."""
    return all(golden.odds is not None for one in contracts.values() for golden in one.distinct)


def tune_by_drift(  # noqa: PLR0913 - those of `tune`
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapters: Sequence[AdapterLike],
    contracts: Mapping[str, Contract],
    *,
    budget: int = DEFAULT_BUDGET,
    l1: float = DEFAULT_L1,
    library: Library | str | Path | None = None,
    base: BaseSpec | str | None = None,
    progress: TuneProgress | None = None,
) -> Tuned:
    """Return the weights, each within ±1.5, with which the sum of the adapters drifts least from the contracts.

    It minimises the mean of the squared drifts from each contract plus `l1` times the mean size of a weight, over all
    goldens: a few weights do not overfit hundreds of tokens, and half of them would be too few. Otherwise as
    `inference.tuning.tune`; also accepts models with an encoder. The search draws nothing.

    Raises:
        CouldNotTell: a contract cannot be asked with this tokenizer, or the numbers are not finite.
        UsageProblem, BaseMismatch, MergeRefused: as for `tune`.
    """
    from adapterhub.inference.loader import attach

    ensure_tunable(model, adapters, budget=budget, l1=l1)
    asked, count = _Asked.of(contracts, model, tokenizer), len(adapters)
    singles = [tuple(float(i == j) for j in range(count)) for i in range(count)]
    with attach(model, list(adapters), weights=equal_weights(count), library=library, base=base) as attached:
        trials = _Trials(attached, asked, l1=l1, budget=budget, progress=progress or (lambda _done, _all: None))
        equal, *alone = (trials.run(weights) for weights in (equal_weights(count), *singles))
        if not math.isfinite(trials.best.value):
            raise CouldNotTell(
                "the log-odds of the recorded answers are not finite numbers with any of the adapters",
                hint="`adapt verify` finds numbers that are not finite",
            )
        trials.search()
    goldens, best = len(asked.rows), trials.best
    return Tuned(
        weights=best.weights,
        loss_before=asked.loss(equal.odds),
        loss_after=asked.loss(best.odds),
        single_losses=tuple(asked.loss(one.odds) for one in alone),
        base_loss=asked.loss(asked.plain),
        drift_before=asked.drift(equal.odds),
        drift_after=asked.drift(best.odds),
        evaluations=trials.done,
        searched=goldens,
        reported=goldens,
        is_held_out=False,
        is_better=asked.drift(best.odds) < asked.drift(equal.odds),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked:
    """Goldens in tokens, with their recorded log-odds, one number a token: with their adapter, and without.

    `scale` makes the squares of changes add up to the mean of the squared drifts from each contract.
    """

    rows: list[AnswerRow]
    recorded: Array
    plain: Array
    scale: Array

    @classmethod
    def of(
        cls,
        contracts: Mapping[str, Contract],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> _Asked:
        """Return the goldens of contracts by the name of the adapter.

        Raises:
            CouldNotTell: one cannot be asked here, or its adapter changes nothing.
        """
        import numpy as np

        rows: list[AnswerRow] = []
        found: list[tuple[Array, Array, Array]] = []
        for name, contract in contracts.items():
            each = contract.distinct
            rows += asked_again(name, contract, each, model, tokenizer)
            recorded, plain = (
                np.array([x for g in each for x in unpacked_odds(getattr(g, key) or "", len(g.tokens))])
                for key in ("odds", "base_odds")
            )
            effect = float(np.sqrt(np.mean((recorded - plain) ** 2)))
            if not effect:
                raise CouldNotTell(
                    f"the adapter of the contract of `{name}` changes nothing; it has no drift", hint=TUNE
                )
            found.append((recorded, plain, np.full(len(recorded), 1 / (effect * math.sqrt(len(recorded))))))
        recorded, plain, scale = (np.concatenate(part) for part in zip(*found, strict=True))
        return cls(rows=rows, recorded=recorded, plain=plain, scale=scale / math.sqrt(len(contracts)))

    def odds(self, model: Any) -> Array:
        """Return the log-odds now; not numbers where a model's are not finite."""
        import numpy as np

        found = scores(model, self.rows, lambda _done: None)
        held = [one.odds or [math.nan] * len(row.answer) for one, row in zip(found, self.rows, strict=True)]
        return np.clip(np.concatenate(held), -MOST_ODDS, MOST_ODDS)

    def drift(self, odds: Array) -> float:
        """Return the root of the mean of the squared drifts from each contract; infinite if it is not a number."""
        found = math.sqrt(float((((odds - self.recorded) * self.scale) ** 2).sum()))
        return found if math.isfinite(found) else math.inf

    def loss(self, odds: Array) -> float:
        """Mean cross entropy of a recorded token, in nats."""
        import numpy as np

        return float(np.logaddexp(0, -odds).mean())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trial:
    weights: tuple[float, ...]
    odds: Array
    value: float


class _Trials:
    """The trials so far, and the search for better weights."""

    def __init__(self, attached: Attached, asked: _Asked, *, l1: float, budget: int, progress: TuneProgress) -> None:
        self._attached, self._asked, self._l1, self._budget = attached, asked, l1, budget
        self._progress = progress
        self._tried: list[_Trial] = []

    @property
    def done(self) -> int:
        """The number of trials."""
        return len(self._tried)

    @property
    def best(self) -> _Trial:
        """The trial of the least value, the first of equal ones."""
        return min(self._tried, key=lambda trial: trial.value)

    def run(self, weights: Sequence[float]) -> _Trial:
        """Try weights after rounding."""
        tried = rounded_weights(weights)
        self._attached.weigh(tried)
        odds = self._asked.odds(self._attached.model)
        self._tried.append(_Trial(weights=tried, odds=odds, value=self._value(tried, odds)))
        self._progress(self.done, self._budget)
        return self._tried[-1]

    def _value(self, weights: Sequence[float], odds: Array) -> float:
        return self._asked.drift(odds) ** 2 + penalty(weights, self._l1)

    def search(self) -> None:
        """Try what the surface through the trials puts nearest to the recordings, until that gains nothing."""
        import numpy as np

        draw, lost = np.random.default_rng(0), 0
        while self.done < self._budget and lost < PATIENCE:
            here = self.best
            weights = self._promising(here, draw)
            if np.abs(np.subtract(weights, here.weights)).max() < LEAST_STEP:
                return
            gain = here.value - self.run(weights.tolist()).value
            lost = 0 if gain > LEAST_GAIN * here.value else lost + 1

    def _promising(self, here: _Trial, draw: np.random.Generator) -> Array:
        """Return the weights of the least value on the surface, of many drawn at all distances from the best trial."""
        import numpy as np

        tried, odds = self._points()
        start, count = np.array(here.weights), len(here.weights)
        best, least = start, math.inf
        for scale in (REACH, REACH / 3, REACH / 10):
            drawn = best + scale * draw.standard_normal((DRAWN, count)) * draw.random((DRAWN, 1))
            drawn = np.clip(drawn, -LARGEST_WEIGHT, LARGEST_WEIGHT)
            far = np.sqrt(((drawn[:, None] - tried) ** 2).sum(-1)).min(1) > LEAST_STEP
            drawn = drawn[far] if far.any() else drawn
            missing = (_surface(tried, odds, drawn) - self._asked.recorded) * self._asked.scale
            values = (missing**2).sum(1) + self._l1 * np.abs(drawn).mean(1)
            at = int(values.argmin())
            if values[at] < least:
                best, least = drawn[at], float(values[at])
        return best

    def _points(self) -> tuple[Array, Array]:
        """Return the known weights [points, adapters] and log-odds [points, tokens], those without adapters first."""
        import numpy as np

        known = [one for one in self._tried if math.isfinite(one.value)]
        weights = np.array([(0.0,) * len(known[0].weights), *(one.weights for one in known)])
        return weights, np.stack([self._asked.plain, *(one.odds for one in known)])


def _surface(tried: Array, odds: Array, at: Array) -> Array:
    """Return the log-odds [rows of `at`, tokens] on the smooth surface through the points (radial functions)."""
    import numpy as np

    def distances(one: Array, other: Array) -> Array:
        found: Array = np.sqrt(((one[:, None] - other) ** 2).sum(-1)) ** POWER
        return found

    points, plane = len(tried), tried.shape[1] + 1
    system = np.zeros((points + plane, points + plane))
    system[:points, :points] = distances(tried, tried)
    system[:points, points:] = np.column_stack([np.ones(points), tried])
    system[points:, :points] = system[:points, points:].T
    shares = np.linalg.lstsq(system, np.concatenate([odds, np.zeros((plane, odds.shape[1]))]), rcond=1e-10)[0]
    found: Array = np.column_stack([distances(at, tried), np.ones(len(at)), at]) @ shares
    return found
