"""`dare_linear_svd`: drop random numbers of each update and rescale the rest (DARE), add up, then cut to a rank.

DARE (Yu et al., 2023, arXiv:2311.03099) on the updates themselves. The expectation of what is kept is the update; with
factors, as in `dare_linear`, this holds only for each factor alone.

Space: delta.

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
    rank: int | None = None,
    max_error: float | None = None,
    generators: Generators = None,
) -> Cut:
    """The merged update; of the summed rank unless `rank` or `max_error` says otherwise.

    `generators` draw the masks, one for each update; without them they are seeded 0, 1, 2 … by position.

    Raises:
        UsageProblem: an option out of range, or rank and max_error are both given.
    """
    return merged(
        deltas,
        weights,
        pruning=at_random(density),
        gain=1 / density,
        fusion=Fusion(),
        rank=rank,
        max_error=max_error,
        generators=generators,
    )
