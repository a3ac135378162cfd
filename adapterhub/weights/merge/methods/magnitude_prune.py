"""`magnitude_prune`: the weighted average of the factors after setting their smallest numbers to 0, as PEFT does it.

A and B of each adapter keep the fraction `density` of their numbers that is largest in magnitude, each factor by
itself; what is kept is not rescaled. The pruning is the first step of TIES (Yadav et al., 2023, arXiv:2306.01708).

Space: factor, and therefore not the pruned sum of the updates: the product has cross terms, see `linear`. The form that
prunes the updates themselves is `magnitude_prune_svd`.

Convention, PEFT's: A is multiplied by sign(c) sqrt|c| and B by sqrt|c|, where c is weight * scale. Every adapter must
have the module, at the same rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge.spaces.factorwise import over_factors, refusal, trimmed, weighted_sum

__all__ = ["merge", "refusal"]


def merge(deltas: Sequence[LowRank], weights: Sequence[float], *, density: float = 0.5) -> LowRank:
    """`linear` of the pruned factors; raises what `over_factors` does."""
    return over_factors(deltas, weights, add=weighted_sum, prune=trimmed(density))
