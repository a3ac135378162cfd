"""Finds the closest low-rank update to a dense matrix with a few products instead of a full decomposition.

A merge that prunes in delta space produces a matrix of full rank: a few strong directions above a floor of noise. Block
Krylov iteration from a random start finds its leading singular vectors (Halko, Martinsson and Tropp 2011,
arXiv:0909.4061; Musco and Musco 2015, arXiv:1504.05477). It runs as a block bidiagonalization (Golub, Luk and Overton
1981) that keeps all vectors orthogonal: on the spaces so far the matrix is left @ core @ right.T, and the singular
values of the small core approach those of the matrix from below.

When to stop. The squared truncation error is ‖matrix‖² minus the sum of the squared kept values, so the error is within
1 % of the optimum once that sum lacks at most 2 % of the squared error. Every product enlarges a space, and the sum
never falls. Without a gap in the spectrum it lacks about c / j² after j products (Musco and Musco, theorem 1), with a
gap exponentially little. So it lacks at most about j / 2 times the gain of the last product; up to the 24th product the
rule allows for twelve times the gain. The block is wider than the rank, to find values of any multiplicity. The final
error is measured between the matrix and the factors, not estimated.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch
from torch import Tensor

from adapterhub.weights.lowrank.algebra import (
    FLOAT32_HALF_STEP,
    MATRIX_NDIM,
    RankCut,
    check_rank,
    cut,
    decomposed,
    nothing,
)

__all__ = ["closest", "side_by_side", "strips", "work_alone"]

_T = TypeVar("_T")
_Made = TypeVar("_Made")

_EXTRA: Final = 8
"""Columns of the block beyond the rank: fewer need more products, more make each product slower."""

_LEAST_PRODUCTS: Final = 3
"""Products before the gain of one tells of the next."""

_LEAST_GAINS: Final = 12.0
"""What the sum may lack after a few products, in gains of the last; ten times what it lacks without a gap."""

_LACKING: Final = 0.02
"""The part of the squared error that the kept values may lack."""

_FIRST_RANK: Final = 32
"""The first rank in the search for a rank that stays within an error."""

_SMALL: Final = 160
"""Matrices with a side up to this are decomposed in full, which takes milliseconds."""

_DIRECT: Final = 1024
"""Matrices with a shorter side up to this are decomposed directly; beyond, the Gram matrix is several times faster."""

_SHARE: Final = 0.6
"""The part of the shorter side that the spaces may reach; beyond, a full decomposition is as fast."""

_BLOCKS: Final = 5
"""Blocks that must fit into that part; with fewer, most searches would end in a full decomposition."""

_COARSE: Final = 0.01
"""The relative error below which float32 products give the squared error to no better than a percent."""

_TINY: Final = 1e-9
"""The part of a sum that is too small to divide by."""

_SINGLE_FLOOR, _DOUBLE_FLOOR = 1e-6, 1e-15
"""Rounding of a sum of squared singular values, relative to ‖matrix‖², in float32 and in float64 products."""

STRIP: Final = 1 << 20
"""Numbers in a strip of rows: 4 MB of float32 fit the processor's cache and still start threads rarely."""

_SAFE: Final = 2.0**40
"""Matrices with a norm between 1 / this and this need no scaling: no square overflows, none that counts vanishes."""


