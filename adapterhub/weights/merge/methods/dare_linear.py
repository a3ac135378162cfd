"""`dare_linear`: the weighted average of the factors after random numbers of them were dropped, as in PEFT.

DARE (Yu et al., 2023, arXiv:2311.03099) keeps each number with probability `density` and divides what it keeps by
`density`, so that the expectation is unchanged. The masks follow from `seed` and the adapter's own bytes, not from its
position.

Space: factor. So this is not DARE of the updates; `dare_linear_svd` is. The product has cross terms, see `linear`.
Where both factors are pruned, the expectation of an entry is that of `linear`, not that of the sum.

Convention: PEFT's, as in `linear`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge.spaces.factorwise import over_factors, refusal, weighted_sum
from adapterhub.weights.merge.spaces.prune import check_density, random_keep

__all__ = ["merge", "refusal"]


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    generators: Sequence[torch.Generator] | None = None,
) -> LowRank:
    """`linear` of the factors with numbers dropped at random.

    Raises:
        UsageProblem: density out of range.
        MergeRefused: ranks differ, or an adapter lacks the module.
    """
    check_density(density)
    return over_factors(
        deltas,
        weights,
        prune=lambda factor, source: random_keep(factor.double(), density, source).div_(density),
        add=weighted_sum,
        generators=generators,
    )
