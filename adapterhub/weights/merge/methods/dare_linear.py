"""`dare_linear`: the weighted average of the factors after random numbers of them were dropped, as in PEFT.

DARE (Yu et al., 2023, arXiv:2311.03099) keeps each number with probability `density` and divides what it keeps by
`density`, so that the expectation is unchanged. The masks follow from `seed` and the adapter's own bytes, not from its
position.

Space: factor. So this is not DARE of the updates; `dare_linear_svd` is. The product has cross terms, see `linear`.
If both factors are pruned, the expectation of an entry is that of `linear`, not that of the sum.

Convention: PEFT's, as in `linear`.
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
