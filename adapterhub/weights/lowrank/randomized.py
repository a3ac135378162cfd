"""The closest low-rank update to a dense matrix, found with a few products instead of a full decomposition.

A merge that prunes in delta space ends with a matrix of full rank: a few directions that matter above a floor of noise.
Its leading singular vectors are found by block Krylov iteration from a random start (Halko, Martinsson and Tropp 2011,
arXiv:0909.4061; Musco and Musco 2015, arXiv:1504.05477), done as a block bidiagonalization (Golub, Luk and Overton
1981) whose vectors are all kept orthogonal: on the spaces reached so far the matrix is left @ core @ right.T, and the
singular values of the small core approach those of the matrix from below.

When to stop. The square of the truncation error is ‖matrix‖² minus the sum of the squares of the kept values, so it is
within 1 % of the optimal error when that sum still lacks at most 2 % of the squared error. Every product enlarges a
space and the sum never falls; where the spectrum has no gap it lacks about c / j² after j pairs of products (Musco and
Musco, theorem 1), with a gap exponentially little. So what it lacks is at most j / 2 times what the last pair of
products gave, and twice that is allowed for in the first four. The block is wider than the rank, so that values of any
multiplicity are found. In the end the error is measured, matrix against factors, not estimated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from adapterhub.weights.lowrank.algebra import FLOAT32_HALF_STEP, Cut, check_rank, cut, decomposed, nothing

__all__ = ["closest", "strips"]

_EXTRA: Final = 8
"""Columns of the block beyond the rank: with fewer it takes more products, with more each costs more."""

_PAIR: Final = 2
"""One product with the matrix and one with its transpose."""

_LACKING: Final = 0.02
"""Part of the squared error that the kept values may lack."""

_FIRST_RANK: Final = 32
"""Where the search for a rank begins that stays within an error."""

_SMALL: Final = 160
"""Matrices with a side up to this are decomposed in full: it takes milliseconds."""

_DIRECT: Final = 1024
"""Shorter sides up to this are decomposed as they are; the Gram matrix of a larger one is several times as quick."""

_SHARE: Final = 0.6
"""Part of the shorter side that the spaces may reach: beyond it a full decomposition is as quick."""

_BLOCKS: Final = 5
"""Blocks that must fit into that part; with room for fewer most searches would end in a full decomposition."""

_COARSE: Final = 0.01
"""Relative error below which float32 products cannot tell the squared error to a percent any more."""

_TINY: Final = 1e-9
"""Part of a sum that counts as nothing where it would be divided by."""

_SINGLE_FLOOR, _DOUBLE_FLOOR = 1e-6, 1e-15
"""Rounding of a sum of squared singular values, relative to ‖matrix‖², in float32 and in float64 products."""

STRIP: Final = 1 << 20
"""Numbers of a strip of rows: 4 MB of float32 stay in a processor's cache, and threads are started rarely enough."""

_SAFE: Final = 2.0**40
"""Largest magnitudes between 1 / this and this need no scaling: no square overflows or vanishes."""


