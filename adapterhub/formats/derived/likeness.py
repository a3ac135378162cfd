"""How alike the updates of adapters are, exactly: from their factors, and never a dense matrix.

Two updates `s1 b1 a1` and `s2 b2 a2` of one weight have the inner product `s1 s2 sum((b1.T b2) * (a1 a2.T))`. Modules
count as shared where name, shape and parts agree; where they do not, the product is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from adapterhub.formats.derived.algebra import Floats, Update
from adapterhub.formats.derived.reading import AdapterUpdates

Kind = Literal["same update", "negated", "near", "related", "far"]

SAME: Final = 0.9995
"""The least cosine of one update stored twice: bfloat16 and int8 keep 0.9999; two seeds of one recipe reach 0.998."""
NEAR: Final = 0.9
RELATED: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Alike:
    """Two updates: their cosine, and the `scale` that brings the first closest to the second.

    `shared` counts the modules of both, `modules` those of the first. None for `cosine` and `scale` where an update is
    zero or not finite.
    """

    cosine: float | None
    scale: float | None
    shared: int
    modules: int


def kind_of(cosine: float) -> Kind:
    """The class of two updates by their exact cosine."""
    if cosine <= -NEAR:
        return "negated"
    if cosine >= SAME:
        return "same update"
    return "near" if cosine >= NEAR else "related" if abs(cosine) >= RELATED else "far"


def alike(first: AdapterUpdates, others: Sequence[AdapterUpdates]) -> list[Alike]:
    """The first adapter beside each other one, with the memory of one module of each.

    Raises:
        UnsupportedAdapter: a module is too large to compute.
    """
    products, shared = _products([first, *others], only_first=True)
    found = []
    for at in range(1, len(others) + 1):
        own, theirs, both = (float(products[i, j]) for i, j in ((0, 0), (at, at), (0, at)))
        norms = math.sqrt(own) * math.sqrt(theirs) if own > 0 and theirs > 0 else 0.0
        is_known = 0 < norms < math.inf and math.isfinite(both)
        found.append(
            Alike(
                cosine=min(1.0, max(-1.0, both / norms)) if is_known else None,
                scale=both / own if is_known else None,
                shared=int(shared[at]),
                modules=len(first.modules),
            )
        )
    return found


def gram(adapters: Sequence[AdapterUpdates]) -> Floats:
    """The inner products of the updates, [n, n]."""
    return _products(adapters, only_first=False)[0]


def _products(adapters: Sequence[AdapterUpdates], *, only_first: bool) -> tuple[Floats, list[int]]:
    """The inner products, and how many modules each shares with the first; 0 where `only_first` passes a pair over."""
    count = len(adapters)
    products, shared = np.zeros((count, count)), [0] * count
    with np.errstate(all="ignore"):  # products of hostile numbers are not finite
        for module in sorted({name for one in adapters for name in one.modules}):
            for holders in _of_one_shape(adapters, module):
                parts = {at: _wide(adapters[at].parts(module)) for at in holders}
                for at in holders:
                    shared[at] += 0 in parts
                    for other in holders:
                        if at <= other and (at in (0, other) or not only_first):
                            products[at, other] += _product(parts[at], parts[other])
    return products + np.triu(products, 1).T, shared


def _of_one_shape(adapters: Sequence[AdapterUpdates], module: str) -> Iterator[list[int]]:
    """The positions of the adapters with this module, those of one shape together."""
    found: dict[tuple[int, int, int], list[int]] = {}
    for at, one in enumerate(adapters):
        if module in one.modules:
            layout = one.modules[module].layout
            found.setdefault((layout.out, layout.width, layout.parts), []).append(at)
    yield from found.values()


def _wide(parts: Sequence[Update]) -> list[Update]:
    return [Update(a=part.a.astype("f8"), b=part.b.astype("f8"), scale=part.scale) for part in parts]


def _product(first: Sequence[Update], second: Sequence[Update]) -> float:
    return float(
        sum(
            one.scale * other.scale * np.sum((one.b.T @ other.b) * (one.a @ other.a.T))
            for one, other in zip(first, second, strict=True)
        )
    )
