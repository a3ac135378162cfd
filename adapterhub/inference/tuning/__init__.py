"""Finds the weights of a merge by trying them on a few examples, without gradients.

    examples = read_examples(Path("examples.jsonl"))
    tuned = tune(model, tokenizer, ["./legal-qa", "./tables"], examples)
    merge([…weight=tuned.weights[0]…])

The method is LoraHub's (Huang et al., 2023, arXiv:2307.13269), with its bounds of the weights and its penalty on their
size. A handful of examples is enough for a handful of numbers, where training would overfit. The search is CMA-ES
(Hansen, 2016, arXiv:1604.00772) from the package `cma`. Adapters are attached once and only their weights change
between trials, so a trial costs one pass of the model over the examples.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from adapterhub.core.errors import CouldNotTell, UsageProblem
from adapterhub.core.extras import extra_named
from adapterhub.formats.documented import Documented
from adapterhub.inference.tuning._examples import Example, Turn, read_examples
from adapterhub.inference.tuning._losses import Encoded, Losses, encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.loader import AdapterLike, Attached
    from adapterhub.library.library import Library

__all__ = ["Encoded", "Example", "Losses", "Tuned", "Turn", "encode", "ensure_causal", "read_examples", "tune"]

FEWEST_ADAPTERS: Final = 2
LARGEST_WEIGHT: Final = 1.5
DEFAULT_BUDGET: Final = 60
DEFAULT_L1: Final = 0.05
_FIRST_STEP: Final = 0.3
_DECIMALS: Final = 4
"""Decimals of the trial weights: the reported weights are exactly the ones that ran, and are short in a recipe."""

ENOUGH_TO_HOLD_OUT: Final = 8
"""With at least this many different examples, the search does not use half of them."""

TuneProgress = Callable[[int, int], None]
"""Called with the number of finished trials and the number of all trials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned(
    Documented,
    keys="weights base_loss single_losses loss_before loss_after evaluations searched reported is_held_out is_better",
    title="Tuning",
):
    """The best weights, and losses (mean cross entropy of a target token, in nats) on the reported examples.

    `loss_before` is the loss with equal weights that sum to 1, `loss_after` the loss with `weights`. `single_losses`
    are those of each adapter alone with weight 1, `base_loss` is that of the base. With `is_held_out`, the `reported`
    examples differ from the `searched` ones; without it, there were too few examples to split, and all losses are on
    the examples of the search. `evaluations` is the number of trials. `is_better` says whether `weights` have a lower
    loss than equal ones, which they are where the search found nothing better.
    """

    weights: tuple[float, ...]
    loss_before: Annotated[float, "loss with equal weights"]
    loss_after: Annotated[float, "loss with `weights`"]
    single_losses: Annotated[tuple[float, ...], "loss of each adapter alone"]
    base_loss: Annotated[float, "loss of the plain base"]
    evaluations: Annotated[int, "number of weights that were tried"]
    searched: Annotated[int, "number of examples used in the search"]
    reported: Annotated[int, "number of examples that the losses are measured on"]
    is_held_out: Annotated[bool, "whether the losses are on examples that the search did not use"]
    is_better: Annotated[bool, "whether the loss with `weights` is lower than with equal weights"]


def tune(  # noqa: PLR0913 - the last three are those of `attach` and the bar
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapters: Sequence[AdapterLike],
    examples: Sequence[Example | Encoded],
    *,
    budget: int = DEFAULT_BUDGET,
    seed: int = 0,
    l1: float = DEFAULT_L1,
    library: Library | str | Path | None = None,
    base: BaseSpec | str | None = None,
    progress: TuneProgress | None = None,
) -> Tuned:
    """The weights, each within ±1.5, with which the sum of the adapters answers the examples best.

    `model` is a causal language model without adapter, in evaluation mode; it is unchanged afterwards. The search
    minimises the loss plus `l1` times the mean size of a weight, with at most `budget` trials. It tries equal weights
    and each adapter alone first, and continues from the best of these. Unless what it found has a lower such value than
    equal weights on the reported examples, the result is equal weights. The same seed gives the same weights on the
    same machine. `library` and `base` are as for `attach`.

    Raises:
        UsageProblem: there are fewer than two adapters, an option is out of range, or the model is of another kind.
        MissingExtra: the package `cma` is not installed.
        Malformed: this base cannot run some examples; names each of them.
        CouldNotTell: the loss is not a finite number.
        BaseMismatch, MergeRefused: as for `attach`, with all its other errors.
    """
    _check(model, adapters, examples, budget=budget, seed=seed, l1=l1)
    search = _optimiser()
    searched, reported = _split(encode(tokenizer, model, examples), seed)
    from adapterhub.inference.loader import attach

    count = len(adapters)
    equal = (round(1 / count, _DECIMALS),) * count
    singles = [tuple(float(i == j) for j in range(count)) for i in range(count)]
    with attach(model, list(adapters), weights=equal, library=library, base=base) as attached:
        trials = _Trials(attached, Losses(searched, model), l1=l1, budget=budget, progress=progress)
        for weights in (equal, *singles):
            trials.run(weights)
        if not math.isfinite(trials.least):
            raise CouldNotTell("the loss on the examples is not a finite number with any of the adapters")
        search(trials, seed)
        held_out = Losses(reported or searched, model)

        def loss(weights: Sequence[float]) -> float:
            attached.weigh(weights)
            return held_out.mean(attached.model)

        with attached.model.disable_adapter():
            base_loss = held_out.mean(attached.model)
        before, after = loss(equal), loss(trials.best)
        keeps = after + _penalty(trials.best, l1) < before + _penalty(equal, l1)
        return Tuned(
            weights=trials.best if keeps else equal,
            loss_before=before,
            loss_after=after if keeps else before,
            single_losses=tuple(loss(weights) for weights in singles),
            base_loss=base_loss,
            evaluations=trials.done,
            searched=len(searched),
            reported=len(reported or searched),
            is_held_out=bool(reported),
            is_better=keeps and after < before,
        )


