"""`ties`: factors pruned to their largest numbers, one sign elected for each entry, what agrees averaged, as in PEFT.

TIES-Merging (Yadav et al., 2023, arXiv:2306.01708): trim, elect sign, disjoint merge. A and B of each adapter keep the
fraction `density` of their numbers that is largest in magnitude; then each entry takes the sign of the sum over the
adapters (`majority` "total") or the sign that more of them have ("frequency"; a draw is a plus), and becomes the mean
over the adapters of that sign.

Space: factor, and therefore not TIES of the updates, which is `ties_svd`: signs of A and B mean nothing by themselves.

Convention, PEFT's: signs are elected before weights enter (mergekit weights first), and the sum of what agrees is
divided by how many agree, not by their weights, so an entry that one of two adapters decides keeps all of its share.
A is multiplied by sign(c) sqrt|c| and B by sqrt|c|, where c is weight * scale. An adapter of weight 0 has no vote.
Every adapter must have the module, at the same rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge.spaces.factorwise import elected_mean, over_factors, refusal, trimmed

__all__ = ["merge", "refusal"]


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    majority: Literal["total", "frequency"] = "total",
) -> LowRank:
    """Trim, elect and merge A and B, each by itself; raises what `over_factors` does."""
    return over_factors(deltas, weights, add=elected_mean(majority), prune=trimmed(density))
