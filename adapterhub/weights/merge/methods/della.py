"""`della`: drop numbers at random, small ones sooner (MagPrune), elect signs, add up what agrees, then cut to a rank.

DELLA (Deep, Bhardwaj and Poria, 2024, arXiv:2406.11617).

Space: delta.

Convention: mergekit's `della`, in all but two defaults. Within a row (all weights into one output) the smallest number
is kept with probability density - epsilon and the largest with density + epsilon; the others are spaced evenly
between, in order of size. `epsilon` is half of the paper's window. The weighted numbers elect the signs, and those that
agree are summed; `majority` "none" skips the election, as mergekit's `della_linear` does.

The two defaults that differ: what is kept is divided by its probability, as in the paper, where mergekit restores the
sum of the sizes (`rescale` "norm"). And the sum stays a sum; mergekit divides it by the weights of those that agree
(`normalize`), which cancels the weight of a single adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.weights.lowrank.algebra import LowRank, RankCut
from adapterhub.weights.merge.spaces.delta import DeltaFusion, DeltaUpdate, Generators, Mask, Pruning, merged
from adapterhub.weights.merge.spaces.prune import check_density

Rescale = Literal["probability", "norm", "none"]


def merge(  # noqa: PLR0913 - the options of a method are its parameters
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    epsilon: float = 0.15,
    majority: Literal["total", "frequency", "none"] = "total",
    rescale: Literal["probability", "norm", "none"] = "probability",
    normalize: bool = False,
    generators: Generators = None,
    rank: int | None = None,
    max_error: float | None = None,
) -> RankCut:
    """Return the merged update, as `spaces.delta.merged` cuts it; density 1 drops nothing, whatever epsilon is."""
    pruning = _mag_prune(density, epsilon, rescale)
    fusion = DeltaFusion(majority=None if majority == "none" else majority, weights_vote=True, normalize=normalize)
    return merged(deltas, weights, pruning, fusion, rank=rank, max_error=max_error, draws=True, generators=generators)


def _mag_prune(density: float, epsilon: float, rescale: Rescale) -> Pruning | None:
    """Keep each number with a probability that grows with its rank by size in its row; None keeps all."""
    check_density(density)
    if rescale not in ("probability", "norm", "none"):
        raise UsageProblem(f"rescale `{shown(rescale)}`, expected probability, norm or none")
    if density == 1:
        return None
    if not (epsilon >= 0 and density - epsilon > 0 and density + epsilon <= 1):
        raise UsageProblem(
            f"density {shown(density)} with epsilon {shown(epsilon)}: the probabilities to keep a number, density - "
            "epsilon to density + epsilon, must be above 0 and at most 1"
        )

    def pruning(update: DeltaUpdate) -> Mask:
        gain = _gain(update, density, epsilon) if rescale == "norm" else 1.0

        def mask(rows: Tensor, _at: slice) -> None:
            chances = _chances(rows, density, epsilon)
            rows.mul_(_kept(chances, update.generator))
            if rescale == "probability":
                rows.div_(chances)
            else:
                rows.mul_(gain)

        return mask

    return pruning


def _chances(rows: Tensor, density: float, epsilon: float) -> Tensor:
    """Return the probability to keep each number."""
    width = rows.shape[1]
    ramp = torch.linspace(density - epsilon, density + epsilon, width, dtype=rows.dtype, device=rows.device)
    if width == 1:
        ramp.fill_(density)
    # NumPy sorts with vector instructions, in at most half of torch's time.
    order = torch.from_numpy(rows.abs().numpy(force=True).argsort(axis=1)).to(rows.device)
    return torch.empty_like(rows).scatter_(1, order, ramp.expand_as(rows))


def _kept(chances: Tensor, generator: torch.Generator) -> Tensor:
    """Return whether each number is kept."""
    drawn = torch.rand(chances.shape, generator=generator, dtype=torch.float32, device=generator.device)
    return drawn.to(chances.device) < chances


def _gain(update: DeltaUpdate, density: float, epsilon: float) -> float:
    """Return the summed sizes of all numbers over those that the next draws keep; does not use up the draws."""
    ahead = torch.Generator(update.generator.device)
    ahead.set_state(update.generator.get_state())
    before = after = 0.0
    for _, rows in update.strips():
        sizes = rows.abs_()
        before += float(sizes.sum())
        after += float(sizes.mul_(_kept(_chances(sizes, density, epsilon), ahead)).sum())
    return before / after if after else 1.0
