"""`dare_linear_svd`: drop numbers of each update at random and rescale the rest (DARE), add up, then cut to a rank.

Yu et al. 2023, arXiv:2311.03099, on the updates themselves, where the expected value of what is kept is the update; on
factors, as `dare_linear` does it, it is so only for each factor alone.

Space: delta. One module's matrix at a time, in float32 (float64 below 250,000 numbers), cut by a randomized SVD whose
error is at most 1 % above the smallest possible.

Convention: PEFT's `dare_linear_svd`. Each number is kept with probability `density` and divided by it.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.weights.lowrank.algebra import Cut, LowRank
from adapterhub.weights.merge.spaces.delta import Fusion, Generators, at_random, merged


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    generators: Generators = None,
    rank: int | None = None,
    max_error: float | None = None,
) -> Cut:
    """The merged update, as `spaces.delta.merged` cuts it."""
    pruning, fusion = at_random(density), Fusion(gain=1 / density)
    return merged(deltas, weights, pruning, fusion, rank=rank, max_error=max_error, generators=generators)
