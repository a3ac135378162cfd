"""`cat`: the exact sum, by concatenation.

Space: factor. The rows of every A are stacked, the columns of every B stand side by side, so B A is the weighted sum of
the updates and nothing is lost but one float32 rounding. What is added is what task arithmetic adds (Ilharco et al.,
2023, arXiv:2212.04089).

Convention: weight and scale, with their sign, go into B; A stays as it was. The rank is the sum of the ranks, less the
directions that are numerically empty: adapters that share directions (one merged with itself, two merges of the same
parents) do not grow.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.weights.lowrank.algebra import LowRank, exact_sum

LINEAR = True


def merge(deltas: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """The sum of weight * delta; a zero update of rank 1 if it cancels."""
    return exact_sum(deltas, weights)
