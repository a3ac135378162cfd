"""`breadcrumbs`: drop the smallest and the very largest numbers of each update, add up, then cut to a rank.

Model Breadcrumbs (Davari and Belilovsky, 2023, arXiv:2312.06795): small numbers are noise, and outliers hurt other
tasks.

Space: delta.

Convention: mergekit's `breadcrumbs`, over the whole matrix of a module. In order of size, the largest fraction `gamma`
of the numbers is dropped, and the next fraction `density` is kept unchanged. If both together exceed the whole, fewer
of the largest are dropped; with density 1, none. With `majority`, as in mergekit's `breadcrumbs_ties`, the weighted
numbers elect a sign for each entry, and only those that agree with it are summed. (The paper counts within rows and
keeps 10 to 15 %.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.weights.lowrank.algebra import LowRank, RankCut
from adapterhub.weights.merge.spaces.delta import DeltaFusion, DeltaUpdate, Mask, Pruning, largest, merged
from adapterhub.weights.merge.spaces.prune import check_density


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    density: float = 0.5,
    gamma: float = 0.01,
    majority: Literal["none", "total", "frequency"] = "none",
    rank: int | None = None,
    max_error: float | None = None,
) -> RankCut:
    """Return the merged update, as `spaces.delta.merged` cuts it."""
    fusion = DeltaFusion(majority=None if majority == "none" else majority, weights_vote=True)
    return merged(deltas, weights, _between(density, gamma), fusion, rank=rank, max_error=max_error)


def _between(density: float, gamma: float) -> Pruning | None:
    """Drop the `gamma` largest numbers and keeps the next `density`; None keeps all."""
    check_density(density)
    if not 0 <= gamma < 1:
        raise UsageProblem(f"gamma {shown(gamma)}, expected the fraction of largest numbers to drop, 0 to below 1")

    def pruning(update: DeltaUpdate) -> Mask:
        kept = max(1, int(density * update.numel))
        dropped = min(int(gamma * update.numel), update.numel - kept)
        inner, outer = largest(update, dropped + kept), largest(update, dropped)

        def mask(rows: Tensor, at: slice) -> None:
            largest_of_all = rows.clone()
            outer(largest_of_all, at)
            inner(rows, at)
            rows.sub_(largest_of_all)

        return mask

    return None if density == 1 else pruning
