"""How far a result is from the exact sum of updates, in Frobenius norms, measured on the factors in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from adapterhub.weights.lowrank.algebra import LowRank, Summands, factors_of, norm_by_qr, row_products


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
    """(‖result - sum of weight * delta‖, ‖sum of weight * delta‖), Frobenius, in float64.

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
