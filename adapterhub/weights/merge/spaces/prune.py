"""Pruning: keep some of the numbers, elect signs, average the numbers that agree.

Every function walks over a tensor in pieces that fit the processor's cache, so it needs a few MB besides its arguments
and results. It works for dense matrices as well as for factors: one core prunes an 11008 x 4096 float32 matrix by size
in 0.2 s, where `torch.topk` takes 1.2 s and several times the memory.

A result has the dtype of its argument. Votes are unweighted, which is PEFT's convention; for mergekit's, pass weighted
values and weight 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, Literal

import torch
from torch import Tensor

from adapterhub.core.errors import UsageProblem, shown

Majority = Literal["total", "frequency"]

Pieces = Callable[[], Iterable[Tensor]]
"""Gives the numbers of a tensor, piece by piece, as often as it is called."""

_PIECE = 1 << 19
"""Numbers in a piece: 2 MB of float32. A quarter or four times as many take the same time."""

_DIGIT = 16
"""Bits of a number for one histogram: 65536 counters fit the cache, 2**20 do not."""

_FEW = 1 << 15
"""Up to this many numbers, a selection is faster than two histograms."""

_DOUBT: Final = 0.006
"""The part of all numbers by which the place of a number in a sample may be wrong, up or down: three deviations."""

BITS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers that hold the bits of a float, by its bytes."""


def check_density(density: float) -> None:
    """Raise unless `density`, the fraction of numbers to keep, is above 0 and at most 1.

    Raises:
        UsageProblem: the density is out of range.
    """
    if not 0 < density <= 1:
        raise UsageProblem(f"density {shown(density)}, expected the fraction to keep, above 0 and at most 1")


def magnitude_keep(values: Tensor, density: float) -> Tensor:
    """`values` with all but the int(density * n) largest magnitudes set to 0; at least one is kept.

    Keeps exactly that many, like PEFT's `topk`: of numbers that tie for the last places, the first in memory. (PEFT
    keeps none where density * n < 1.) Returns the tensor itself for density 1, otherwise a new one.

    Raises:
        UsageProblem: a density out of range.
    """
    check_density(density)
    count = max(1, int(density * values.numel()))
    if count >= values.numel():
        return values
    values = values.contiguous()
    threshold, surplus = threshold_of(lambda: _pieces(values), count)
    if threshold == 0:
        return values.clone()  # fewer numbers are not 0
    # hardshrink keeps numbers above its bound, so the bound is the float just below the threshold.
    edge = torch.tensor(threshold, dtype=values.dtype)
    below = (
        float(torch.nextafter(edge, torch.zeros_like(edge))) if values.dtype.itemsize > torch.half.itemsize else None
    )
    kept = torch.empty_like(values)
    for piece, into in zip(_pieces(values), _pieces(kept), strict=True):
        if below is None:  # torch has no nextafter for 16-bit floats; such tensors are small
            into.copy_(piece.masked_fill(piece.abs() < threshold, 0))
        else:
            torch.hardshrink(piece, below, out=into)
    for piece in reversed(list(_pieces(kept))):
        if not surplus:
            break
        ties = torch.nonzero(piece.abs() == threshold)[-surplus:, 0]
        piece[ties] = 0
        surplus -= len(ties)
    return kept


