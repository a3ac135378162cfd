"""`magnitude_prune_svd`: trim each update to its largest numbers, add them up, then cut to a rank.

The first step of TIES (Yadav et al. 2023, arXiv:2306.01708) and a weighted sum, on the updates themselves and not on
their factors as `magnitude_prune` does it.

Space: delta. One module's matrix at a time, in float32 (float64 below 250,000 numbers), cut by a randomized SVD whose
error is at most 1 % above the smallest possible.

Convention: PEFT's `magnitude_prune_svd`. Each update is trimmed to the `density` largest of its numbers by size; what
is left is not rescaled.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.weights.lowrank.algebra import Cut, LowRank
from adapterhub.weights.merge.spaces.delta import Fusion, by_magnitude, merged


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    rank: int | None = None,
    max_error: float | None = None,
) -> Cut:
    """The merged update, as `spaces.delta.merged` cuts it."""
    return merged(deltas, weights, by_magnitude(density), Fusion(), rank=rank, max_error=max_error)
