"""`linear`: the weighted average of the factors, as in PEFT's `add_weighted_adapter(combination_type="linear")`.

Space: factor. So this is not the sum of the updates: (B1 + B2)(A1 + A2) has cross terms B1 A2 and B2 A1 that belong to
no adapter. It exists to reproduce PEFT; its measured error against the exact sum is usually large.

Convention: PEFT's. A is multiplied by sign(c) sqrt|c| and B by sqrt|c|, where c is weight * scale. Every adapter must
have the module, at the same rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge.spaces.factorwise import over_factors, refusal, weighted_sum

__all__ = ["merge", "refusal"]


def merge(deltas: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """B = sum of sqrt|c| B_i, A = sum of sign(c) sqrt|c| A_i.

    Raises:
        MergeRefused: ranks differ, or an adapter lacks the module.
    """
    return over_factors(deltas, weights, add=weighted_sum)
