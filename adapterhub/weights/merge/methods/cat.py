"""`cat`: the exact sum, by concatenation.

Space: factor. The rows of every A are stacked and the columns of every B are placed side by side. So B A is the
weighted sum of the updates, and nothing is lost but one float32 rounding. Task arithmetic computes the same sum
(Ilharco et al., 2023, arXiv:2212.04089).

Convention: the weight and the scale, with their sign, go into B; A is unchanged. The rank is the sum of the ranks, less
the directions that are numerically empty. So adapters that share directions (one merged with itself, two merges of the
same parents) do not grow.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.weights.lowrank.algebra import LowRank, exact_sum

LINEAR = True


def merge(deltas: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """Return the sum of weight * delta; a zero update of rank 1 if it cancels."""
    return exact_sum(deltas, weights)
