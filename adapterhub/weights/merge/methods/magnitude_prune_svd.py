"""`magnitude_prune_svd`: trim each update to its largest numbers, add them up, then cut to a rank.

The first step of TIES (Yadav et al., 2023, arXiv:2306.01708) and a weighted sum, on the updates themselves;
`magnitude_prune` works on their factors.

Space: delta.

Convention: PEFT's `magnitude_prune_svd`. Each update keeps the fraction `density` of its numbers that is largest in
magnitude. What is kept is not rescaled.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.weights.lowrank.algebra import LowRank, RankCut
from adapterhub.weights.merge.spaces.delta import DeltaFusion, by_magnitude, merged


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    rank: int | None = None,
    max_error: float | None = None,
) -> RankCut:
    """Return the merged update, as `spaces.delta.merged` cuts it."""
    return merged(deltas, weights, by_magnitude(density), DeltaFusion(), rank=rank, max_error=max_error)
