"""`svd`: the closest update of a chosen rank to the exact sum.

Space: core. The sum is stacked as `cat` does it, QR reduces both stacks, and the R x R core between them is cut by its
singular values (Eckart and Young, 1936: no update of that rank is closer in the Frobenius norm). PEFT decomposes the
full matrix for the same answer; here it is never formed.

Convention: weights and scales apply before the cut; A and B share the square roots of the singular values.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.weights.lowrank.algebra import LowRank, cut_sum

LINEAR = True


def merge(
    deltas: Sequence[LowRank], weights: Sequence[float], *, rank: int | None = None, max_error: float | None = None
) -> LowRank:
    """Return the best approximation to the sum of weight * delta; rank and max_error as in `algebra.cut_sum`.

    Raises:
        UsageProblem: both are given, or one is out of range.
    """
    return cut_sum(deltas, weights, rank=rank, max_error=max_error)