def closest(
    matrix: Tensor, *, rank: int | None, max_error: float | None, seed: int = 0, guess: Tensor | None = None
) -> RankCut:
    """Return the update of lowest error to a float32 or float64 [out, in] matrix, its factors balanced, in float64.

    With `rank`, the result has that rank, or a lower one if the matrix has fewer directions that a float32 file can
    hold; with `max_error`, the smallest rank with at most that error relative to the matrix; with neither, full rank.
    `lost` is measured (to 1e-3 of itself, unless it is float32 rounding) and at most 1 % above the smallest possible.
    The same seed gives the same result. The columns of `guess` [in, n], the strongest first, may lie near the leading
    right vectors. A good guess saves two products of five; a bad one costs little, because the search also starts from
    random vectors.

    Time is that of about 3 to 5 products with a block of rank + 8 or 16 vectors, and memory besides the matrix that of
    a few such blocks. A rank beyond an eighth of the shorter side takes the time of a full decomposition.

    Raises:
        UsageProblem: rank and max_error are both given, or one is out of range.
        ValueError: not a float32 or float64 matrix, or numbers are not finite.
    """
    check_rank(rank, max_error)
    if matrix.ndim != MATRIX_NDIM or matrix.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{matrix.ndim} dimensions of {matrix.dtype}, expected a float32 or float64 matrix")
    whole, exponent = _norm(matrix) if matrix.numel() else 0.0, 0
    if not 1 / _SAFE <= whole <= _SAFE:
        largest = max(abs(float(end)) for end in matrix.aminmax()) if matrix.numel() else 0.0
        if not math.isfinite(largest):
            raise ValueError("the matrix contains NaN or infinite numbers")
        if largest == 0:
            return cut(nothing(matrix.shape[0], matrix.shape[1], 1), rank=1)
        exponent = math.frexp(largest)[1]
        # In float64, since float32 cannot hold the factor for the smallest numbers.
        matrix = torch.cat([(matrix[at].double() * 2.0**-exponent).to(matrix.dtype) for at in strips(matrix.shape)])
        whole = _norm(matrix)
    goal = _Goal(rank=rank, max_error=max_error, whole=whole)
    if guess is not None:
        sizes = torch.linalg.vector_norm(guess, dim=0)
        guess = guess[:, sizes > 0] / sizes[sizes > 0] * math.sqrt(len(guess))  # as long as random columns
    triplets = _search(matrix, goal, seed, guess)
    count = triplets.count
    b, a, lost = _measured(matrix, triplets, count, goal.whole)
    # The values are rounded and slightly too small, so the requested error is checked by measurement.
    while max_error is not None and lost > max_error * goal.whole and count < goal.solid(triplets.values):
        count = goal.after(triplets.values, count, lost)
        b, a, lost = _measured(matrix, triplets, count, goal.whole)
    into_a, into_b = 2.0 ** (exponent // 2), 2.0 ** (exponent - exponent // 2)
    return RankCut(
        a=a.mul_(into_a), b=b.mul_(into_b), lost=math.ldexp(lost, exponent), whole=math.ldexp(goal.whole, exponent)
    )


def strips(shape: Sequence[int], size: int = STRIP) -> Iterator[slice]:
    """Slices of the rows of a matrix, each of about `size` numbers, but at least one row."""
    height = max(1, size // max(1, shape[1]))
    for start in range(0, shape[0], height):
        yield slice(start, min(start + height, shape[0]))


class _Here(threading.local):
    works_alone = False


_here: Final = _Here()


def work_alone() -> None:
    """Let this thread, which is one of two already, make parts one by one; four threads would share two caches."""
    _here.works_alone = True


def side_by_side(make: Callable[[_T], _Made], items: Iterable[_T]) -> list[_Made]:
    """Return the result of `make` per item, in order, made by two threads, or by this one if it is to `work_alone`.

    The parts are the same on any number of cores, and so is every digit; torch's own threads would divide sums by their
    number.
    """
    waiting = list(items)
    if len(waiting) == 1 or _here.works_alone:
        return [make(one) for one in waiting]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(make, waiting))


def _halves(matrix: Tensor) -> list[slice]:
    """Return the rows of a matrix in two parts; in one if it is so small that a thread does not pay."""
    count = len(matrix)
    if matrix.numel() <= 2 * STRIP:
        return [slice(0, count)]
    return [slice(0, count // 2), slice(count // 2, count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Goal:
    """The requested rank or error, and the norm of the matrix."""

    rank: int | None
    max_error: float | None
    whole: float

    def tails(self, values: Tensor) -> Tensor:
        """Squared errors at rank 0, 1, 2, …, from the leading singular values."""
        kept = torch.cat([values.new_zeros(1), values.square().cumsum(0)])
        return (self.whole**2 - kept).clamp_(min=0)

    def solid(self, values: Tensor) -> int:
        """Return the number of values that a float32 file can hold; at least 1."""
        # A whole step, not a half: the difference of squares loses anything below its square.
        carried = int((self.tails(values) > (2 * FLOAT32_HALF_STEP * self.whole) ** 2).sum())
        return max(1, min(carried, len(values)))

    def choose(self, values: Tensor) -> int | None:
        """Return the number of leading values to keep; None if that takes more than these."""
        if self.rank is not None:
            return min(self.rank, self.solid(values))
        within = self.tails(values) <= ((self.max_error or 0.0) * self.whole) ** 2
        return min(int(within.int().argmax()), self.solid(values)) if bool(within.any()) else None

    def after(self, values: Tensor, count: int, lost: float) -> int:
        """Return a larger count, from the error measured at this one and assuming the same discrepancy."""
        tails = self.tails(values)
        allowed = ((self.max_error or 0.0) * self.whole) ** 2 - (lost**2 - float(tails[count]))
        return min(max(count + 1, int((tails > allowed).sum())), self.solid(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Triplets:
    """Leading singular values (float64, descending) and their vectors, each basis @ mix, or mix without a basis.

    The first `count` of them are kept.
    """

    values: Tensor
    left: Tensor | None
    left_mix: Tensor
    right: Tensor | None
    right_mix: Tensor
    count: int

    def factors(self, count: int) -> tuple[Tensor, Tensor]:
        """Factors b [out, count] and a [count, in] in float64, each with the square roots of the values."""
        root = self.values[:count].sqrt()
        b, a = self.left_mix[:, :count] * root, self.right_mix[:, :count] * root
        if self.left is not None:
            b = _times(self.left, b)
        if self.right is not None:
            a = _times(self.right, a)
        return b, a.T.contiguous()


def _search(matrix: Tensor, goal: _Goal, seed: int, guess: Tensor | None) -> _Triplets:
    """Return the leading singular values and vectors that the goal needs."""
    precise = matrix.dtype == torch.float64
    keep = goal.rank or _FIRST_RANK
    if goal.max_error is None and goal.rank is None:
        return _in_full(matrix, goal)
    start: _Triplets | None = None
    while True:
        first = start or _drawn(matrix, keep, seed, guess)
        triplets = _iterate(matrix, keep, first, goal.whole**2, precise=precise)
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
            # No later direction is stronger than the last of these, so at least this many more are needed.
            excess = left_away - ((goal.max_error or 0.0) * goal.whole) ** 2
            needed = excess / max(float(values[-1]) ** 2, excess * _TINY)
            keep, start = keep + max(keep, math.ceil(needed)), None


def _drawn(matrix: Tensor, keep: int, seed: int, guess: Tensor | None) -> Tensor:
    """Random columns [in, block] to start from, the first ones replaced by up to `keep` of the guess."""
    block = keep + (_EXTRA if guess is None else 2 * _EXTRA)
    drawn = torch.randn(matrix.shape[1], block, generator=torch.Generator().manual_seed(seed), dtype=matrix.dtype)
    drawn = drawn.to(matrix.device)
    if guess is not None:
        drawn[:, : min(keep, guess.shape[1])] = guess[:, :keep]
    return drawn


def _iterate(matrix: Tensor, keep: int, start: Tensor | _Triplets, square: float, *, precise: bool) -> _Triplets | None:
    """Singular triplets of which the first `keep` have converged; None if that takes spaces too large to be worth it.

    `start` holds columns [in, block], or earlier triplets of lower precision; `square` is ‖matrix‖².
    """
    out, width = matrix.shape
    block = start.shape[1] if isinstance(start, Tensor) else keep + _EXTRA
    largest = int(_SHARE * min(out, width))
    if min(out, width) <= _SMALL or _BLOCKS * block > largest:
        return None
    dtype, floor = (torch.float64, _DOUBLE_FLOOR) if precise else (torch.float32, _SINGLE_FLOOR)
    if isinstance(start, Tensor):
        first = start.to(dtype)
    else:
        assert start.right is not None, "only an iteration has spaces"
        first = start.right.to(dtype) @ start.right_mix[:, :block].to(dtype)
    right = new_right = torch.linalg.qr(first).Q
    left, rest = torch.linalg.qr(_times(matrix, right))
    new_left, core = left, rest.double()
    sums = [float(torch.linalg.svdvals(core)[:keep].square().sum())]
    while len(sums) < _LEAST_PRODUCTS or _lacking(sums) > _LACKING * max(square - sums[-1], floor * square):
        if max(core.shape) + block > largest:
            return None
        if len(sums) % 2:
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
    """Return the most that the last sum can still grow; `sums` has one for each product, two at least."""
    return max(_LEAST_GAINS, len(sums) / 2) * (sums[-1] - sums[-2])


def _new_directions(block: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal columns and their coefficients for the part of `block` orthogonal to `basis`."""
    for _ in range(2):  # one pass leaves rounding of the removed part, two are enough
        block = block.sub_(basis @ (basis.T @ block))
    columns, rest = torch.linalg.qr(block)
    return columns, rest


def _in_full(matrix: Tensor, goal: _Goal) -> _Triplets:
    """All singular values in float64, from the matrix, or from the Gram matrix of the shorter side of a large one.

    Squaring costs digits of values below 1e-8 of the largest, which in a float32 matrix are rounding.
    """
    if min(matrix.shape) <= _DIRECT:
        left_mix, values, right_mix = decomposed(matrix.double())
        left, right, right_mix = None, None, right_mix.T
    else:
        is_tall = matrix.shape[0] >= matrix.shape[1]
        tall = matrix if is_tall else matrix.T
        squares, vectors = torch.linalg.eigh(_gram(tall))
        values, vectors = squares.flip(0).clamp_(min=torch.finfo(torch.float64).tiny).sqrt_(), vectors.flip(1)
        through = vectors / values  # the matrix maps these to the vectors of the other side
        left, left_mix, right, right_mix = matrix, through, None, vectors
        if not is_tall:
            left, left_mix, right, right_mix = None, vectors, matrix.T, through
    count = goal.choose(values) or goal.solid(values)
    return _Triplets(values=values, left=left, left_mix=left_mix, right=right, right_mix=right_mix, count=count)


def _gram(tall: Tensor) -> Tensor:
    """Return the product tall.T @ tall in float64, a few rows at a time."""
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=tall.device)
    for at in strips(tall.shape):
        rows = tall[at].double()
        gram.addmm_(rows.T, rows)
    return gram


def _measured(matrix: Tensor, triplets: _Triplets, count: int, whole: float) -> tuple[Tensor, Tensor, float]:
    """Return the factors b and a of the first `count` triplets, and ‖matrix - b @ a‖."""
    b, a = triplets.factors(count)
    lost = _distance(matrix, b, a, matrix.dtype)
    if lost < _COARSE * whole:
        lost = _distance(matrix, b, a, torch.float64)
    return b, a, lost


def _distance(matrix: Tensor, b: Tensor, a: Tensor, dtype: torch.dtype) -> float:
    """‖matrix - b @ a‖, the products made in `dtype`."""
    b, a = b.to(dtype), a.to(dtype)

    def apart(at: slice) -> float:
        rows = torch.addmm(matrix[at].to(dtype), b[at], a, alpha=-1)
        return float(torch.linalg.vector_norm(rows, dim=1).double().norm())

    return math.hypot(*side_by_side(apart, strips(matrix.shape)))


def _norm(matrix: Tensor) -> float:
    """Frobenius norm in float64, row by row; one long sum is off by 1e-14 of itself, too much to find the loss."""

    def of_rows(at: slice) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(matrix[at], dim=1, dtype=torch.float64)
        return norms

    return math.sqrt(float(torch.cat(side_by_side(of_rows, strips(matrix.shape))).square().sum()))


def _times(basis: Tensor, block: Tensor) -> Tensor:
    """Return the product basis @ block in the dtype of the block, without a float64 copy of a whole float32 basis."""
    if basis.dtype == block.dtype:
        return torch.cat(side_by_side(lambda at: basis[at] @ block, _halves(basis)))
    if basis.stride(0) >= basis.stride(1):
        return torch.cat([basis[at].to(block.dtype) @ block for at in strips(basis.shape)])
    product = block.new_zeros(basis.shape[0], block.shape[1])
    for at in strips(basis.T.shape):
        product.addmm_(basis.T[at].to(block.dtype).T, block[at])
    return product
