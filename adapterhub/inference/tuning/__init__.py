"""Finding the weights of a merge by trying them on a few examples, without gradients.

    examples = read_examples(Path("examples.jsonl"))
    tuned = tune(model, tokenizer, ["./legal-qa", "./tables"], examples)
    merge([…weight=tuned.weights[0]…])

The idea is LoraHub's (Huang et al., 2023, arXiv:2307.13269), and so are the bounds of the weights and the penalty on
their size: a handful of numbers is found from a handful of examples, where training would learn these by heart. The
search is CMA-ES (Hansen, 2016, arXiv:1604.00772) by the package `cma`. Adapters are attached once and only their
weights change between trials, so a trial costs one pass of the model over the examples.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import CouldNotTell, UsageProblem
from adapterhub.core.extras import extra_named
from adapterhub.inference.tuning._examples import Example, Turn, read_examples
from adapterhub.inference.tuning._losses import Encoded, Losses, encode

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.loader import AdapterLike, Attached
    from adapterhub.library.library import Library

__all__ = ["Example", "Tuned", "Turn", "read_examples", "tune"]

LARGEST_WEIGHT: Final = 1.5
DEFAULT_BUDGET: Final = 60
DEFAULT_L1: Final = 0.05
_FIRST_STEP: Final = 0.3
_DECIMALS: Final = 4
"""Of the weights that are tried, so that those reported are the very ones that were, and read well in a recipe."""

ENOUGH_TO_HOLD_OUT: Final = 8
"""From this many different examples on, half of them are kept away from the search."""

TuneProgress = Callable[[int, int], None]
"""Called with the number of trials done and the number of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The weights that were found, and losses (mean cross entropy of a wanted token, in nats) on the reported examples.

    `loss_before` is that of equal shares that sum to 1, `loss_after` that of `weights`; `single_losses` are those of
    each adapter alone with weight 1, `base_loss` that of none. Where `is_held_out`, the `reported` examples are others
    than the `searched` ones; else there were too few to part and all losses are those of the search itself.
    `evaluations` counts the weights that were tried.
    """

    weights: tuple[float, ...]
    loss_before: float
    loss_after: float
    single_losses: tuple[float, ...]
    base_loss: float
    evaluations: int
    searched: int
    reported: int
    is_held_out: bool


def tune(  # noqa: PLR0913 - the last three are those of `attach` and the bar
    model: Any,  # noqa: ANN401 - transformers
    tokenizer: Any,  # noqa: ANN401 - transformers
    adapters: Sequence[AdapterLike],
    examples: Sequence[Example],
    *,
    budget: int = DEFAULT_BUDGET,
    seed: int = 0,
    l1: float = DEFAULT_L1,
    library: Library | str | Path | None = None,
    base: BaseSpec | str | None = None,
    progress: TuneProgress | None = None,
) -> Tuned:
    """The weights, each within ±1.5, whose sum of adapters answers the examples best.

    `model` is a causal language model without adapter, in evaluation mode; it comes back as it was. What is made
    smallest is the loss plus `l1` times the mean size of a weight. `budget` trials are made at most: equal shares and
    each adapter alone first, then a search from the best of these, so the result is never worse than they are on the
    examples searched with. The same seed gives the same weights on the same machine. `library` and `base` are as in
    `attach`.

    Raises:
        UsageProblem: fewer than two adapters, an option out of range, a model of another kind.
        MissingExtra: `cma` is not installed.
        Malformed: examples that this base cannot run; every one is named.
        CouldNotTell: the loss is no number.
        BaseMismatch, MergeRefused and what else `attach` raises.
    """
    _check(model, adapters, examples, budget=budget, seed=seed, l1=l1)
    search = _optimiser()
    searched, reported = _parted(encode(tokenizer, model, examples), seed)
    from adapterhub.inference.loader import attach

    count = len(adapters)
    equal = (round(1 / count, _DECIMALS),) * count
    singles = [tuple(float(i == j) for j in range(count)) for i in range(count)]
    with attach(model, list(adapters), weights=equal, library=library, base=base) as attached:
        trials = _Trials(attached, Losses(searched, model), l1=l1, budget=budget, progress=progress)
        for weights in (equal, *singles):
            trials.run(weights)
        if not math.isfinite(trials.least):
            raise CouldNotTell("the loss on the examples is no finite number, with whichever adapter")
        search(trials, seed)
        held_out = Losses(reported or searched, model)

        def loss(weights: Sequence[float]) -> float:
            attached.weigh(weights)
            return held_out.mean(attached.model)

        with attached.model.disable_adapter():
            base_loss = held_out.mean(attached.model)
        return Tuned(
            weights=trials.best,
            loss_before=loss(equal),
            loss_after=loss(trials.best),
            single_losses=tuple(loss(weights) for weights in singles),
            base_loss=base_loss,
            evaluations=trials.done,
            searched=len(searched),
            reported=len(reported or searched),
            is_held_out=bool(reported),
        )


class _Trials:
    """Weights tried so far, and the best of them."""

    def __init__(
        self, attached: Attached, losses: Losses, *, l1: float, budget: int, progress: TuneProgress | None
    ) -> None:
        self.best: tuple[float, ...] = ()
        self.least = math.inf
        self.done = 0
        self.budget = budget
        self._attached = attached
        self._losses = losses
        self._l1 = l1
        self._progress = progress or (lambda _done, _all: None)

    def run(self, weights: Sequence[float]) -> float:
        """What is to be made smallest, at these weights, rounded."""
        tried = tuple(round(float(w), _DECIMALS) + 0.0 for w in weights)  # no -0.0
        self._attached.weigh(tried)
        value = self._losses.mean(self._attached.model) + self._l1 * sum(map(abs, tried)) / len(tried)
        if not self.best or value < self.least:
            self.best, self.least = tried, value
        self.done += 1
        self._progress(self.done, self.budget)
        return value


def _optimiser() -> Callable[[_Trials, int], None]:
    """What searches from the best trial on until the budget is used up or nothing changes any more.

    Raises:
        MissingExtra: its package is not installed.
    """
    with extra_named("finding weights"):
        import cma
    import numpy as np

    def search(trials: _Trials, seed: int) -> None:
        generator = np.random.default_rng(seed)
        options = {
            "bounds": [-LARGEST_WEIGHT, LARGEST_WEIGHT],
            # A generator of its own: by default cma seeds the one that the whole program shares.
            "randn": lambda *shape: generator.standard_normal(shape),
            "seed": math.nan,
            "verbose": -9,
            "verb_log": 0,
        }
        evolution = cma.CMAEvolutionStrategy(list(trials.best), _FIRST_STEP, options)
        while trials.done < trials.budget and not evolution.stop():
            asked = evolution.ask()[: trials.budget - trials.done]
            values = [min(trials.run(weights), _WORST) for weights in asked]
            if len(asked) == evolution.popsize:
                evolution.tell(asked, values)

    return search


_WORST: Final = 1e9
"""Stands for a loss that is no number: a rank among others is all that the search looks at."""


def _parted(encoded: Sequence[Encoded], seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """Examples to search with and to report on; all and none where there are too few. Equal ones stay together."""
    different = list(dict.fromkeys(encoded))
    if len(different) < ENOUGH_TO_HOLD_OUT:
        return list(encoded), []
    random.Random(seed).shuffle(different)  # noqa: S311 - a repeatable choice, no secret
    chosen = set(different[: (len(different) + 1) // 2])
    return [e for e in encoded if e in chosen], [e for e in encoded if e not in chosen]


def _check(
    model: Any,  # noqa: ANN401 - transformers
    adapters: Sequence[AdapterLike],
    examples: Sequence[Example],
    *,
    budget: int,
    seed: int,
    l1: float,
) -> None:
    """Whether all this can be searched with."""
    fewest = len(adapters) + 2
    if len(adapters) < 2:  # noqa: PLR2004 - one against another
        raise UsageProblem("nothing to weigh against each other: give at least two adapters")
    if not examples:
        raise UsageProblem("no examples to try the weights on")
    if budget < fewest:
        raise UsageProblem(f"budget {budget}, expected at least {fewest}: equal shares, each alone, and one more")
    if not (math.isfinite(l1) and l1 >= 0):
        raise UsageProblem(f"l1 {l1}, expected a number of at least 0")
    if seed < 0:
        raise UsageProblem(f"seed {seed}, expected at least 0")
    if getattr(model.config, "is_encoder_decoder", False):
        raise UsageProblem("the base reads with an encoder; weights are tuned on causal language models only")
    if model.training:
        raise UsageProblem("the model is in training mode, where losses are random", hint="model.eval()")
