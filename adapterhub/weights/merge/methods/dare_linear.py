"""`dare_linear`: the weighted average of the factors after random numbers of them were dropped, as PEFT does it.

DARE (Yu et al., 2023, arXiv:2311.03099): each number is kept with probability `density`, and what is kept is divided by
`density`, so that its expectation stays. The masks follow from `seed` and the adapter's own bytes, not from its place.

Space: factor, and therefore not DARE of the updates, which is `dare_linear_svd`: the product has cross terms, see
`linear`, and where both factors are pruned an entry of it has the expectation of `linear`, not that of the sum.

Convention, PEFT's: A is multiplied by sign(c) sqrt|c| and B by sqrt|c|, where c is weight * scale. Every adapter must
have the module, at the same rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge.spaces.factorwise import dropped, over_factors, refusal, weighted_sum

__all__ = ["merge", "refusal"]


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    generators: Sequence[torch.Generator] | None = None,
) -> LowRank:
    """`linear` of the factors with numbers dropped at random; raises what `over_factors` does."""
    return over_factors(deltas, weights, add=weighted_sum, prune=dropped(density), generators=generators)
