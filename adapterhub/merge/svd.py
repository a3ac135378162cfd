"""`svd`: the closest update of a chosen rank to the exact sum.

Space: core. The sum is stacked as `cat` does, both stacks are reduced by QR, and the R x R core between them is cut by
its singular values (Eckart and Young, 1936: no update of that rank is closer in the Frobenius norm). The full matrix,
which PEFT decomposes for the same answer, is never formed.

Convention: weights and scales enter before the cut; A and B share the square roots of the singular values.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.errors import UsageProblem
from adapterhub.lowrank import LowRank, spectrum, stack


def merge(
    deltas: Sequence[LowRank], weights: Sequence[float], *, rank: int | None = None, max_error: float | None = None
) -> LowRank:
    """The best approximation to the sum of weight * delta.

    With `rank`, of that rank, or less where the sum has fewer directions; with `max_error`, of the smallest rank whose
    error relative to this module's sum is at most that; with neither, of the sum's full numerical rank.

    Raises:
        UsageProblem: both are given, or one is out of range.
    """
    if rank is not None and max_error is not None:
        raise UsageProblem("rank and max_error exclude each other", hint="give one of `--rank` and `--max-error`")
    if rank is not None and rank < 1:
        raise UsageProblem(f"rank {rank}, expected at least 1")
    if max_error is not None and not 0 <= max_error < 1:
        raise UsageProblem(f"max_error {max_error}, expected at least 0 and below 1")
    found = spectrum(stack(deltas, weights))
    if max_error is not None:
        rank = found.rank_within(max_error)
    return found.truncate(found.numerical_rank if rank is None else rank)
