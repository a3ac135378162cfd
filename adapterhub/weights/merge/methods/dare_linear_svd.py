"""`dare_linear_svd`: drop random numbers of each update and rescale the rest (DARE), add up, then cut to a rank.

DARE (Yu et al., 2023, arXiv:2311.03099) on the updates themselves. The expectation of the kept entries is the update;
with factors, as in `dare_linear`, this holds only for each single factor.

Space: delta.

Convention: PEFT's `dare_linear_svd`. Each number is kept with probability `density` and divided by it.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.weights.lowrank.algebra import LowRank, RankCut
from adapterhub.weights.merge.spaces.delta import DeltaFusion, Generators, at_random, merged


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    generators: Generators = None,
    rank: int | None = None,
    max_error: float | None = None,
) -> RankCut:
    """Return the merged update, as `spaces.delta.merged` cuts it."""
    pruning, fusion = at_random(density), DeltaFusion(gain=1 / density)
    return merged(deltas, weights, pruning, fusion, rank=rank, max_error=max_error, draws=True, generators=generators)
