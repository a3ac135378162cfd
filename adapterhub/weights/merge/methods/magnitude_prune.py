"""`magnitude_prune`: the weighted average of the factors after setting their smallest numbers to 0, as in PEFT.

A and B of each adapter keep the fraction `density` of their numbers that is largest in magnitude, each factor by
itself. What is kept is not rescaled. This pruning is the first step of TIES (Yadav et al., 2023, arXiv:2306.01708).

Space: factor. So this is not the pruned sum of the updates; `magnitude_prune_svd` is. The product has cross terms, see
`linear`.

Convention: PEFT's, as in `linear`.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge.spaces.factorwise import over_factors, refusal, weighted_sum
from adapterhub.weights.merge.spaces.prune import check_density, magnitude_keep

__all__ = ["merge", "refusal"]


def merge(deltas: Sequence[LowRank], weights: Sequence[float], *, density: float = 0.5) -> LowRank:
    """`linear` of the pruned factors.

    Raises:
        UsageProblem: density out of range.
        MergeRefused: ranks differ, or an adapter lacks the module.
    """
    check_density(density)
    return over_factors(
        deltas, weights, prune=lambda factor, _source: magnitude_keep(factor, density), add=weighted_sum
    )
