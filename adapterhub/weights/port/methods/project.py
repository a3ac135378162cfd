"""`project`: turn the update as the singular directions of its weight have turned.

A base whose hidden numbers stand in another order, or in rotated axes, says the same and has other weights: V = L W Rᵀ
in place of W, with rotations L and R. Then L B A Rᵀ is the update there. A rotation of the hidden numbers also turns
the embedding of tokens, and that gives one candidate for both sides; the identity is another. If neither explains V,
the rotation that brings one side of W closest to V in the Frobenius norm is the orthogonal factor of V Wᵀ (Schönemann,
1966, doi:10.1007/BF02289451).

A rotation of so many numbers also fits noise. So a candidate counts only if it explains most of the difference, and a
weight that has hardly moved, or moved in another way, keeps its update number for number.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.port.place import Place, rotation

NEEDS: Final[str] = "weights"

_MOVED: Final = 0.3
"""The difference, as a share of the weight, below which nothing has turned."""
_EXPLAINS: Final = 0.5
"""The share of the difference that may be left by a candidate; of random noise, a rotation leaves seven tenths."""
_EXACT: Final = 1e-3
"""What rounding may leave, as a share of the weight."""


def move(place: Place) -> LowRank:
    """Return the turned update, of the same rank."""
    old, new = place.weights()
    plain = float((new - old).norm())
    if plain < _MOVED * float(old.norm()):
        return place.update
    left, right, error = _sides(old, new, place.hidden())
    if error > _EXPLAINS * plain:
        return place.update
    update = place.update
    a, b = update.a.double(), update.b.double()
    return LowRank(a=a if right is None else a @ right.T, b=b if left is None else left @ b, scale=update.scale)


def _sides(old: Tensor, new: Tensor, hidden: Tensor | None) -> tuple[Tensor | None, Tensor | None, float]:
    """Return the rotations of both sides that explain `new` best, None for the identity, and the norm of the rest."""
    one: Tensor | None
    other: Tensor | None
    lefts = [None, *([hidden] if hidden is not None and len(hidden) == len(old) else [])]
    rights = [None, *([hidden] if hidden is not None and len(hidden) == old.shape[1] else [])]
    known = [(one, other, _left(old, new, one, other)) for one in lefts for other in rights]
    best = min(known, key=lambda each: each[2])
    if best[2] <= _EXACT * float(new.norm()):
        return best  # a fit would only add what the weight does not show
    fitted: list[tuple[Tensor | None, Tensor | None, float]] = []
    for one in lefts:
        other = rotation(new.T @ _turned(old, one, None), float(old.norm()), float(new.norm()))
        fitted.append((one, other, _left(old, new, one, other)))
    for other in rights:
        one = rotation(new @ _turned(old, None, other).T, float(old.norm()), float(new.norm()))
        fitted.append((one, other, _left(old, new, one, other)))
    closest = min(fitted, key=lambda each: each[2])
    return closest if closest[2] < _EXPLAINS * best[2] else best


def _turned(matrix: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    matrix = matrix if left is None else torch.mm(left, matrix)
    return matrix if right is None else torch.mm(matrix, right.T)


def _left(old: Tensor, new: Tensor, left: Tensor | None, right: Tensor | None) -> float:
    return float((new - _turned(old, left, right)).norm())
