"""Low-rank updates `scale * b @ a` as numpy arrays, and their singular values; no [out, in] matrix is formed.

The arithmetic is float64, as in `weights.lowrank.algebra`, which does the same and more on torch's tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from adapterhub.core.errors import MergeRefused
from adapterhub.formats.derived.energies import Energies

if TYPE_CHECKING:
    from numpy.typing import NDArray

Floats: TypeAlias = "NDArray[np.float64]"

FLOAT32_HALF_STEP: Final = 2.0**-24
"""Relative rounding of float32: a float32 file cannot hold what is smaller, relative to the whole update."""

ROUNDING: Final = 2.0**-44
"""Relative to the terms of a sum: a smaller result is float64 rounding and counts as 0."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Update:
    """The update `scale * b @ a` of one weight: `a` is [rank, in], `b` is [out, rank], of any floating dtype."""

    a: Floats
    b: Floats
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """The number of columns of `b`."""
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the updated weight."""
        return int(self.b.shape[0]), int(self.a.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrum:
    """The singular values of an update (descending) and its singular vectors: `left` [out, r], `right` [r, in].

    A singular value below `noise` is float64 rounding of the summed terms.
    """

    left: Floats
    values: Floats
    right: Floats
    noise: float

    @property
    def numerical_rank(self) -> int:
        """The number of directions that a float32 file can hold; 0 for an update that cancels to zero."""
        return _held(self.values, self.noise)

    @property
    def energies(self) -> Energies:
        """The singular values that count."""
        return Energies(values=tuple(self.values[: self.numerical_rank].tolist()))


def _held(values: Floats, noise: float = 0.0) -> int:
    tails = np.sqrt(np.cumsum(np.square(values)[::-1])[::-1])
    return int((tails > max(noise, FLOAT32_HALF_STEP * float(tails[0]))).sum())


def kronecker(first: Energies, second: Energies) -> Energies:
    """The singular values of a Kronecker product: every product of one of each.

    Raises:
        MergeRefused: their squares overflow.
    """
    values = np.sort(np.outer(first.values, second.values), axis=None)[::-1]
    if not math.isfinite(np.square(values).sum()):
        raise MergeRefused("holds numbers that are too large to be measured")
    return Energies(values=tuple(values[: _held(values)].tolist()) if values.size else ())


def stack(deltas: Sequence[Update], weights: Sequence[float]) -> Update:
    """The sum of weight * delta as one update of the summed rank and scale 1, in float64."""
    b = [np.multiply(d.b, weight * d.scale, dtype=np.float64) for d, weight in zip(deltas, weights, strict=True)]
    return Update(a=np.concatenate([d.a for d in deltas], dtype=np.float64), b=np.concatenate(b, axis=1))


def spectrum(delta: Update) -> Spectrum:
    """The spectrum of `delta`; time O((in + out) R² + R³) for rank R.

    Raises:
        MergeRefused: the decomposition fails, for example where the product of the factors overflows.
    """
    try:
        space_a, triangle_a = np.linalg.qr(delta.a.T.astype(np.float64, copy=False))
        space_b, triangle_b = np.linalg.qr(np.multiply(delta.b, delta.scale, dtype=np.float64))
        left, values, right = np.linalg.svd(triangle_b @ triangle_a.T, full_matrices=False)
    except np.linalg.LinAlgError:
        reason = "the singular values cannot be computed: the numbers are too large or too far apart"
        raise MergeRefused(reason, hint="`adapt verify` shows the largest numbers") from None
    sizes = np.linalg.norm(triangle_a, axis=0) * np.linalg.norm(triangle_b, axis=0)
    return Spectrum(left=space_b @ left, values=values, right=right @ space_a.T, noise=ROUNDING * float(sizes.sum()))
