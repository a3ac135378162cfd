"""What the pruning methods share: keep some of the numbers, elect signs, average what agrees.

Everything here walks over a tensor in pieces that fit a processor's cache, so besides the tensors that come in and go
out memory is a few MB, and it is written for dense matrices as well as for factors: a 11008 x 4096 float32 matrix is
pruned by size in 0.2 s on one core, where `torch.topk` takes 1.2 s and a multiple of the memory.

Any dtype goes in and the same dtype comes out. Weights never enter before the vote: that is the convention of PEFT,
and whoever wants mergekit's passes weighted values and weight 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import torch
from torch import Tensor

from adapterhub.core.errors import UsageProblem, shown

Majority = Literal["total", "frequency"]

_PIECE = 1 << 19
"""Numbers looked at in one go: 2 MB of float32. A quarter or four times as many take the same time."""

_DIGIT = 16
"""Bits of a number that one histogram tells apart: 65536 counters fit the cache, 2**20 would not."""

_FEW = 1 << 15
"""Up to so many numbers a selection is faster than filling two histograms."""

_BITS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_density(density: float) -> None:
    """Whether `density`, the fraction of numbers that is kept, can be used.

    Raises:
        UsageProblem: it is not above 0 and at most 1.
    """
    if not 0 < density <= 1:
        raise UsageProblem(f"density {shown(density)}, expected the fraction to keep, above 0 and at most 1")


def magnitude_keep(values: Tensor, density: float) -> Tensor:
    """`values` with all but the int(density * n) largest magnitudes set to 0; at least one is kept.

    Exactly that many are kept, as PEFT's `topk` does it: of numbers that tie for the last places, the first in memory.
    (PEFT keeps none where density * n < 1.) With density 1 the tensor itself is returned, else a new one.

    Raises:
        UsageProblem: a density out of range.
    """
    check_density(density)
    count = max(1, int(density * values.numel()))
    if count >= values.numel():
        return values
    values = values.contiguous()
    threshold, surplus = threshold_of(values, count)
    if threshold == 0:
        return values.clone()  # fewer numbers than that are not 0
    # hardshrink keeps what is larger than its bound; the bound is the float just below the threshold.
    edge = torch.tensor(threshold, dtype=values.dtype)
    below = float(torch.nextafter(edge, torch.zeros_like(edge))) if values.dtype.itemsize > 2 else None  # noqa: PLR2004
    kept = torch.empty_like(values)
    for piece, into in zip(_pieces(values), _pieces(kept), strict=True):
        if below is None:  # no nextafter for 16-bit floats; they are not what is large here
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
    """`values` with each number kept with probability `density`, else 0; not rescaled, always a new tensor.

    The mask is the same on every machine: uniform float32 numbers come out of the Mersenne twister one by one, whatever
    the number of threads, where `torch.bernoulli` depends on how torch was built.

    Raises:
        UsageProblem: a density out of range.
    """
    check_density(density)
    kept = values.clone(memory_format=torch.contiguous_format)
    if density < 1:
        for piece in _pieces(kept):
            drawn = torch.rand(piece.shape, generator=generator, dtype=torch.float32, device=generator.device)
            # A mask of 0.0 and 1.0 in the place of what was drawn: a boolean one costs three times as much.
            piece.mul_(torch.lt(drawn, density, out=drawn).to(piece.device))
    return kept


def by_position(count: int) -> list[torch.Generator]:
    """The generators of a method that is given none: seeded 0, 1, 2 … by position."""
    return [torch.Generator().manual_seed(position) for position in range(count)]


class SignVote:
    """The majority sign of every entry, over tensors that are added one by one; memory does not grow with them.

    "total": the sign of the sum; "frequency": the sign that more tensors have. A draw is a plus, as in PEFT.
    """

    def __init__(self, majority: Majority = "total") -> None:
        if majority not in ("total", "frequency"):
            raise UsageProblem(f"majority `{shown(majority)}`, expected total or frequency")
        self._majority = majority
        self._sum: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Count this tensor in."""
        if self._sum is None:
            dtype = values.dtype if self._majority == "total" else torch.int16
            self._sum = torch.zeros(values.shape, dtype=dtype, device=values.device)
        for votes, piece in zip(_pieces(self._sum), _pieces(values.contiguous()), strict=True):
            votes.add_(piece if self._majority == "total" else piece.sign().to(torch.int16))

    def signs(self) -> Tensor:
        """+1 or -1 for every entry, int8."""
        assert self._sum is not None, "nobody voted"
        signs = torch.empty(self._sum.shape, dtype=torch.int8, device=self._sum.device)
        for into, votes in zip(_pieces(signs), _pieces(self._sum), strict=True):
            into.copy_(votes >= 0).mul_(2).sub_(1)
        return signs


