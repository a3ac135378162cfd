"""Of which known updates an update is a sum: found among sketches, decided by the inner products of the factors.

Orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad, 1993): take the sketch that is nearest to what is left,
solve for the weights of all taken, go on with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from adapterhub.formats.derived.algebra import Floats
from adapterhub.formats.derived.sketch import directions

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_PARENTS: Final = 12
LEFT: Final = 0.03
"""What the sketches of a plain sum leave at most, relative to its norm: the rounding of 256 signed bytes."""
LEAST: Final = 0.05
"""A parent that carries less of the norm may be chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """The weights of the kept parents, by their position, and the norm of what they leave, relative to the whole.

    `alone` is what the best of them leaves by itself.
    """

    weights: dict[int, float]
    unexplained: float
    alone: float


def pursue(target: bytes, known: NDArray[Any], begin: Sequence[int] = ()) -> list[int]:
    """The positions in `known`, [n, NUMBERS] of packed sketches, whose weighted sum comes closest to `target`.

    `begin` are positions that are taken first. Those that carry less than `LEAST` of the norm are left out.
    """
    whole, rows = directions([target])[0], directions(known)
    taken, left = list(begin)[:MOST_PARENTS], whole
    weights = _solved(rows[taken], whole)
    left = whole - weights @ rows[taken]
    while len(taken) < min(MOST_PARENTS, len(rows)) and np.linalg.norm(left) > LEFT:
        near = np.abs(rows @ left)
        near[taken] = -1
        taken.append(int(near.argmax()))
        weights = _solved(rows[taken], whole)
        left = whole - weights @ rows[taken]
    return [at for at, weight in zip(taken, weights.tolist(), strict=True) if abs(weight) >= LEAST]


def _solved(rows: Floats, whole: Floats) -> Floats:
    found: Floats = np.linalg.lstsq(rows.T, whole, rcond=None)[0] if len(rows) else np.zeros(0)
    return found


def explain(products: Floats) -> Explained | None:
    """The least squares of the first update over the others, from their inner products; None where they cannot be used.

    Parents that carry less than `LEAST` of its norm are left out, one after the other, the smallest first.
    """
    whole = float(products[0, 0])
    if not np.isfinite(products).all() or whole <= 0:
        return None
    kept = [at for at in range(1, len(products)) if products[at, at] > 0]
    while True:
        sizes = np.sqrt(products[kept, kept])
        correlations = products[np.ix_(kept, kept)] / np.outer(sizes, sizes)
        shares = np.linalg.lstsq(correlations, products[kept, 0] / sizes, rcond=1e-9)[0] if kept else np.zeros(0)
        carried = np.abs(shares) / np.sqrt(whole)
        if not kept or carried.min() >= LEAST:
            break
        del kept[int(carried.argmin())]
    weights = shares / sizes if kept else shares
    left = whole - 2 * weights @ products[kept, 0] + weights @ products[np.ix_(kept, kept)] @ weights
    best = max((products[0, at] ** 2 / products[at, at] for at in kept), default=0.0)
    return Explained(
        weights={at - 1: float(weight) for at, weight in zip(kept, weights, strict=True)},
        unexplained=float(np.sqrt(max(float(left), 0.0) / whole)),
        alone=float(np.sqrt(max(whole - float(best), 0.0) / whole)),
    )
