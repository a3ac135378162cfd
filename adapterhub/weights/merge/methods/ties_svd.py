"""`ties_svd`: trim each update, elect signs, average what agrees (TIES), then cut to a rank.

Yadav et al. 2023, arXiv:2306.01708, on the updates themselves and not on their factors as `ties` does it.

Space: delta. One module's matrix at a time, in float32 (float64 below 250,000 numbers), cut by a randomized SVD whose
error is at most 1 % above the smallest possible.

Convention: PEFT's `ties_svd`. Each update is trimmed to the `density` largest of its numbers by size; signs are elected
before the weights enter; the weighted numbers that agree are summed and divided by how many agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from adapterhub.weights.lowrank.algebra import Cut, LowRank
from adapterhub.weights.merge.spaces.delta import Fusion, by_magnitude, merged


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    majority: Literal["total", "frequency"] = "total",
    rank: int | None = None,
    max_error: float | None = None,
) -> Cut:
    """The merged update, as `spaces.delta.merged` cuts it."""
    return merged(deltas, weights, by_magnitude(density), Fusion(majority=majority), rank=rank, max_error=max_error)
