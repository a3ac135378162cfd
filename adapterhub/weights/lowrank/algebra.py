"""Low-rank updates `scale * b @ a` of one weight matrix, and their algebra.

Every function works on the factors and forms no [out, in] matrix, so an 11008 x 4096 update of rank 32 costs 4 MB and
milliseconds. The arithmetic is float64 for any input dtype. Float32 suffices for a sum of unrelated adapters, but not
for a difference of near relatives (a fine-tune minus its parent), which is far smaller than its terms. On a CPU, these
float64 factorisations cost no more than float32 ones that form their orthogonal factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, final

import torch
from torch import Tensor

from adapterhub.core.errors import MergeRefused, UsageProblem

MATRIX_NDIM: Final = 2

FLOAT32_HALF_STEP = 2.0**-24
"""Relative rounding of float32: a float32 file cannot hold what is smaller, relative to the whole update."""

ROUNDING = 2.0**-44
"""Relative to the terms of a sum: a smaller result is float64 rounding (measured: at most 2**-48.5) and counts as 0."""


_WELL_APART = 2.0**-7  # sine of the angle between a column and those before it; the square root of 2**-14 costs 14 bits
_LEAST_SIZE = 2.0**-480  # below it squares are subnormal

_FEW_ROWS: Final = range(12, 49)
"""Counts of rows whose products numpy forms in half of torch's time; fewer or more take torch less."""

_ALONE: Final = 1 << 18
"""Multiplications up to which OpenBLAS starts no threads; the last digits of a sum depend on their number."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRank:
    """The update `scale * b @ a` of one weight: `a` is [rank, in], `b` is [out, rank], floating point, same device.

    Rank 0 is the update of a module that an adapter lacks.
    """

    a: Tensor
    b: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.a.ndim == self.b.ndim == MATRIX_NDIM or self.a.shape[0] != self.b.shape[1]:
            raise ValueError(f"no low-rank pair: a is {list(self.a.shape)}, b is {list(self.b.shape)}")

    @property
    def rank(self) -> int:
        """The number of columns of `b`; the true rank of the update may be lower, see `numerical_rank`."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the updated weight."""
        return self.b.shape[0], self.a.shape[1]

    def folded(self, dtype: torch.dtype) -> LowRank:
        """Return the same update with scale 1 in `dtype`: the scale goes into `b`, and each number is rounded once."""
        b = self.b if self.scale == 1 else self.b.double() * self.scale
        return LowRank(a=self.a.to(dtype), b=b.to(dtype))

    def is_finite(self) -> bool:
        """Return whether no number is NaN or infinite."""
        # aminmax returns NaN if there is one, so its two numbers suffice; isfinite(...).all() costs ten times more.
        ends = [end for factor in (self.a, self.b) if factor.numel() for end in factor.aminmax()]
        return math.isfinite(self.scale) and all(math.isfinite(float(end)) for end in ends)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankCut(LowRank):
    """An approximation of a larger update: `lost` is the Frobenius norm of the error, `whole` that of the update."""

    lost: float
    whole: float


def nothing(out: int, width: int, rank: int = 0) -> LowRank:
    """Return the zero update of an [out, width] weight, in float64; use rank 1 where a file needs a rank."""
    return LowRank(a=torch.zeros(rank, width, dtype=torch.float64), b=torch.zeros(out, rank, dtype=torch.float64))


def taking_part(deltas: Sequence[LowRank], weights: Sequence[float]) -> list[tuple[LowRank, float]]:
    """Return the updates with a weight and a rank other than 0, and their weights.

    Raises:
        ValueError: no delta, not one weight each, or shapes differ.
    """
    _ = Summands.of(deltas).shape
    return [(d, weight) for d, weight in zip(deltas, weights, strict=True) if weight != 0 and d.rank]


