"""Merging in delta space: updates as dense matrices, pruned and fused a few rows at a time, then cut to a low rank.

Memory holds one dense matrix of a module, the fused one, for any number of adapters; the next module gets the same
memory. First a few rows of each update at a time are formed to find what its pruning needs to know of the whole, such
as the threshold below which numbers are dropped. Then a few rows of all updates at a time are formed, pruned, fused and
stored, all in the processor's cache. Forming an update twice costs less than keeping it.

Numbers are float32, as in PEFT, or float64 for modules of fewer than `DOUBLE_BELOW` numbers, where the cost is
negligible. The sizes of factors and weights are taken out first, so no number that a float32 file can hold overflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor

from adapterhub.core.disk.held_file import used_memory
from adapterhub.core.errors import MergeRefused, UsageProblem, shown
from adapterhub.weights.lowrank.algebra import LowRank, RankCut, check_rank, cut, cut_sum, nothing, taking_part
from adapterhub.weights.lowrank.randomized import closest, side_by_side, strips
from adapterhub.weights.merge.spaces.prune import BITS, by_position, check_density, sizes_near, threshold_of

__all__ = [
    "DeltaFusion",
    "DeltaUpdate",
    "Generators",
    "Mask",
    "Pruning",
    "at_random",
    "by_magnitude",
    "largest",
    "merged",
]

Generators = Sequence[torch.Generator] | None

DOUBLE_BELOW: Final = 250_000
"""Matrices of fewer numbers are float64."""

_STRIP: Final = 1 << 18
"""Numbers formed, pruned and fused at once: 1 MB of float32 stays near the processor, and each of the dozens of short
steps is long beside the call of it. An update is always formed in the same strips, so that it has the same numbers."""

_SAMPLED: Final = 1 << 16
"""Numbers in a sample; the place of a size in it is wrong by 0.2 % of all, as standard deviation."""

_LARGE: Final = 1 << 22
"""Numbers beyond which a sample saves more than it costs."""

_ROUNDING: Final = 1e-6
"""Rounding of a sum of weights in float32, relative to them; a smaller sum counts as zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaUpdate:
    """One adapter's update b @ a in the working precision; b includes the scale."""

    a: Tensor
    b: Tensor
    generator: torch.Generator

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the dense matrix."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def numel(self) -> int:
        """The count of numbers in the dense matrix."""
        return math.prod(self.shape)

    def rows(self, at: slice) -> Tensor:
        """Return these rows of the dense matrix."""
        return self.b[at] @ self.a

    def strips(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the dense matrix, a few rows at a time, with their place."""
        for at in strips(self.shape, _STRIP):
            yield at, self.rows(at)

    def sample(self) -> Tensor:
        """Return `_SAMPLED` numbers at random places."""
        drawn = torch.Generator().manual_seed(0)
        rows, columns = (torch.randint(size, (_SAMPLED,), generator=drawn) for size in self.shape)
        return (self.b[rows] * self.a.T[columns]).sum(1)


Mask = Callable[[Tensor, slice], None]
"""Prunes a few rows, given their place, in place; called once for every row. One that draws is called from the top."""

Pruning = Callable[[DeltaUpdate], Mask]
"""Makes the mask of an update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaFusion:
    """Combines the same entry of all updates into one: without `majority` by their weighted sum.

    With a majority, only the entries with the elected sign count: "total" elects the sign of their sum, "frequency" the
    most frequent sign; a draw elects plus, and zeros do not vote. In PEFT's convention, entries vote without weights,
    and the weighted sum is divided by the number that agree. With `weights_vote`, as in mergekit, they vote with
    weights, and the weighted sum is divided by the summed weights that agree with `normalize`, and by nothing without.

    The result is multiplied by `gain` after the cut.
    """

    majority: Literal["total", "frequency"] | None = None
    weights_vote: bool = False
    normalize: bool = False
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.majority not in ("total", "frequency", None):
            raise UsageProblem(f"majority `{shown(self.majority)}`, expected total or frequency")

    @property
    def is_sum(self) -> bool:
        """Whether the result is a plain weighted sum."""
        return self.majority is None and not self.normalize

    def __call__(self, rows: Sequence[Tensor], weights: Sequence[float], into: Tensor) -> None:
        """Fuse `rows`, which are overwritten, into `into`."""
        if self.weights_vote:
            for row, weight in zip(rows, weights, strict=True):
                row.mul_(weight)
        signs = None if self.majority is None else self._elected(rows)
        averages = self.normalize or (signs is not None and not self.weights_vote)
        divisor: Tensor | None = None
        rounding = torch.zeros_like(into) if self.normalize else into
        for place, (row, weight) in enumerate(zip(rows, weights, strict=True)):
            if signs is not None:
                _turn(row, signs).clamp_min_(0)  # keeps the sizes of entries that agree
            factor = 1.0 if self.weights_vote else weight
            into.add_(row, alpha=factor) if place else torch.mul(row, factor, out=into)
            if averages:
                agrees = torch.ones_like(row) if signs is None else row.sign_()
                share = weight if self.weights_vote else 1.0
                if self.normalize:
                    rounding.add_(agrees, alpha=_ROUNDING * abs(share))
                if divisor is None:
                    divisor = agrees if share == 1 else agrees.mul_(share)
                else:
                    divisor.add_(agrees, alpha=share)
        if signs is not None:
            _turn(into, signs)
        if divisor is not None:  # never by weights that cancel
            into.div_(divisor.masked_fill_(divisor.abs() <= rounding, 1) if self.normalize else divisor.clamp_(min=1))

    def _elected(self, rows: Sequence[Tensor]) -> Tensor:
        """Return the sign bit of the elected sign of every entry, the other bits 0."""
        votes = rows if self.majority == "total" else [row.sign() for row in rows]
        bits = sum(votes[1:], votes[0]).view(BITS[votes[0].dtype.itemsize])
        return bits & torch.iinfo(bits.dtype).min


def _turn(numbers: Tensor, signs: Tensor) -> Tensor:
    """`numbers`, of which those are negated in place whose sign bit in `signs` is set."""
    numbers.view(signs.dtype).bitwise_xor_(signs)
    return numbers


def merged(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    pruning: Pruning | None,
    fusion: DeltaFusion,
    *,
    rank: int | None,
    max_error: float | None,
    draws: bool = False,
    generators: Generators = None,
) -> RankCut:
    """Return the fused update, cut to a rank (by default the sum of the ranks that take part) or to a relative error.

    A plain sum, and a single update that loses nothing, are cut from their factors and never formed densely.
    With `draws`, the masks are drawn by `generators`, one for each update; without them they are seeded 0, 1, 2 … by
    position.

    Raises:
        UsageProblem: rank and max_error are both given, or one is out of range.
        MergeRefused: the product of float64 factors overflows.
    """
    check_rank(rank, max_error)
    out, width = deltas[0].shape
    parts = taking_part(deltas, weights)
    if rank is None and max_error is None:
        rank = max(1, min(out, width, sum(delta.rank for delta, _ in parts)))
    if not parts:
        return cut(nothing(out, width, 1), rank=1)
    if pruning is None and (fusion.is_sum or (len(parts) == 1 and not fusion.normalize)):
        gained = [weight * fusion.gain for weight in weights]
        return cut_sum(deltas, gained, rank=rank, max_error=max_error)
    drawing = [
        generator
        for delta, weight, generator in zip(deltas, weights, generators or by_position(len(deltas)), strict=True)
        if weight != 0 and delta.rank
    ]
    updates, unit = _scaled([delta for delta, _ in parts], drawing)
    if unit == 0:
        return cut(nothing(out, width, 1), rank=1)
    most = 1.0 if fusion.normalize else max(abs(weight) for _, weight in parts)
    relative = [weight / most for _, weight in parts]
    whole = cut_sum([LowRank(a=update.a, b=update.b) for update in updates], relative)
    dtype = updates[0].a.dtype
    with used_memory(out * width * dtype.itemsize) as room:  # to fill fresh memory takes as long as two products
        fused = torch.frombuffer(room, dtype=dtype).view(out, width).to(updates[0].a.device)
        _fuse(updates, relative, pruning, fusion, fused, draws=draws)
        cut_down = closest(fused, rank=rank, max_error=max_error, guess=whole.a.T)
        del fused
    factor = unit * fusion.gain * most
    root = math.sqrt(factor)
    return replace(
        cut_down, a=cut_down.a * root, b=cut_down.b * root, lost=cut_down.lost * factor, whole=cut_down.whole * factor
    )


def _scaled(deltas: Sequence[LowRank], generators: Sequence[torch.Generator]) -> tuple[list[DeltaUpdate], float]:
    """Return the updates divided by a unit, a power of 2 that brings the largest near 1; 0 if all are 0."""
    dtype = torch.float64 if math.prod(deltas[0].shape) < DOUBLE_BELOW else torch.float32
    sizes = [delta.scale * _size(delta.a) * _size(delta.b) for delta in deltas]
    most = max(map(abs, sizes))
    if not math.isfinite(most):
        raise MergeRefused("the updates are too large for float64 matrices")
    unit = 2.0 ** math.frexp(most)[1] if most else 0.0
    updates = []
    for delta, size, generator in zip(deltas, sizes, generators, strict=True):
        a, b = delta.a.double(), delta.b.double()
        if size:
            a, b = a / _size(delta.a), b * (size / unit / _size(delta.b))
        updates.append(DeltaUpdate(a=a.to(dtype), b=b.to(dtype), generator=generator))
    return updates, unit


def _size(factor: Tensor) -> float:
    """Return the power of 2 above every number; 0 if all are 0. Division by it is exact."""
    largest = max(abs(float(end)) for end in factor.aminmax())
    return 2.0 ** math.frexp(largest)[1] if largest else 0.0


def _fuse(
    updates: Sequence[DeltaUpdate],
    weights: Sequence[float],
    pruning: Pruning | None,
    fusion: DeltaFusion,
    fused: Tensor,
    *,
    draws: bool,
) -> None:
    """Fuse the updates into the dense matrix `fused`."""
    masks = [] if pruning is None else side_by_side(pruning, updates)

    def fuse(at: slice) -> None:
        rows = [update.rows(at) for update in updates]
        for row, mask in zip(rows, masks, strict=False):
            mask(row, at)
        fusion(rows, weights, fused[at])

    places = strips(fused.shape, _STRIP)
    if draws:
        for at in places:
            fuse(at)
    else:
        side_by_side(fuse, places)


def at_random(density: float) -> Pruning | None:
    """Keep each number with probability `density`, not rescaled, as `random_keep` does; None keeps all.

    Raises:
        UsageProblem: a density out of range.
    """
    check_density(density)

    def pruning(update: DeltaUpdate) -> Mask:
        generator = update.generator

        def mask(rows: Tensor, _at: slice) -> None:
            drawn = torch.rand(rows.shape, generator=generator, dtype=torch.float32, device=generator.device)
            rows.mul_(drawn.lt_(density).to(rows.device))

        return mask

    return None if density == 1 else pruning


def by_magnitude(density: float) -> Pruning | None:
    """Keep the numbers that `magnitude_keep` keeps; None keeps all.

    Raises:
        UsageProblem: a density out of range.
    """
    check_density(density)

    def pruning(update: DeltaUpdate) -> Mask:
        return largest(update, max(1, int(density * update.numel)))

    return None if density == 1 else pruning


def largest(update: DeltaUpdate, count: int) -> Mask:
    """Keep exactly the `count` largest numbers of an update; of those that tie for the last places, the first."""

    def all_or_none(rows: Tensor, _at: slice) -> None:
        if count <= 0:
            rows.zero_()

    if not 0 < count < update.numel:
        return all_or_none

    def pieces() -> Iterator[Tensor]:
        return (rows for _, rows in update.strips())

    near = sizes_near(update.sample(), count / update.numel) if update.numel > _LARGE else None
    threshold, surplus = threshold_of(pieces, count, near)
    edge = torch.tensor(threshold, dtype=update.a.dtype)
    below, end = float(torch.nextafter(edge, torch.zeros_like(edge))), _end_of_ties(update, threshold, surplus)

    def mask(rows: Tensor, at: slice) -> None:
        flat, here = rows.view(-1), max(0, end - at.start * rows.shape[1])
        for part, bound in ((flat[:here], below), (flat[here:], threshold)):
            if len(part):
                torch.hardshrink(part, bound, out=part)  # keeps what is larger than the bound

    return mask


def _end_of_ties(update: DeltaUpdate, threshold: float, surplus: int) -> int:
    """Return the place in memory from which numbers of that size no longer count, to leave out the last `surplus`."""
    if surplus == 0:
        return update.numel
    for at in reversed(list(strips(update.shape, _STRIP))):
        rows = update.rows(at)
        ties = torch.nonzero(rows.abs().view(-1) == threshold)[:, 0]
        if len(ties) >= surplus:
            return int(at.start) * rows.shape[1] + int(ties[-surplus])
        surplus -= len(ties)
    return 0
