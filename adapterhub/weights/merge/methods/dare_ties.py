"""`dare_ties`: factors with numbers dropped at random, a sign elected for each entry, what agrees averaged, as in PEFT.

DARE (Yu et al., 2023, arXiv:2311.03099) in place of the trimming of TIES (Yadav et al., 2023, arXiv:2306.01708): each
number is kept with probability `density` and divided by `density`; then each entry takes the sign of the sum over the
adapters (`majority` "total") or the sign that more of them have ("frequency"; a draw is a plus), and becomes the mean
over the adapters of that sign. The masks follow from `seed` and the adapter's own bytes, not from its place.

Space: factor, and therefore not DARE and TIES of the updates, which is `dare_ties_svd`.

Convention, PEFT's: signs are elected before weights enter (mergekit weights first), and the sum of what agrees is
divided by how many agree. A is multiplied by sign(c) sqrt|c| and B by sqrt|c|, where c is weight * scale. An adapter of
weight 0 has no vote. Every adapter must have the module, at the same rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge.spaces.factorwise import dropped, elected_mean, over_factors, refusal

__all__ = ["merge", "refusal"]


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    majority: Literal["total", "frequency"] = "total",
    generators: Sequence[torch.Generator] | None = None,
) -> LowRank:
    """Drop, rescale, elect and merge A and B, each by itself; raises what `over_factors` does."""
    add, prune = elected_mean(majority), dropped(density)
    return over_factors(deltas, weights, add=add, prune=prune, generators=generators)