@final
class Summands(tuple[LowRank, ...]):  # noqa: SLOT001 - it keeps what it has made
    """Updates of one weight, whose columns and Gram matrices are made once: for their sum, its cut and the errors.

    Raises:
        ValueError: no update, or shapes differ.
    """

    @classmethod
    def of(cls, deltas: Iterable[LowRank]) -> Summands:
        """Return these updates; the same object if they are summands already."""
        return deltas if isinstance(deltas, cls) else cls(deltas)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the updated weight."""
        shapes = {delta.shape for delta in self}
        if len(shapes) != 1:
            raise ValueError(f"{len(self)} updates of shapes {sorted(shapes)}, expected one shape")
        return shapes.pop()

    @cached_property
    def columns(self) -> tuple[Tensor, Tensor]:
        """All rows of `a` [rank, in] and all columns of `b` [out, rank], without scales, in float64."""
        out, width = self.shape
        device, rank = self[0].a.device, sum(delta.rank for delta in self)
        a = torch.empty(rank, width, dtype=torch.float64, device=device)
        b = torch.empty(rank, out, dtype=torch.float64, device=device).T  # products of long columns are a third faster
        start = 0
        for delta in self:
            a[start : start + delta.rank] = delta.a
            b[:, start : start + delta.rank] = delta.b
            start += delta.rank
        return a, b

    @cached_property
    def grams(self) -> tuple[Tensor, Tensor]:
        """The products a @ a.T and b.T @ b of the columns."""
        a, b = self.columns
        return row_products(a), row_products(b.T)

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        # The products show each such number; they also overflow where large numbers do not.
        shown_finite = all(math.isfinite(float(gram.sum())) for gram in self.grams)
        return (shown_finite and all(math.isfinite(d.scale) for d in self)) or all(d.is_finite() for d in self)


def row_products(rows: Tensor, others: Tensor | None = None) -> Tensor:
    """Return the product rows @ others.T of float64 matrices of a few long rows; without `others` rows @ rows.T."""
    (count, length), partners = rows.shape, len(rows if others is None else others)
    width = _ALONE // max(1, count * (partners + 1)) // 8 * 8
    if partners not in _FEW_ROWS or not 0 < width < length or rows.device.type != "cpu":
        return rows @ (rows if others is None else others).T
    import numpy as np

    whole = length - length % width
    left = rows.numpy()
    right = left if others is None else others.numpy()
    pieces = left[:, :whole].reshape(count, -1, width).transpose(1, 0, 2)
    # numpy forms only half of a product of one array with itself
    more = pieces if others is None else right[:, :whole].reshape(partners, -1, width).transpose(1, 0, 2)
    with np.errstate(all="ignore"):  # callers look whether sums are finite
        total = (pieces @ more.transpose(0, 2, 1)).sum(0)
        total += left[:, whole:] @ right[:, whole:].T
    return torch.from_numpy(total)


def factors_of(summands: Summands, weights: Sequence[float]) -> Tensor:
    """Weight * scale of each column, in float64.

    Raises:
        ValueError: not one weight for each update.
    """
    factors = [weight * d.scale for d, weight in zip(summands, weights, strict=True) for _ in range(d.rank)]
    return torch.tensor(factors, dtype=torch.float64, device=summands.columns[0].device)


def stack(deltas: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """Return the sum of weight * delta as one update of the summed rank and scale 1, in float64.

    `a` holds the rows of every `a` unchanged; weights and scales, with their signs, go into `b`.

    Raises:
        ValueError: no delta, not one weight each, or shapes differ.
    """
    summands = Summands.of(deltas)
    a, b = summands.columns
    return LowRank(a=a, b=b * factors_of(summands, weights))


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """The singular values of a sum of updates (float64, descending), and what a cut to any rank needs.

    A singular value below `noise` is float64 rounding of the summed terms.
    """

    summands: Summands
    factors: Tensor
    triangle_a: Tensor
    triangle_b: Tensor
    left: Tensor
    values: Tensor
    right: Tensor
    noise: float

    def tails(self) -> Tensor:
        """Frobenius norms of the loss at rank 0, 1, 2, …; one entry more than singular values."""
        squares = torch.cat([self.values.square(), self.values.new_zeros(1)])
        return squares.flip(0).cumsum(0).flip(0).sqrt()

    @cached_property
    def numerical_rank(self) -> int:
        """The number of directions that a float32 file can hold; 0 for an update that cancels to zero."""
        tails = self.tails()
        return int((tails > max(self.noise, FLOAT32_HALF_STEP * float(tails[0]))).sum())

    def rank_within(self, max_error: float) -> int:
        """Return the smallest rank whose truncation error, relative to the whole update, is at most `max_error`."""
        tails = self.tails()
        return int((tails > max_error * float(tails[0])).sum())

    def truncate(self, rank: int) -> LowRank:
        """Return the closest update of that rank, its factors balanced, in float64.

        Drops numerically empty directions, so the rank of the result may be lower than `rank`, but at least 1 (all
        zeros if no direction is left).
        """
        keep = min(rank, self.numerical_rank)
        if keep < 1:
            return nothing(*self.summands.shape, rank=1)
        root = self.values[:keep].rsqrt()
        # The singular vectors combine the rows of a and the columns of b, so the orthogonal factors of the two QRs are
        # never formed: with b = Qb Tb, a.T = Qa Ta and Tb Ta.T = U S V.T,
        # S^½ V.T Qa.T = S^-½ U.T Tb a, and Qb U S^½ = b Ta.T V S^-½.
        into_a = (self.left[:, :keep] * root).T @ self.triangle_b
        into_b = self.triangle_a.T @ (self.right[:keep].T * root)
        a, b = self.summands.columns
        return LowRank(a=into_a @ a, b=((self.factors[:, None] * into_b).T @ b.T).T)


def decomposed(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, the singular values and V.T of a matrix.

    Raises:
        MergeRefused: the decomposition fails, for example where the product of the factors overflows.
    """
    try:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # public, not re-exported
        reason = "the singular values cannot be computed: the numbers are too large or too far apart"
        raise MergeRefused(f"{reason}. Nothing was written", hint="`adapt verify` shows the largest numbers") from None
    return left, values, right


