"""Values for a way to move an adapter, one module at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from adapterhub.weights.lowrank.algebra import LowRank


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Place:
    """A module: the `update` of its weight, and what is read on demand.

    `weights` are that of the old base and that of the new one, float64 [out, in]; `hidden` is the rotation of the
    hidden numbers that the embeddings of tokens show, None without any.
    """

    update: LowRank
    weights: Callable[[], tuple[Tensor, Tensor]]
    hidden: Callable[[], Tensor | None]


_ROUNDING: Final = 1e-12


def rotation(product: Tensor, old: float, new: float) -> Tensor:
    """Return the rotation [n, n] that brings rows W closest to rows V, from V Wᵀ [n, n] and both Frobenius norms.

    The part that no rotation explains is noise, which turns weak directions at random. So the identity is added, times
    that noise, which holds such directions in place.
    """
    eye = torch.eye(len(product), dtype=product.dtype)
    left, values, right = torch.linalg.svd(product + _ROUNDING * old * new * eye)
    noise = (old**2 + new**2 - 2 * float(values.sum())) / len(product)
    if noise > _ROUNDING * old * new:
        left, _, right = torch.linalg.svd(product + noise * eye)
    return torch.mm(left, right)
