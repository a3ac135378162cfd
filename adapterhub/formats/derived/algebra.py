"""Low-rank updates `scale * b @ a` as numpy arrays, and their singular values; no [out, in] matrix is formed.

The arithmetic is float64, as in `weights.lowrank.algebra`, which does the same and more on torch's tensors.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeAlias

import numpy as np

from adapterhub.core.errors import MergeRefused
from adapterhub.formats.documented import Documented

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST: Final = 1024


class _Room:
    """Memory for rows, and how many of it are in use."""

    def __init__(self, numbers: NDArray[np.int8]) -> None:
        self.numbers, self.used = numbers, 0


class PackedRows:
    """Rows of signed bytes, [n, size]."""

    def __init__(self, numbers: NDArray[np.int8], room: _Room | None = None) -> None:
        self.numbers, self._room = numbers, room

    def with_more(self, more: NDArray[np.int8], room_for: int = 0) -> PackedRows:
        """Return these and some more.

        Both share their memory, which grows where it is full: an eighth, or to `room_for`.
        """
        before, after = len(self.numbers), len(self.numbers) + len(more)
        room = self._room
        if room is None or room.used != before or len(room.numbers) < after:
            most = max(after, room_for)
            room = _Room(np.empty((most + most // 8 + _LEAST, self.numbers.shape[1]), np.int8))
            room.numbers[:before] = self.numbers
        room.numbers[before:after] = more
        room.used = after
        return PackedRows(room.numbers[:after], room)


ENERGIES: Final = (0.9, 0.99, 0.999)
"""The shares of the energy (squared Frobenius norm) whose ranks are reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energies(
    Documented,
    keys="norm numerical_rank effective_rank stable_rank rank_of_energy=ranks_of_energies singular_values=values",
    title="Spectrum",
):
    """The singular values of an update that a float32 file can hold, descending; none for a zero update."""

    values: tuple[float, ...]

    @classmethod
    def together(cls, parts: Sequence[Energies]) -> Energies:
        """Return the singular values of an update whose parts act on different outputs."""
        if len(parts) == 1:
            return parts[0]
        return cls(values=tuple(sorted((value for part in parts for value in part.values), reverse=True)))

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return math.hypot(*self.values)

    @property
    def numerical_rank(self) -> int:
        """The number of directions."""
        return len(self.values)

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy of the singular values divided by their sum (Roy and Vetterli, 2007).

        Equals the numerical rank when all are equal, and is near 1 when one dominates; 0 for a zero update.
        """
        whole = math.fsum(self.values)
        shares = [value / whole for value in self.values]
        return math.exp(-math.fsum(p * math.log(p) for p in shares if p > 0)) if self.values else 0.0

    @property
    def stable_rank(self) -> float:
        """‖·‖_F² / ‖·‖₂², insensitive to small singular values (arXiv:2407.21594); 0 for a zero update."""
        return math.fsum((value / self.values[0]) ** 2 for value in self.values) if self.values else 0.0

    def lost_at(self, rank: int) -> float:
        """Frobenius norm of the error of the best approximation of that rank (Eckart and Young, 1936)."""
        return math.hypot(*self.values[rank:])

    def rank_within(self, max_error: float) -> int:
        """Smallest rank whose error, relative to the whole, is at most `max_error`."""
        lost = 0.0
        for rank in range(self.numerical_rank, 0, -1):
            lost = math.hypot(lost, self.values[rank - 1])
            if lost > max_error * self.norm:
                return rank
        return 0

    def rank_of_energy(self, energy: float) -> int:
        """Smallest rank that holds this share of the energy; `energy` is at most 1."""
        return self.rank_within(math.sqrt(1 - energy))

    @property
    def ranks_of_energies(self) -> dict[str, int]:
        """The rank that keeps each share of the squared norm."""
        return {f"{energy:g}": self.rank_of_energy(energy) for energy in ENERGIES}


Floats: TypeAlias = "NDArray[np.float64]"

FLOAT32_HALF_STEP: Final = 2.0**-24
"""Relative rounding of float32: a float32 file cannot hold what is smaller, relative to the whole update."""

ROUNDING: Final = 2.0**-44
"""Relative to the terms of a sum: a smaller result is float64 rounding and counts as 0."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayUpdate:
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
class ArraySpectrum:
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
    """Return the singular values of a Kronecker product: every product of one of each.

    Raises:
        MergeRefused: their squares overflow.
    """
    values = np.sort(np.outer(first.values, second.values), axis=None)[::-1]
    if not math.isfinite(np.square(values).sum()):
        raise MergeRefused("holds numbers that are too large to be measured")
    return Energies(values=tuple(values[: _held(values)].tolist()) if values.size else ())


def stack(deltas: Sequence[ArrayUpdate], weights: Sequence[float]) -> ArrayUpdate:
    """Return the sum of weight * delta as one update of the summed rank and scale 1, in float64."""
    b = [np.multiply(d.b, weight * d.scale, dtype=np.float64) for d, weight in zip(deltas, weights, strict=True)]
    return ArrayUpdate(a=np.concatenate([d.a for d in deltas], dtype=np.float64), b=np.concatenate(b, axis=1))


def spectrum(delta: ArrayUpdate) -> ArraySpectrum:
    """Return the spectrum of `delta`; time O((in + out) R² + R³) for rank R.

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
    return ArraySpectrum(
        left=space_b @ left, values=values, right=right @ space_a.T, noise=ROUNDING * float(sizes.sum())
    )


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
        """Return the share over both modules, whose samples are independent."""
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
        """Return the share of the entries changed by both that change in opposite directions."""
        both = (first != 0) & (second != 0)
        return self._share(both & ((first < 0) != (second < 0)), both)

    def cancelled(self, parts: Sequence[Floats]) -> Share:
        """Return the share of the summed magnitudes of all parts that cancels in their sum: 1 - Σ|Σ x| / Σ Σ|x|."""
        whole, total = np.abs(parts[0]), parts[0].copy()
        for part in parts[1:]:
            whole += np.abs(part)
            total += part
        return self._share(np.maximum(whole - np.abs(total), 0), whole)

    def _share(self, part: NDArray[Any], whole: NDArray[Any]) -> Share:
        """Return the sums over the module, estimated from sampled entries [rows, columns]."""
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
