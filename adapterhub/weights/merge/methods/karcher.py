"""`karcher`: the mean direction of the updates on the sphere, at their mean length, lossless.

The Karcher mean (Karcher, 1977, doi:10.1002/cpa.3160300502) is the direction with the smallest weighted sum of squared
angles to all updates. Each round maps the directions to the plane that touches the sphere at the current answer, and
moves the answer to their mean there, until it stops moving (Afsari, Tron and Vidal, 2013, arXiv:1201.0925). A plain
average of updates that point in different directions is shorter than any of them; this one has their mean length.

Space: factor. The directions are compared from the factors; the result is a sum of the updates and exact.

Convention: mergekit's, without its limit of ten rounds. The rounds begin at the weighted mean of the directions, and
the mean direction is multiplied by the weighted mean of the lengths. The sum of the sizes of the weights scales the
result, so a single update is returned times its weight. A negative weight counts as the opposite update. An update that
is zero or absent has no direction and length 0. Updates on one line, from a cosine of 0.9995, are added linearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from adapterhub.core.errors import MergeRefused
from adapterhub.weights.lowrank.algebra import LowRank, nothing, taking_part
from adapterhub.weights.merge.spaces.sphere import COLINEAR, points

_ROUNDS: Final = 10_000
_AT_REST: Final = 1e-13
"""Angle of a step, in radians, that is only rounding."""

_CANCELS: Final = 1e-6
"""Length of a mean whose direction only rounding decides."""


def merge(deltas: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """Return the mean direction times the mean length, times the sum of the weights.

    Raises:
        MergeRefused: the directions have no mean: they cancel, or one is opposite to it.
    """
    parts = taking_part(deltas, weights)
    directions = points(parts) if parts else None
    if directions is None or not directions.deltas:
        return nothing(*deltas[0].shape, rank=1)
    if directions.are_on_one_line:
        return directions.combined(directions.weights)
    shares = _mean_direction(directions.units, directions.weights / directions.weights.sum())
    return directions.combined(shares * (directions.weights @ directions.lengths) / directions.lengths)


def _mean_direction(units: Tensor, weights: Tensor) -> Tensor:
    """Coefficients [k] of the Karcher mean of `units` [k, d], with weights [k] that sum to 1.

    Raises:
        MergeRefused: no unique mean exists.
    """
    length = torch.linalg.vector_norm(weights @ units)
    if float(length) < _CANCELS:
        raise _no_mean("cancel")
    shares: Tensor = weights / length
    for _ in range(_ROUNDS):
        mean = shares @ units
        cosines = units @ mean
        if float(cosines.min()) < -COLINEAR:
            raise _no_mean("are opposite to their mean")
        away = units - cosines[:, None] * mean
        sines = torch.linalg.vector_norm(away, dim=1)
        # angle / sin(angle), which is 1 at the mean itself
        stretch = torch.where(sines > 0, torch.atan2(sines, cosines) / sines.clamp(min=1e-300), 1.0)
        pulls = weights * stretch
        length = torch.linalg.vector_norm(pulls @ away)
        if float(length) < _AT_REST:
            return shares
        shares = torch.cos(length) * shares + torch.sin(length) / length * (pulls - (pulls @ cosines) * shares)
        shares = shares / torch.linalg.vector_norm(shares @ units)
    raise _no_mean("do not converge to a mean")


def _no_mean(why: str) -> MergeRefused:
    return MergeRefused(
        "these updates have no mean on the sphere",
        [f"the directions {why}"],
        hint="`adapt compare` shows the cosines; `--method cat` sums any updates",
    )
