"""`dare_ties_svd`: drop random numbers and rescale (DARE), elect signs, average what agrees, then cut to a rank.

DARE (Yu et al., 2023, arXiv:2311.03099) with the election of TIES (Yadav et al., 2023, arXiv:2306.01708), on the
updates themselves; `dare_ties` works on their factors.

Space: delta.

Convention: PEFT's `dare_ties_svd`. Each number is kept with probability `density` and divided by it. Signs are elected
before the weights apply. The weighted numbers that agree are summed and divided by how many agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from adapterhub.weights.lowrank.algebra import LowRank, RankCut
from adapterhub.weights.merge.spaces.delta import DeltaFusion, Generators, at_random, merged


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    majority: Literal["total", "frequency"] = "total",
    generators: Generators = None,
    rank: int | None = None,
    max_error: float | None = None,
) -> RankCut:
    """Return the merged update, as `spaces.delta.merged` cuts it."""
    pruning, fusion = at_random(density), DeltaFusion(majority=majority, gain=1 / density)
    return merged(deltas, weights, pruning, fusion, rank=rank, max_error=max_error, draws=True, generators=generators)