class DisjointMean:
    """The mean of every entry over the tensors that agree with its sign, each times its weight, added one by one."""

    def __init__(self, signs: Tensor) -> None:
        self._signs = signs
        self._count = torch.zeros(signs.shape, dtype=torch.int16, device=signs.device)
        self._sum: Tensor | None = None

    def add(self, values: Tensor, weight: float = 1.0) -> None:
        """Count in `values`, unweighted: their own signs are compared, then what agrees enters times `weight`."""
        if self._sum is None:
            self._sum = torch.zeros(values.shape, dtype=values.dtype, device=values.device)
        parts = (self._sum, self._count, self._signs, values.contiguous())
        for total, count, signs, piece in zip(*map(_pieces, parts), strict=True):
            agrees = piece.sign().eq_(signs)
            count.add_(agrees.to(count.dtype))
            # Rounded before it is added, not fused: so an adapter less itself is 0 and not rounding.
            total.add_(agrees.mul_(piece).mul_(weight))

    def mean(self) -> Tensor:
        """Sums divided by how many agreed; 0 where none did. Ends the counting: the sums are divided in place."""
        assert self._sum is not None, "nothing was added"
        total, self._sum = self._sum, None
        for piece, count in zip(_pieces(total), _pieces(self._count), strict=True):
            piece.div_(count.clamp_(min=1))
        return total


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Flat views of a contiguous tensor, one after the other."""
    flat = tensor.view(-1)
    return (flat[start : start + _PIECE] for start in range(0, len(flat), _PIECE))


def threshold_of(values: Tensor, count: int) -> tuple[float, int]:
    """The magnitude of the `count`-th largest number, and how many too many there are of at least that magnitude.

    Without their sign bit, the bits of floats are integers in the same order. A histogram of their upper 16 bits finds
    the bin of the wanted number, a second one of the lower 16 bits within that bin the number itself.
    """
    if values.numel() <= _FEW:
        sizes = values.view(-1).abs()
        smallest = sizes.kthvalue(len(sizes) - count + 1).values
        return float(smallest), int((sizes >= smallest).sum()) - count
    import numpy as np  # its bincount is five times as fast as torch's

    bits = values.view(-1).view(_BITS[values.dtype.itemsize])
    width, largest = 8 * values.dtype.itemsize, torch.iinfo(bits.dtype).max
    prefix, wanted, equal = 0, count, 0
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(1 << _DIGIT, dtype=np.int64)
        for piece in _pieces(bits):
            unsigned = piece.numpy(force=True) & largest
            if shift + _DIGIT < width:
                unsigned = unsigned[unsigned >> (shift + _DIGIT) == prefix] & ((1 << (shift + _DIGIT)) - 1)
            counts += np.bincount(unsigned >> shift, minlength=1 << _DIGIT)
        above = counts[::-1].cumsum()  # above[i]: numbers in the i + 1 uppermost bins
        place = int(np.searchsorted(above, wanted))
        equal = int(above[place] - (above[place - 1] if place else 0))
        wanted -= int(above[place - 1]) if place else 0
        prefix = prefix << _DIGIT | ((1 << _DIGIT) - 1 - place)
    threshold = float(torch.tensor(prefix, dtype=bits.dtype).view(values.dtype))
    return threshold, equal - wanted
