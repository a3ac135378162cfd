"""Updates as points on a sphere: their exact lengths and directions, without forming a matrix.

A mean on the sphere lies in the span of its points, so a method needs only the inner products of the updates to find
the coefficients of the mean, which is then an exact sum of the updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapterhub.weights.lowrank.algebra import ROUNDING, LowRank, exact_sum

COLINEAR = 0.9995
"""Updates with a cosine beyond this in magnitude lie on one line, as in mergekit, and are added linearly.

Every great circle connects opposite points, and near them rounding would choose one.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Points:
    """Nonzero updates with positive weights; a negative weight reverses its update.

    `units` [k, d] are the directions in an orthonormal basis, `lengths` [k] the Frobenius norms, float64.
    """

    deltas: tuple[LowRank, ...]
    weights: Tensor
    lengths: Tensor
    units: Tensor
    signs: tuple[float, ...]

    @property
    def are_on_one_line(self) -> bool:
        """Whether all directions are equal or opposite; true for one."""
        return bool(((self.units @ self.units.T).abs() > COLINEAR).all())

    def combined(self, coefficients: Tensor) -> LowRank:
        """Return the sum of coefficient * update, exact, at its numerical rank."""
        signed = [float(c) * sign for c, sign in zip(coefficients, self.signs, strict=True)]
        return exact_sum(self.deltas, signed)


def points(parts: Sequence[tuple[LowRank, float]]) -> Points:
    """Return the updates as points; leaves out updates that cancel to zero, which have no direction.

    Two QRs bring all factors into one basis, [R, R] for a summed rank of R. Gram matrices also give the inner products,
    but lose half the digits of nearly parallel updates.
    """
    triangle_a = torch.linalg.qr(torch.cat([d.a.double() for d, _ in parts]).T, mode="r").R
    triangle_b = torch.linalg.qr(torch.cat([d.b.double() for d, _ in parts], dim=1), mode="r").R
    kept, cores = [], []
    start = 0
    for delta, weight in parts:
        columns = slice(start, start + delta.rank)
        left, right = triangle_b[:, columns] * delta.scale, triangle_a[:, columns]
        start += delta.rank
        core = (left @ right.T).flatten()
        terms = torch.linalg.vector_norm(left, dim=0) @ torch.linalg.vector_norm(right, dim=0)
        if float(torch.linalg.vector_norm(core)) > ROUNDING * float(terms):
            kept.append((delta, weight))
            cores.append(core if weight > 0 else -core)
    stacked = torch.stack(cores) if cores else torch.zeros(0, 1, dtype=torch.float64)
    lengths = torch.linalg.vector_norm(stacked, dim=1)
    return Points(
        deltas=tuple(delta for delta, _ in kept),
        weights=torch.tensor([abs(weight) for _, weight in kept], dtype=torch.float64),
        lengths=lengths,
        units=stacked / lengths[:, None],
        signs=tuple(1.0 if weight > 0 else -1.0 for _, weight in kept),
    )