def closest(matrix: Tensor, *, rank: int | None, max_error: float | None, seed: int = 0) -> Cut:
    """The update of lowest error to a float32 or float64 [out, in] matrix, its factors balanced, in float64.

    With `rank`, of that rank, or less where the matrix has fewer directions that a float32 file could carry; with
    `max_error`, of the smallest rank whose error relative to the matrix is at most that; with neither, of full rank.
    `lost` is measured (to 1e-3 of itself, unless it is float32 rounding), and at most 1 % above the smallest possible.
    The same seed gives the same result.

    Time is that of about 6 products with a block of rank + 8 vectors; memory besides the matrix a few such blocks. For
    a rank beyond an eighth of the shorter side, given or needed for `max_error`, time is that of a full decomposition.

    Raises:
        UsageProblem: rank and max_error are both given, or one is out of range.
        ValueError: no float32 or float64 matrix, or numbers that are not finite.
    """
    check_rank(rank, max_error)
    if matrix.ndim != 2 or matrix.dtype not in (torch.float32, torch.float64):  # noqa: PLR2004 - a matrix
        raise ValueError(f"{matrix.ndim} dimensions of {matrix.dtype}, expected a float32 or float64 matrix")
    largest = max((abs(float(end)) for end in matrix.aminmax()), default=0.0) if matrix.numel() else 0.0
    if not math.isfinite(largest):
        raise ValueError("the matrix holds NaN or infinite numbers")
    if largest == 0:
        return cut(nothing(matrix.shape[0], matrix.shape[1], 1), rank=1)
    exponent = 0
    if not 1 / _SAFE <= largest <= _SAFE:
        exponent = math.frexp(largest)[1]
        # In float64: the factor itself would not fit float32 for the smallest numbers.
        matrix = torch.cat([(matrix[at].double() * 2.0**-exponent).to(matrix.dtype) for at in strips(matrix)])
    goal = _Goal(rank=rank, max_error=max_error, whole=_norm(matrix))
    triplets = _search(matrix, goal, seed)
    count = triplets.count
    b, a, lost = _measured(matrix, triplets, count, goal.whole)
    # Values are a little too small, and rounded: whether an error that was asked for is met is measured.
    while max_error is not None and lost > max_error * goal.whole and count < goal.solid(triplets.values):
        count = goal.after(triplets.values, count, lost)
        b, a, lost = _measured(matrix, triplets, count, goal.whole)
    into_a, into_b = 2.0 ** (exponent // 2), 2.0 ** (exponent - exponent // 2)
    return Cut(
        a=a.mul_(into_a), b=b.mul_(into_b), lost=math.ldexp(lost, exponent), whole=math.ldexp(goal.whole, exponent)
    )


def strips(matrix: Tensor, size: int = STRIP) -> Iterator[slice]:
    """Rows of the matrix, from the first to the last, as many at a time as hold `size` numbers, or one."""
    height = max(1, size // max(1, matrix.shape[1]))
    for start in range(0, matrix.shape[0], height):
        yield slice(start, min(start + height, matrix.shape[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Goal:
    """What is asked for, and the norm of the matrix it is asked of."""

    rank: int | None
    max_error: float | None
    whole: float

    def tails(self, values: Tensor) -> Tensor:
        """Squared error at rank 0, 1, 2, …, from the leading singular values."""
        kept = torch.cat([values.new_zeros(1), values.square().cumsum(0)])
        return (self.whole**2 - kept).clamp_(min=0)

    def solid(self, values: Tensor) -> int:
        """How many of the values a float32 file could carry; 1 at least."""
        # A whole step and not half of one: less than its square is lost in the difference of squares.
        carried = int((self.tails(values) > (2 * FLOAT32_HALF_STEP * self.whole) ** 2).sum())
        return max(1, min(carried, len(values)))

    def choose(self, values: Tensor) -> int | None:
        """How many of the leading values to keep; None if that takes more than these."""
        if self.rank is not None:
            return min(self.rank, self.solid(values))
        within = self.tails(values) <= ((self.max_error or 0.0) * self.whole) ** 2
        return min(int(within.int().argmax()), self.solid(values)) if bool(within.any()) else None

    def after(self, values: Tensor, count: int, lost: float) -> int:
        """A larger count, given the error measured at this one, with the same discrepancy as there."""
        tails = self.tails(values)
        allowed = ((self.max_error or 0.0) * self.whole) ** 2 - (lost**2 - float(tails[count]))
        return min(max(count + 1, int((tails > allowed).sum())), self.solid(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Triplets:
    """Leading singular values (float64, descending), and their vectors as basis @ mix, or as the mix where no basis is.

    `count` of them are to be kept.
    """

    values: Tensor
    left: Tensor | None
    left_mix: Tensor
    right: Tensor | None
    right_mix: Tensor
    count: int

    def factors(self, count: int) -> tuple[Tensor, Tensor]:
        """Factors b [out, count] and a [count, in] in float64, the square roots of the values in both."""
        root = self.values[:count].sqrt()
        b, a = self.left_mix[:, :count] * root, self.right_mix[:, :count] * root
        if self.left is not None:
            b = _times(self.left, b)
        if self.right is not None:
            a = _times(self.right, a)
        return b, a.T.contiguous()


def _search(matrix: Tensor, goal: _Goal, seed: int) -> _Triplets:
    """The leading singular values and vectors that the goal takes."""
    precise = matrix.dtype == torch.float64
    keep = goal.rank or _FIRST_RANK
    if goal.max_error is None and goal.rank is None:
        return _in_full(matrix, goal)
    start = None
    while True:
        triplets = _iterate(matrix, keep, seed if start is None else start, goal.whole**2, precise=precise)
        if triplets is None:
            return _in_full(matrix, goal)
        values = triplets.values[:keep]
        count = goal.choose(values)
        left_away = float(goal.tails(values)[len(values) if count is None else count])
        if not precise and left_away < (_COARSE * goal.whole) ** 2:
            precise, start = True, triplets
        elif count is not None:
            return replace(triplets, count=count)
        else:
            # No direction beyond these holds more than the last of them, so at least that many are still needed.
            excess = left_away - ((goal.max_error or 0.0) * goal.whole) ** 2
            needed = excess / max(float(values[-1]) ** 2, excess * _TINY)
            keep, start = keep + max(keep, math.ceil(needed)), None


def _iterate(matrix: Tensor, keep: int, start: int | _Triplets, square: float, *, precise: bool) -> _Triplets | None:
    """Singular triplets whose first `keep` have settled; None if that takes spaces too large to be worth it.

    `start` is a seed, or what was found before in less precision; `square` is ‖matrix‖².
    """
    out, width = matrix.shape
    block, largest = keep + _EXTRA, int(_SHARE * min(out, width))
    if min(out, width) <= _SMALL or _BLOCKS * block > largest:
        return None
    dtype, floor = (torch.float64, _DOUBLE_FLOOR) if precise else (torch.float32, _SINGLE_FLOOR)
    if isinstance(start, int):
        drawn = torch.randn(out, block, generator=torch.Generator().manual_seed(start), dtype=dtype)
        first = _times(matrix.T, drawn.to(matrix.device))
    else:
        assert start.right is not None, "the spaces of an iteration"
        first = start.right.to(dtype) @ start.right_mix[:, :block].to(dtype)
    right = new_right = torch.linalg.qr(first).Q
    left, rest = torch.linalg.qr(_times(matrix, right))
    new_left, core = left, rest.double()
    sums = [float(torch.linalg.svdvals(core)[:keep].square().sum())]
    while len(sums) <= _PAIR or _lacking(sums) > _LACKING * max(square - sums[-1], floor * square):
        if max(core.shape) + block > largest:
            return None
        if len(sums) % _PAIR:
            new_right, rest = _new_directions(_times(matrix.T, new_left), right)
            right = torch.cat([right, new_right], dim=1)
            core = torch.nn.functional.pad(core, (0, block))
            core[-block:, -block:] = rest.T
        else:
            new_left, rest = _new_directions(_times(matrix, new_right), left)
            left = torch.cat([left, new_left], dim=1)
            core = torch.nn.functional.pad(core, (0, 0, 0, block))
            core[-block:, -block:] = rest
        sums.append(float(torch.linalg.svdvals(core)[:keep].square().sum()))
    left_mix, values, right_mix = decomposed(core)
    return _Triplets(values=values, left=left, left_mix=left_mix, right=right, right_mix=right_mix.T, count=keep)


def _lacking(sums: Sequence[float]) -> float:
    """How much the last of the sums may still grow, given one after every product."""
    pairs = (len(sums) - 1) / _PAIR
    return max(2.0, pairs / 2) * (sums[-1] - sums[-1 - _PAIR])


def _new_directions(block: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal columns and what to multiply them with for the part of `block` that is orthogonal to `basis`."""
    for _ in range(2):  # once leaves rounding of the part that was removed, twice is enough
        block = block.sub_(basis @ (basis.T @ block))
    columns, rest = torch.linalg.qr(block)
    return columns, rest


def _in_full(matrix: Tensor, goal: _Goal) -> _Triplets:
    """All singular values, in float64: of the matrix itself, or of the Gram matrix of its shorter side if it is large.

    Squaring costs digits of values below 1e-8 of the largest, which are float32 rounding of a float32 matrix.
    """
    if min(matrix.shape) <= _DIRECT:
        left_mix, values, right_mix = decomposed(matrix.double())
        left, right, right_mix = None, None, right_mix.T
    else:
        is_tall = matrix.shape[0] >= matrix.shape[1]
        tall = matrix if is_tall else matrix.T
        squares, vectors = torch.linalg.eigh(_gram(tall))
        values, vectors = squares.flip(0).clamp_(min=torch.finfo(torch.float64).tiny).sqrt_(), vectors.flip(1)
        through = vectors / values  # times the matrix these are the vectors of the other side
        left, left_mix, right, right_mix = matrix, through, None, vectors
        if not is_tall:
            left, left_mix, right, right_mix = None, vectors, matrix.T, through
    count = goal.choose(values) or goal.solid(values)
    return _Triplets(values=values, left=left, left_mix=left_mix, right=right, right_mix=right_mix, count=count)


def _gram(tall: Tensor) -> Tensor:
    """The product tall.T @ tall in float64, a few rows at a time."""
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=tall.device)
    for at in strips(tall):
        rows = tall[at].double()
        gram.addmm_(rows.T, rows)
    return gram


def _measured(matrix: Tensor, triplets: _Triplets, count: int, whole: float) -> tuple[Tensor, Tensor, float]:
    """The factors b and a of the first `count` triplets, and ‖matrix - b @ a‖."""
    b, a = triplets.factors(count)
    lost = _distance(matrix, b, a, matrix.dtype)
    if lost < _COARSE * whole:
        lost = _distance(matrix, b, a, torch.float64)
    return b, a, lost


def _distance(matrix: Tensor, b: Tensor, a: Tensor, dtype: torch.dtype) -> float:
    """‖matrix - b @ a‖, the products made in `dtype`."""
    b, a = b.to(dtype), a.to(dtype)
    left = [_norm(torch.addmm(matrix[at].to(dtype), b[at], a, alpha=-1)) for at in strips(matrix)]
    return math.hypot(*left)


def _norm(matrix: Tensor) -> float:
    """Frobenius norm, in float64 row by row: one long sum is off by 1e-14 of itself, too much for what is lost."""
    norms = [torch.linalg.vector_norm(matrix[at], dim=1, dtype=torch.float64) for at in strips(matrix)]
    return math.sqrt(float(torch.cat(norms).square().sum()))


def _times(basis: Tensor, block: Tensor) -> Tensor:
    """The product basis @ block in the dtype of the block; a float32 basis is never there in float64 as a whole."""
    if basis.dtype == block.dtype:
        return basis @ block
    if basis.stride(0) >= basis.stride(1):
        return torch.cat([basis[at].to(block.dtype) @ block for at in strips(basis)])
    product = block.new_zeros(basis.shape[0], block.shape[1])
    for at in strips(basis.T):
        product.addmm_(basis.T[at].to(block.dtype).T, block[at])
    return product
