"""Estimates from a sample how far updates contradict each other: signs and cancellation have no Gram matrix.

The name of a module selects a fixed set of its rows and columns, and the entries where they cross are formed: at most
256 x 256 for a module of any size, and all entries of a smaller one. Every run uses the same entries.

Both figures are ratios of sums, so the sums are kept: they add up over modules, and the ratio comes last. Entries of
one row are related (an update has few directions), so the standard error is that of sampled rows and sampled columns
with the finite population correction of each, not of independent entries. It counts the variation of single entries
twice, which makes it too large rather than too small.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np

from adapterhub.formats.derived.algebra import Floats
from adapterhub.formats.documented import Documented

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLED = 256
"""The most rows and columns in the sample of a module."""


class Estimate(NamedTuple):
    """A share in [0, 1] and its standard error, 0 if the sample has every entry."""

    share: float
    standard_error: Annotated[float, "0 if every number was counted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share(Documented, keys="share=estimate.share standard_error=estimate.standard_error"):
    """A share from 0 to 1.

    It keeps a part and a whole as estimated sums over all entries of a module, with their variances; shares add up.
    """

    part: float = 0.0
    whole: float = 0.0
    part_variance: float = 0.0
    covariance: float = 0.0
    whole_variance: float = 0.0

    def __add__(self, other: Share) -> Share:
        """The share over both modules, whose samples are independent."""
        return Share(
            part=self.part + other.part,
            whole=self.whole + other.whole,
            part_variance=self.part_variance + other.part_variance,
            covariance=self.covariance + other.covariance,
            whole_variance=self.whole_variance + other.whole_variance,
        )

    @property
    def estimate(self) -> Estimate:
        """The ratio with its linearised error; 0 for an empty whole."""
        if self.whole == 0:
            return Estimate(0.0, 0.0)
        ratio = self.part / self.whole
        variance = self.part_variance - 2 * ratio * self.covariance + ratio**2 * self.whole_variance
        return Estimate(ratio, math.sqrt(max(variance, 0.0)) / self.whole)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """The sampled rows and columns of one module's [out, width] weight."""

    out: int
    width: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @classmethod
    def of(cls, module: str, out: int, width: int, size: int = SAMPLED) -> Sample:
        """`size` rows and as many columns, the same for the same name; all if there are no more."""
        # numpy's older generator has the stream of torch's for one seed, and keeps it in every release
        generator = np.random.RandomState(zlib.crc32(module.encode("utf-8", "surrogatepass")))
        return cls(out=out, width=width, rows=_some(generator, out, size), columns=_some(generator, width, size))

    def opposite(self, first: Floats, second: Floats) -> Share:
        """The share of the entries changed by both that change in opposite directions."""
        both = (first != 0) & (second != 0)
        return self._share(both & ((first < 0) != (second < 0)), both)

    def cancelled(self, parts: Sequence[Floats]) -> Share:
        """The share of the summed magnitudes of all parts that cancels in their sum: 1 - Σ|Σ x| / Σ Σ|x|."""
        whole, total = np.abs(parts[0]), parts[0].copy()
        for part in parts[1:]:
            whole += np.abs(part)
            total += part
        return self._share(np.maximum(whole - np.abs(total), 0), whole)

    def _share(self, part: NDArray[Any], whole: NDArray[Any]) -> Share:
        """The sums over the module, estimated from sampled entries [rows, columns]."""
        means = np.stack([part, whole]).astype(np.float64, copy=False)
        entries = float(self.out * self.width)
        part_mean, whole_mean = means.mean((1, 2)).tolist()
        spread = _spread(means.mean(2), self.out) + _spread(means.mean(1), self.width)
        (part_variance, covariance), (_, whole_variance) = (spread * entries**2).tolist()
        return Share(
            part=part_mean * entries,
            whole=whole_mean * entries,
            part_variance=part_variance,
            covariance=covariance,
            whole_variance=whole_variance,
        )


def _some(generator: np.random.RandomState, count: int, size: int) -> NDArray[np.int64]:
    """`size` of the numbers below `count`, ascending, as `torch.randperm` draws them; all if there are no more."""
    if count <= size:
        return np.arange(count)
    steps = generator.randint(0, 1 << 32, count - 1, np.uint32)[:size]
    swapped: dict[int, int] = {}
    drawn = []
    for at, step in enumerate(steps.tolist()):  # the start of a Fisher-Yates shuffle
        other = at + step % (count - at)
        drawn.append(swapped.get(other, other))
        swapped[other] = swapped.get(at, at)
    return np.sort(np.array(drawn))


def _spread(means: Floats, population: int) -> Floats:
    """Covariance of the mean of `means` [2, n], a sample of n from `population`; 0 for the whole population."""
    drawn = means.shape[1]
    if drawn == population:
        return np.zeros((2, 2))
    found: Floats = np.cov(means) * ((1 - drawn / population) / drawn)
    return found
