"""`breadcrumbs`: drop the smallest and the very largest numbers of each update, add up, then cut to a rank.

Davari and Belilovsky 2023, arXiv:2312.06795 (Model Breadcrumbs): small numbers are noise, outliers hurt other tasks.

Space: delta. One module's matrix at a time, in float32 (float64 below 250,000 numbers), cut by a randomized SVD whose
error is at most 1 % above the smallest possible.

Convention: mergekit's `breadcrumbs`, over a module's whole matrix: of its numbers by size the largest `gamma` are
dropped, the `density` next ones kept as they are; where both together are more than all, fewer of the largest are
dropped, so with density 1 none. With `majority`, as mergekit's `breadcrumbs_ties`, weighted numbers are summed only
where their sign is elected by the weighted numbers. (The paper counts within rows and keeps 10 to 15 %.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.weights.lowrank.algebra import Cut, LowRank
from adapterhub.weights.merge.spaces.delta import Fusion, Mask, Pruning, Update, largest, merged
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
) -> Cut:
    """The merged update, as `spaces.delta.merged` cuts it."""
    fusion = Fusion(majority=None if majority == "none" else majority, weights_vote=True)
    return merged(deltas, weights, _between(density, gamma), fusion, rank=rank, max_error=max_error)


def _between(density: float, gamma: float) -> Pruning | None:
    """Drops the `gamma` largest numbers and keeps the next `density`; None keeps all."""
    check_density(density)
    if not 0 <= gamma < 1:
        raise UsageProblem(f"gamma {shown(gamma)}, expected the fraction of largest numbers to drop, 0 to below 1")

    def pruning(update: Update, space: Tensor) -> Mask:
        dense = update.laid_out(space)
        kept = max(1, int(density * update.numel))
        dropped = min(int(gamma * update.numel), update.numel - kept)
        inner, outer = largest(dense, dropped + kept), largest(dense, dropped)

        def mask(rows: Tensor, at: slice) -> None:
            rows.mul_(inner(rows, at).sub_(outer(rows, at)))

        return mask

    return None if density == 1 else pruning
