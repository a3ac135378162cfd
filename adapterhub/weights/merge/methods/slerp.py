"""`slerp`: from one update to another along the arc between their directions, lossless.

Spherical linear interpolation (Shoemake, 1985, "Animating rotation with quaternion curves") of the two updates of a
module, each as one vector. With the angle w between them and the share t of the second weight, the result is
sin((1 - t) w) / sin(w) of the first plus sin(t w) / sin(w) of the second. A plain average of updates that point in
different directions is shorter than either; the arc keeps the length.

Space: factor. The angle comes from the factors; the result is a sum of the two updates and exact.

Convention: mergekit's. The coefficients apply to the updates themselves, not to directions. Updates whose cosine is
beyond 0.9995, either way, are added linearly. mergekit takes one number t; beyond that, the sum of the sizes of the
weights scales the result, so weights that sum to 1 interpolate and a single update is returned times its weight. A
negative weight counts as the opposite update. If one update is zero or absent, the other is returned times its weight.
At most two adapters can have a module; `karcher` takes any number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adapterhub.core.errors import MergeRefused
from adapterhub.weights.lowrank.algebra import LowRank, nothing, taking_part
from adapterhub.weights.merge.spaces.sphere import points

_BOTH = 2


def refusal(ranks: Sequence[int]) -> str | None:
    """Return the reason against interpolating updates of these ranks (0 where an adapter lacks the module), if any."""
    holders = sum(rank > 0 for rank in ranks)
    return f"is in {holders} adapters, `slerp` interpolates between two" if holders > _BOTH else None


def merge(deltas: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """Return the point on the arc at the share of the weights.

    Raises:
        MergeRefused: more than two updates take part.
    """
    parts = taking_part(deltas, weights)
    reason = refusal([delta.rank for delta, _ in parts])
    if reason is not None:
        raise MergeRefused(
            "cannot interpolate these updates",
            [f"the module {reason}"],
            hint="`--method karcher` takes any number of adapters",
        )
    if not parts:
        return nothing(*deltas[0].shape, rank=1)
    ends = points(parts)
    if not ends.deltas:
        return nothing(*deltas[0].shape, rank=1)
    if ends.are_on_one_line:
        return ends.combined(ends.weights)
    first, second = ends.units
    chord, sum_of_both = torch.linalg.vector_norm(first - second), torch.linalg.vector_norm(first + second)
    angle = 2 * torch.atan2(chord, sum_of_both)
    total = ends.weights.sum()
    # The rest of the arc beyond the point, for each end.
    return ends.combined(total * torch.sin(ends.weights / total * angle) / torch.sin(angle))
