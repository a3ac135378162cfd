"""Updates as points of a sphere: their lengths and directions, exact, without forming a matrix.

Means along a sphere lie in the span of their points, so a method needs nothing of the updates but their inner products
to find the coefficients of the answer, which is then an exact sum of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapterhub.weights.lowrank.algebra import ROUNDING, LowRank, exact_sum

COLINEAR = 0.9995
"""Updates whose cosine is beyond this, either way, lie on one line, as in mergekit: along it they are added linearly.

Between opposites every great circle is an arc, and close to them rounding would choose among these.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Points:
    """Updates that are not 0, with weights above 0: a negative weight has turned the update around.

    `units` [k, d] are their directions in some orthonormal basis, `lengths` [k] their Frobenius norms, float64.
    """

    deltas: tuple[LowRank, ...]
    weights: Tensor
    lengths: Tensor
    units: Tensor
    signs: tuple[float, ...]

    @property
    def are_on_one_line(self) -> bool:
        """Whether all directions are the same or opposite; a single one is."""
        return bool(((self.units @ self.units.T).abs() > COLINEAR).all())

    def combined(self, coefficients: Tensor) -> LowRank:
        """The sum of coefficient * update, exact, at its numerical rank."""
        signed = [float(c) * sign for c, sign in zip(coefficients, self.signs, strict=True)]
        return exact_sum(self.deltas, signed)


def points(parts: Sequence[tuple[LowRank, float]]) -> Points:
    """Where updates lie; those that cancel to nothing have no direction and are left out.

    Two QRs bring all factors into one basis, [R, R] for a summed rank of R. Gram matrices would tell the inner products
    as well, but lose half the digits of what is close to parallel.
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