class _Trials:
    """The trials so far, and the best weights among them."""

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
        """The value to minimise, at these weights after rounding."""
        tried = tuple(round(float(w), _DECIMALS) + 0.0 for w in weights)  # no -0.0
        self._attached.weigh(tried)
        value = self._losses.mean(self._attached.model) + _penalty(tried, self._l1)
        if not self.best or value < self.least:
            self.best, self.least = tried, value
        self.done += 1
        self._progress(self.done, self.budget)
        return value


def _penalty(weights: Sequence[float], l1: float) -> float:
    """What the size of the weights adds to the loss."""
    return l1 * sum(map(abs, weights)) / len(weights)


def _optimiser() -> Callable[[_Trials, int], None]:
    """The search, which continues from the best trial until the budget is spent or the weights converge.

    Raises:
        MissingExtra: the package `cma` is not installed.
    """
    with extra_named("tuning"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cma warns where matplotlib is missing, which only its plots need
        import cma
    import numpy as np

    def search(trials: _Trials, seed: int) -> None:
        generator = np.random.default_rng(seed)
        options = {
            "bounds": [-LARGEST_WEIGHT, LARGEST_WEIGHT],
            # An own generator: by default cma seeds the one that the whole program shares.
            "randn": lambda *shape: generator.standard_normal(shape),
            "seed": math.nan,
            "verbose": -9,
            "verb_log": 0,
        }
        evolution = cma.CMAEvolutionStrategy(list(trials.best), _FIRST_STEP, options)
        while trials.done < trials.budget and not evolution.stop():
            candidates = evolution.ask()[: trials.budget - trials.done]
            values = [min(trials.run(weights), _WORST) for weights in candidates]
            if len(candidates) == evolution.popsize:
                evolution.tell(candidates, values)

    return search


_WORST: Final = 1e9
"""Replaces a loss that is not finite: the search uses only the order of the losses."""


def _split(encoded: Sequence[Encoded], seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """Examples for the search and for the report; all and none if there are too few. Equal ones stay together."""
    different = list(dict.fromkeys(encoded))
    if len(different) < ENOUGH_TO_HOLD_OUT:
        return list(encoded), []
    random.Random(seed).shuffle(different)  # noqa: S311 - a repeatable choice, no secret
    chosen = set(different[: (len(different) + 1) // 2])
    return [e for e in encoded if e in chosen], [e for e in encoded if e not in chosen]


def _check(
    model: PreTrainedModel,
    adapters: Sequence[AdapterLike],
    examples: Sequence[Example | Encoded],
    *,
    budget: int,
    seed: int,
    l1: float,
) -> None:
    """Raise unless the arguments of `tune` are valid."""
    fewest = len(adapters) + 2
    if len(adapters) < FEWEST_ADAPTERS:
        raise UsageProblem("tuning needs at least two adapters")
    if not examples:
        raise UsageProblem("tuning needs at least one example")
    if budget < fewest:
        why = "one trial with equal weights, one for each adapter, and one more"
        raise UsageProblem(f"budget {budget}, expected at least {fewest}: {why}")
    if not (math.isfinite(l1) and l1 >= 0):
        raise UsageProblem(f"l1 {l1}, expected a number of at least 0")
    if seed < 0:
        raise UsageProblem(f"seed {seed}, expected at least 0")
    ensure_causal(model, "weights can be tuned")
    if model.training:
        raise UsageProblem("the model is in training mode, in which losses are random", hint="call `model.eval()`")


def ensure_causal(model: PreTrainedModel, what: str) -> None:
    """Raise unless the model continues a text, as `Losses` needs it.

    Raises:
        UsageProblem: it has an encoder; `what` says what it cannot be used for.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise UsageProblem(f"the base has an encoder, but {what} on causal language models only")
