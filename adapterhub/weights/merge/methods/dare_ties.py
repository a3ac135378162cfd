"""`dare_ties`: drop random numbers of the factors, elect a sign for each entry, average what agrees, as in PEFT.

DARE (Yu et al., 2023, arXiv:2311.03099) replaces the trimming of TIES (Yadav et al., 2023, arXiv:2306.01708). Each
number is kept with probability `density` and divided by it. Then each entry gets an elected sign: that of the sum over
the adapters (`majority` "total"), or the more frequent one ("frequency"; a draw counts as plus). The entry becomes the
mean over the adapters with that sign. The masks follow from `seed` and the adapter's own bytes, not from its position.

Space: factor. So this is not DARE and TIES of the updates; `dare_ties_svd` is.

Convention: PEFT's, as in `ties`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge.spaces.factorwise import elected_mean, over_factors, refusal
from adapterhub.weights.merge.spaces.prune import check_density, random_keep

__all__ = ["merge", "refusal"]


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    majority: Literal["total", "frequency"] = "total",
    generators: Sequence[torch.Generator] | None = None,
) -> LowRank:
    """Drop, rescale, elect and merge A and B, each by itself.

    Raises:
        UsageProblem: an option out of range.
        MergeRefused: ranks differ, or an adapter lacks the module.
    """
    check_density(density)
    return over_factors(
        deltas,
        weights,
        prune=lambda factor, source: random_keep(factor.double(), density, source).div_(density),
        add=lambda factors, shares: elected_mean(factors, shares, majority),
        generators=generators,
    )