def spectrum(delta: LowRank) -> Spectrum:
    """Return the spectrum of one update; as `sum_spectrum`."""
    return sum_spectrum([delta], [1.0])


def sum_spectrum(deltas: Sequence[LowRank], weights: Sequence[float]) -> Spectrum:
    """Return the spectrum of the sum of weight * delta; time O((in + out) R² + R³) for summed rank R.

    Raises:
        ValueError: as `stack`.
    """
    summands = Summands.of(deltas)
    factors = factors_of(summands, weights)
    (a, b), (gram_a, gram_b) = summands.columns, summands.grams
    triangle_a, triangle_b = _triangle(a.T, gram_a), _triangle(b, gram_b) * factors
    left, values, right = decomposed(triangle_b @ triangle_a.T)
    return Spectrum(
        summands=summands,
        factors=factors,
        triangle_a=triangle_a,
        triangle_b=triangle_b,
        left=left,
        values=values,
        right=right,
        noise=_noise(triangle_a, triangle_b),
    )


def exact_sum(deltas: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """Return the sum of weight * delta at its numerical rank; a zero update of rank 1 if it cancels.

    Raises:
        ValueError: as `stack`.
    """
    decomposition = sum_spectrum(deltas, weights)
    kept = decomposition.numerical_rank
    # Truncation transforms the factors; without empty directions the stacked ones stay exact.
    return (
        stack(decomposition.summands, weights) if kept == len(decomposition.factors) else decomposition.truncate(kept)
    )


def cut(delta: LowRank, *, rank: int | None = None, max_error: float | None = None) -> RankCut:
    """Return the closest update to `delta`; as `cut_sum`."""
    return cut_sum([delta], [1.0], rank=rank, max_error=max_error)


def cut_sum(
    deltas: Sequence[LowRank], weights: Sequence[float], *, rank: int | None = None, max_error: float | None = None
) -> RankCut:
    """Return the closest update to the sum in the Frobenius norm (Eckart and Young, 1936); float64, scale 1.

    With `rank`, the result has that rank, or a lower one if the sum has fewer directions; with `max_error`, the
    smallest rank with at most that error relative to the sum; with neither, the numerical rank. Time as `sum_spectrum`.

    Raises:
        UsageProblem: both are given, or one is out of range.
        ValueError: as `stack`.
    """
    check_rank(rank, max_error)
    decomposition = sum_spectrum(deltas, weights)
    tails = decomposition.tails()
    if max_error is not None:
        rank = decomposition.rank_within(max_error)
    kept = decomposition.truncate(decomposition.numerical_rank if rank is None else rank)
    lost, whole = (float(tails[kept.rank]), float(tails[0])) if decomposition.numerical_rank else (0.0, 0.0)
    return RankCut(a=kept.a, b=kept.b, lost=lost, whole=whole)


def check_rank(rank: int | None, max_error: float | None) -> None:
    """Raise unless a cut can have this rank or this error.

    Raises:
        UsageProblem: both are given, or one is out of range.
    """
    if rank is not None and max_error is not None:
        raise UsageProblem("rank and max_error exclude each other", hint="give one of `--rank` and `--max-error`")
    if rank is not None and rank < 1:
        raise UsageProblem(f"rank {rank}, expected at least 1")
    if max_error is not None and not 0 <= max_error < 1:
        raise UsageProblem(f"max_error {max_error}, expected at least 0 and below 1")


def error_of_energy(energy: float) -> float:
    """Return the relative error of a cut that keeps this share of the squared norm: sqrt(1 - energy), below 1.

    Raises:
        UsageProblem: the share is out of range.
    """
    if not 0 < energy <= 1:
        raise UsageProblem(f"energy {energy}, expected more than 0 and at most 1")
    return min(math.sqrt(1 - energy), math.nextafter(1, 0))  # an energy below 1e-16 rounds to an error of 1


def limit_of(*, rank: int | None, max_error: float | None, energy: float | None) -> dict[str, float]:
    """Return the given limit by its name; empty without one.

    Raises:
        UsageProblem: more than one is given, or one is out of range.
    """
    limit = {
        name: value
        for name, value in {"rank": rank, "max_error": max_error, "energy": energy}.items()
        if value is not None
    }
    if len(limit) > 1:
        hint = "give one of `--rank N`, `--energy E` and `--max-error E`"
        raise UsageProblem(f"{' and '.join(limit)} exclude each other", hint=hint)
    check_rank(rank, max_error)
    if energy is not None:
        error_of_energy(energy)
    return limit


def singular_values(delta: LowRank) -> Tensor:
    """Return the min(rank, in, out) singular values of the update, descending, float64."""
    return spectrum(delta).values


def frobenius_norm(delta: LowRank) -> float:
    """Frobenius norm of the update."""
    return float(torch.linalg.vector_norm(singular_values(delta)))


def norm_by_qr(a: Tensor, b: Tensor) -> float:
    """‖b a‖ without squares; 0 if it is only rounding."""
    triangle_a, triangle_b = _triangle(a.T, a @ a.T), _triangle(b, b.T @ b)
    norm = float(torch.linalg.matrix_norm(triangle_b @ triangle_a.T))
    return norm if norm > _noise(triangle_a, triangle_b) else 0.0


def _triangle(tall: Tensor, gram: Tensor) -> Tensor:
    """Return the triangular factor of a QR, up to signs: [min(rows, columns), columns]; `gram` is tall.T @ tall.

    For columns that are well apart, this is the Cholesky factor of their Gram matrix, which takes half the time; only
    otherwise do squares lose digits (Golub and Van Loan, Matrix Computations, 5.3).
    """
    if tall.shape[0] > tall.shape[1] > 0:
        sizes = gram.diagonal().sqrt()
        lower, failed = torch.linalg.cholesky_ex(gram / torch.outer(sizes, sizes))
        if not failed and float(lower.diagonal().min()) > _WELL_APART and float(sizes.min()) > _LEAST_SIZE:
            upper: Tensor = lower.T * sizes
            return upper
    triangle: Tensor = torch.linalg.qr(tall, mode="r").R
    return triangle


def _noise(triangle_a: Tensor, triangle_b: Tensor) -> float:
    """Return the expected rounding of a sum of rank-1 terms, from their sizes.

    A triangle keeps the lengths of columns.
    """
    sizes = torch.linalg.vector_norm(triangle_a, dim=0) * torch.linalg.vector_norm(triangle_b, dim=0)
    return ROUNDING * float(sizes.sum())


class ModuleErrors(dict[str, tuple[float, float]]):
    """The Frobenius norms of the error and of the exact update, by module."""

    def record(self, module: str, parts: Iterable[tuple[float, float]]) -> tuple[float, float]:
        """Add a module from the norms of its parts; the norms of the module."""
        error, norm = (math.hypot(*column) for column in zip(*parts, strict=True))
        self[module] = error, norm
        return error, norm

    @property
    def total(self) -> tuple[float, float]:
        """The norms over all modules."""
        return math.hypot(*(error for error, _ in self.values())), math.hypot(*(norm for _, norm in self.values()))

    @property
    def relative(self) -> float:
        """The relative error over all modules."""
        return _ratio(*self.total)

    @property
    def worst(self) -> tuple[str, float]:
        """The module with the largest relative error, and that error; an empty name without modules."""
        name = max(self, key=lambda module: _ratio(*self[module]), default="")
        return name, _ratio(*self.get(name, (0.0, 0.0)))


def _ratio(error: float, norm: float) -> float:
    return error / norm if error else 0.0


def difference_norms(deltas: Sequence[LowRank], weights: Sequence[float], result: LowRank) -> tuple[float, float]:
    """Return (‖result - sum of weight * delta‖, ‖sum of weight * delta‖), Frobenius, in float64.

    Weights and scales enter as float64 factors of r x r Gram matrices, so the reference is never rounded to the dtype
    of a file. Squares lose half the digits when terms cancel; the norm then comes from QR factors. A result that keeps
    the rows of `a` needs no QR, because the difference is formed in `b` before any square. A norm below `ROUNDING` of
    the terms is returned as 0.

    Raises:
        ValueError: no delta, not one weight each, or shapes differ.
    """
    summands, own = Summands.of(deltas), Summands([result])
    if own.shape != summands.shape:
        raise ValueError(f"a result of shape {own.shape}, expected {summands.shape}")
    factors, mine = factors_of(summands, weights), factors_of(own, [-1.0])
    (a, b), (gram_a, gram_b), (mine_a, mine_b) = summands.columns, summands.grams, own.columns
    norm = _norm_by_gram(gram_a * gram_b, factors)
    if norm is None:
        norm = norm_by_qr(a, b * factors)
    if torch.equal(a, mine_a):
        apart = b * factors + mine_b * mine
        return math.sqrt(max(float((row_products(apart.T) * gram_a).sum()), 0.0)), norm
    across = row_products(a, mine_a) * row_products(b.T, mine_b.T)
    mine_gram_a, mine_gram_b = own.grams
    alone = mine_gram_a * mine_gram_b
    products = torch.cat([torch.cat([gram_a * gram_b, across], dim=1), torch.cat([across.T, alone], dim=1)])
    error = _norm_by_gram(products, torch.cat([factors, mine]))
    if error is None:
        error = norm_by_qr(torch.cat([a, mine_a]), torch.cat([b * factors, mine_b * mine], dim=1))
    return error, norm


def _norm_by_gram(products: Tensor, factors: Tensor) -> float | None:
    """‖b diag(factors) a‖, where `products` is (b.T b) * (a a.T) elementwise; None if too much cancels."""
    terms = products * torch.outer(factors, factors)
    square, size = float(terms.sum()), float(terms.abs().sum())
    if not math.isfinite(size):
        return math.inf
    # The absolute error of the sum is about eps * size, so six of its digits are right where this holds.
    return math.sqrt(square) if square > 1e6 * torch.finfo(torch.float64).eps * size else None