def random_keep(values: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Return a copy of `values` that keeps each number with probability `density`, otherwise 0; not rescaled.

    The mask is the same on every machine and for any number of threads: the Mersenne twister gives uniform float32
    numbers one by one, while `torch.bernoulli` depends on the build of torch.

    Raises:
        UsageProblem: a density out of range.
    """
    check_density(density)
    kept = values.clone(memory_format=torch.contiguous_format)
    if density < 1:
        for piece in _pieces(kept):
            drawn = torch.rand(piece.shape, generator=generator, dtype=torch.float32, device=generator.device)
            # A mask of 0.0 and 1.0 in place of the drawn numbers; a boolean one costs three times as much.
            piece.mul_(torch.lt(drawn, density, out=drawn).to(piece.device))
    return kept


def by_position(count: int) -> list[torch.Generator]:
    """Return the default generators of a method, seeded 0, 1, 2 … by position."""
    return [torch.Generator().manual_seed(position) for position in range(count)]


class SignVote:
    """The majority sign of every entry over tensors added one by one, in constant memory.

    "total" elects the sign of the sum, "frequency" the most frequent sign. A draw elects plus, as in PEFT.
    """

    def __init__(self, majority: Majority = "total") -> None:
        if majority not in ("total", "frequency"):
            raise UsageProblem(f"majority `{shown(majority)}`, expected total or frequency")
        self._majority = majority
        self._sum: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Count the votes of a tensor."""
        if self._sum is None:
            dtype = values.dtype if self._majority == "total" else torch.int16
            self._sum = torch.zeros(values.shape, dtype=dtype, device=values.device)
        for votes, piece in zip(_pieces(self._sum), _pieces(values.contiguous()), strict=True):
            votes.add_(piece if self._majority == "total" else piece.sign().to(torch.int16))

    def signs(self) -> Tensor:
        """+1 or -1 for every entry, int8."""
        assert self._sum is not None, "no votes"
        signs = torch.empty(self._sum.shape, dtype=torch.int8, device=self._sum.device)
        for into, votes in zip(_pieces(signs), _pieces(self._sum), strict=True):
            into.copy_(votes >= 0).mul_(2).sub_(1)
        return signs


class DisjointMean:
    """The weighted mean of every entry over the tensors that agree with its sign, added one by one."""

    def __init__(self, signs: Tensor) -> None:
        self._signs = signs
        self._count = torch.zeros(signs.shape, dtype=torch.int16, device=signs.device)
        self._sum: Tensor | None = None

    def add(self, values: Tensor, weight: float = 1.0) -> None:
        """Add the entries of `values` that agree in sign, times `weight`."""
        if self._sum is None:
            self._sum = torch.zeros(values.shape, dtype=values.dtype, device=values.device)
        parts = (self._sum, self._count, self._signs, values.contiguous())
        for total, count, signs, piece in zip(*map(_pieces, parts), strict=True):
            agrees = piece.sign().eq_(signs)
            count.add_(agrees.to(count.dtype))
            # Rounded before it is added, not fused, so that an adapter minus itself is 0 and not rounding.
            total.add_(agrees.mul_(piece).mul_(weight))

    def mean(self) -> Tensor:
        """Return the sums divided by the number that agreed; 0 where none did. Call it last: it divides in place."""
        assert self._sum is not None, "no tensors"
        total, self._sum = self._sum, None
        for piece, count in zip(_pieces(total), _pieces(self._count), strict=True):
            piece.div_(count.clamp_(min=1))
        return total


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Flat views of a contiguous tensor, one after the other."""
    flat = tensor.view(-1)
    return (flat[start : start + _PIECE] for start in range(0, len(flat), _PIECE))


def threshold_of(pieces: Pieces, count: int, near: tuple[float, float] | None = None) -> tuple[float, int]:
    """Return the magnitude of the `count`-th largest number, and how many more than `count` are at least that large.

    Two sizes `near` it, with the magnitude between them, save two thirds of the time; they come from `sizes_near`.
    """
    first, *more = islice(pieces(), 2)
    if not more and first.numel() <= _FEW:
        sizes = first.reshape(-1).abs()
        smallest = sizes.kthvalue(len(sizes) - count + 1).values
        return float(smallest), int((sizes >= smallest).sum()) - count
    found = None if near is None else _threshold_between(pieces, count, *near)
    return found or _threshold_by_bits(pieces, count, first.dtype)


def sizes_near(sample: Tensor, part: float) -> tuple[float, float]:
    """Two sizes that the largest `part` of all numbers very likely begins between, if the sample is like the whole."""
    import numpy as np

    sizes = np.abs(sample.numpy(force=True)).reshape(-1)
    places = [int(len(sizes) * (1 - part + doubt)) for doubt in (-_DOUBT, _DOUBT)]
    lower, upper = (min(max(0, place), len(sizes) - 1) for place in places)
    sizes.partition((lower, upper))
    return float(sizes[lower]), float(sizes[upper])


def _threshold_between(pieces: Pieces, count: int, least: float, most: float) -> tuple[float, int] | None:
    """Return the same from one pass, which orders what is between and counts what is larger.

    None if it is not between.
    """
    import numpy as np  # it compares several times as fast as torch

    above, between = 0, []
    for piece in pieces():
        here = np.abs(piece.numpy(force=True)).reshape(-1)
        beyond = here > most
        above += int(np.count_nonzero(beyond))
        between.append(here.compress((here >= least) ^ beyond))  # in half the time of here[…]
    inside = np.concatenate(between)
    place = len(inside) - (count - above)
    if not 0 <= place < len(inside):
        return None
    inside.partition(place)
    return float(inside[place]), above + int(np.count_nonzero(inside >= inside[place])) - count


def _threshold_by_bits(pieces: Pieces, count: int, dtype: torch.dtype) -> tuple[float, int]:
    """Return the same from two passes or four.

    Without the sign bit, the bits of floats are integers in the same order. A histogram of the upper 16 bits finds the
    bin of the number, and one of the next 16 bits in that bin, until no bits are left, finds the number.
    """
    import numpy as np  # its bincount is five times as fast as torch's

    integers = BITS[dtype.itemsize]
    width, largest = 8 * dtype.itemsize, torch.iinfo(integers).max
    prefix, wanted, equal = 0, count, 0
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(1 << _DIGIT, dtype=np.int64)
        for piece in pieces():
            unsigned = piece.reshape(-1).view(integers).numpy(force=True) & largest
            if shift + _DIGIT < width:
                unsigned = unsigned[unsigned >> (shift + _DIGIT) == prefix] & ((1 << (shift + _DIGIT)) - 1)
            counts += np.bincount(unsigned >> shift, minlength=1 << _DIGIT)
        above = counts[::-1].cumsum()  # above[i]: numbers in the i + 1 uppermost bins
        place = int(np.searchsorted(above, wanted))
        equal = int(above[place] - (above[place - 1] if place else 0))
        wanted -= int(above[place - 1]) if place else 0
        prefix = prefix << _DIGIT | ((1 << _DIGIT) - 1 - place)
    threshold = float(torch.tensor(prefix, dtype=integers).view(dtype))
    return threshold, equal - wanted
