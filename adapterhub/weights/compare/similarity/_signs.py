"""How far updates contradict each other, entry by entry, from a sample: signs and cancellation have no Gram matrix.

A fixed set of rows and columns of each module is drawn by its name, and the entries where they cross are formed: 256 x
256 of them at most, whatever the module's size, and all of them, exactly, where it is no larger. Two runs see the same
entries.

Both figures are ratios of sums, so moments are kept: they add up over modules, and the ratio is taken last. Entries of
one row are related (an update has few directions), so the standard error is that of sampled rows and sampled columns,
not of independent entries, with the finite population correction of each; what varies with the single entry is counted
in both, which errs to the safe side.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SAMPLED = 256
"""Rows and columns of a module that are looked at."""


class Estimate(NamedTuple):
    """A share in [0, 1] and its standard error, 0 where every entry was looked at."""

    share: float
    standard_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Part and whole, as estimated sums over all entries of a module, with their variances; shares add up."""

    part: float = 0.0
    whole: float = 0.0
    part_variance: float = 0.0
    covariance: float = 0.0
    whole_variance: float = 0.0

    def __add__(self, other: Share) -> Share:
        """Over both modules; their samples are drawn independently."""
        return Share(
            part=self.part + other.part,
            whole=self.whole + other.whole,
            part_variance=self.part_variance + other.part_variance,
            covariance=self.covariance + other.covariance,
            whole_variance=self.whole_variance + other.whole_variance,
        )

    def to_json(self) -> dict[str, float]:
        """The estimate."""
        return self.estimate._asdict()

    @property
    def estimate(self) -> Estimate:
        """The ratio, its error linearised; 0 of nothing is 0."""
        if self.whole == 0:
            return Estimate(0.0, 0.0)
        ratio = self.part / self.whole
        variance = self.part_variance - 2 * ratio * self.covariance + ratio**2 * self.whole_variance
        return Estimate(ratio, math.sqrt(max(variance, 0.0)) / self.whole)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """The rows and columns of one module's [out, width] weight that are looked at."""

    out: int
    width: int
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, module: str, out: int, width: int, size: int = SAMPLED) -> Sample:
        """`size` rows and as many columns, the same for the same name; all where there are no more."""
        generator = torch.Generator().manual_seed(zlib.crc32(module.encode("utf-8", "surrogatepass")))

        def some(count: int) -> Tensor:
            return (
                torch.randperm(count, generator=generator)[:size].sort().values if count > size else torch.arange(count)
            )

        return cls(out=out, width=width, rows=some(out), columns=some(width))

    def opposite(self, first: Tensor, second: Tensor) -> Share:
        """Of the entries that both change, those that they change in opposite directions."""
        both = (first != 0) & (second != 0)
        return self._share(both & ((first < 0) != (second < 0)), both)

    def cancelled(self, parts: Sequence[Tensor]) -> Share:
        """Of the summed magnitudes of all parts, what is gone in their sum: 1 - Σ|Σ x| / Σ Σ|x|."""
        whole, total = parts[0].abs(), parts[0].clone()
        for part in parts[1:]:
            whole += part.abs()
            total += part
        return self._share((whole - total.abs_()).clamp_(min=0), whole)

    def _share(self, part: Tensor, whole: Tensor) -> Share:
        """Sums over the module from the entries of the sample, [rows, columns] each."""
        means = torch.stack([part.double(), whole.double()])
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


def _spread(means: Tensor, population: int) -> Tensor:
    """Covariance of the mean of `means` [2, n], n of `population` having been drawn; 0 where all were."""
    drawn = means.shape[1]
    if drawn == population:
        return means.new_zeros(2, 2)
    return torch.cov(means) * ((1 - drawn / population) / drawn)
