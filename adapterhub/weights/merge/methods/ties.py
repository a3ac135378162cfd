"""`ties`: prune the factors to their largest numbers, elect a sign for each entry, average what agrees, as in PEFT.

TIES-Merging (Yadav et al., 2023, arXiv:2306.01708) trims, elects signs and merges what agrees. A and B of each adapter
keep the fraction `density` of their numbers that is largest in magnitude. Then each entry gets an elected sign: that of
the sum over the adapters (`majority` "total"), or the more frequent one ("frequency"; a draw counts as plus). The entry
becomes the mean over the adapters with that sign.

Space: factor. So this is not TIES of the updates; `ties_svd` is. Signs of A and B mean nothing by themselves.

Convention: PEFT's. Signs are elected before the weights apply (mergekit applies weights first). The sum of what agrees
is divided by how many agree, not by their weights, so an entry that one of two adapters decides keeps all of its share.
A is multiplied by sign(c) sqrt|c| and B by sqrt|c|, where c is weight * scale. An adapter of weight 0 has no vote.
Every adapter must have the module, at the same rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge.spaces.factorwise import elected_mean, over_factors, refusal
from adapterhub.weights.merge.spaces.prune import check_density, magnitude_keep

__all__ = ["merge", "refusal"]


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    majority: Literal["total", "frequency"] = "total",
) -> LowRank:
    """Trim, elect and merge A and B, each by itself.

    Raises:
        UsageProblem: an option out of range.
        MergeRefused: ranks differ, or an adapter lacks the module.
    """
    check_density(density)
    return over_factors(
        deltas,
        weights,
        prune=lambda factor, _source: magnitude_keep(factor, density),
        add=lambda factors, shares: elected_mean(factors, shares, majority),
    )
