"""`ties_svd`: trim each update, elect signs, average what agrees (TIES), then cut to a rank.

TIES-Merging (Yadav et al., 2023, arXiv:2306.01708) on the updates themselves; `ties` works on their factors.

Space: delta.

Convention: PEFT's `ties_svd`. Each update keeps the fraction `density` of its numbers that is largest in magnitude.
Signs are elected before the weights apply. The weighted numbers that agree are summed and divided by how many agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from adapterhub.weights.lowrank.algebra import LowRank, RankCut
from adapterhub.weights.merge.spaces.delta import DeltaFusion, by_magnitude, merged


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    majority: Literal["total", "frequency"] = "total",
    rank: int | None = None,
    max_error: float | None = None,
) -> RankCut:
    """Return the merged update, as `spaces.delta.merged` cuts it."""
    return merged(
        deltas, weights, by_magnitude(density), DeltaFusion(majority=majority), rank=rank, max_error=max_error
    )
