"""The numbers of a change: factors read once, then the new rows of a tensor, piece by piece, and what rounding does.

All in float64: base, factors and sums. A number is rounded when it is stored, and only then. (Torch rounds to the
16-bit kinds by way of float32, so of two neighbours that are equally near to seven digits either may be taken.)
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from adapterhub.core.errors import CouldNotTell, MalformedTensorFile
from adapterhub.weights.dtypes import TORCH_DTYPES
from adapterhub.weights.fuse._places import Change, Taken, Update
from adapterhub.weights.lowrank.algebra import LowRank, stack


@final
class Scratch:
    """Memory of one thread that serves every piece: new memory for each would take longer than the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def tensor(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor whose numbers are whatever the last one of that use left there."""
        size = math.prod(shape) * dtype.itemsize
        held = self._held.get(use)
        if held is None or held.numel() < size:
            held = self._held[use] = torch.empty(size, dtype=torch.uint8)
        return held[:size].view(dtype).view(*shape)


@dataclass(frozen=True, slots=True)
class Landed:
    """How an update landed: the squares of the rounding error's norm and of the update's, and two counts of entries.

    `moved` have an update; `lost` are those of them whose stored number is what it would be without.
    """

    error: float = 0.0
    update: float = 0.0
    moved: int = 0
    lost: int = 0

    def plus(self, other: Landed) -> Landed:
        """Both together."""
        return Landed(
            self.error + other.error, self.update + other.update, self.moved + other.moved, self.lost + other.lost
        )


class Grid(NamedTuple):
    """A tensor seen as a matrix: its rows, in `blocks` of equally many (one for each expert), and their length."""

    rows: int
    columns: int
    blocks: int = 1

    @classmethod
    def of(cls, shape: tuple[int, ...], blocks: Sequence[LowRank] = ()) -> Grid:
        """The grid of a tensor of that shape, cut as its updates are; without any, trailing dimensions make a row."""
        columns = blocks[0].shape[1] if blocks else math.prod(shape[1:])
        return cls(math.prod(shape) // max(1, columns), columns, max(1, len(blocks)))

    def pieces(self, numbers: int) -> list[tuple[int, int]]:
        """Rows `[start, stop)` of about that many numbers each; a piece lies in one block."""
        length, step = self.rows // self.blocks, max(1, numbers // max(1, self.columns))
        return [
            (start, min(start + step, first + length))
            for first in range(0, self.rows, max(1, length))
            for start in range(first, first + length, step)
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arithmetic:
    """A change with its factors in memory.

    `blocks` are the updates of each block of rows, scale 1 and float64, in the base's own layout: `b` [rows, r], `a`
    [r, columns]. `lengths` (DoRA) and `norms` have one number for each output.
    """

    grid: Grid
    blocks: tuple[LowRank, ...]
    whole: Taken | None
    tokens: Tensor
    rows: Tensor
    lengths: Tensor | None
    is_by_row: bool
    norms: Tensor | None = None

    def apply(self, weight: Tensor, start: int, scratch: Scratch) -> Tensor:
        """What rows of the base, from row `start` on, become; float64 [rows, columns], in the scratch memory."""
        stop = start + len(weight)
        new = self._sum(weight, start, scratch)
        if self.lengths is not None and self.norms is not None:
            factors = self.lengths / self.norms
            new *= factors[start:stop, None] if self.is_by_row else factors
        return new

    def squares(self, weight: Tensor, start: int, scratch: Scratch) -> Tensor:
        """What rows of the base add to the squared norm of each output; float64 [outputs]."""
        assert self.lengths is not None
        new = self._sum(weight, start, scratch).square_()
        if not self.is_by_row:
            return new.sum(0)
        squares = torch.zeros_like(self.lengths)
        squares[start : start + len(weight)] = new.sum(1)
        return squares

    def _sum(self, weight: Tensor, start: int, scratch: Scratch) -> Tensor:
        stop = start + len(weight)
        new = scratch.tensor("new", weight.shape, torch.float64)
        new.copy_(weight if self.whole is None else _rows_of(self.whole, self.grid, start, stop))
        if len(self.tokens):
            here = (self.tokens >= start) & (self.tokens < stop)
            new[self.tokens[here] - start] = self.rows[here]
        if self.blocks:
            length = self.grid.rows // self.grid.blocks
            block = self.blocks[start // length]
            first = start % length
            new.addmm_(block.b[first : first + len(weight)], block.a)
        return new


def load(change: Change) -> Arithmetic:
    """The arithmetic of a change; reads the adapter's factors, but not what replaces a tensor whole."""
    turned = [update.is_turned for update in change.updates]
    parts = [_blocks(update) for update in change.updates] + [_column(offset) for offset in change.offsets]
    blocks = tuple(stack(deltas, [1.0] * len(deltas)) for deltas in zip(*parts, strict=True)) if parts else ()
    none = torch.empty(0, dtype=torch.int64)
    return Arithmetic(
        grid=Grid.of(change.tensor.shape, blocks),
        blocks=blocks,
        whole=change.whole,
        tokens=torch.tensor(change.tokens, dtype=torch.int64) if change.rows else none,
        rows=_read(change.rows).double() if change.rows else none,
        lengths=_read(change.magnitude).double().flatten() if change.magnitude else None,
        is_by_row=not any(turned),
    )


def measure(old: Tensor, new: Tensor, stored: Tensor, scratch: Scratch) -> Landed:
    """How `new` (float64) landed as `stored`, where `old` was."""
    work = scratch.tensor("measured", new.shape, torch.float64)
    flat = work.flatten()
    work.copy_(stored).sub_(new)
    error = float(flat.dot(flat))
    if not math.isfinite(error):
        return Landed(error=error)
    torch.sub(new, work.copy_(old), out=work)
    room = scratch.tensor("counted", (flat.numel(),), torch.bool)
    moved = _count(flat, torch.zeros((), dtype=flat.dtype), room)
    changed = _count(_bits(stored).flatten(), _bits(old.to(stored.dtype)).flatten(), room)
    # what has no update is stored as it was, but for a zero that may have lost its sign
    return Landed(error, float(flat.dot(flat)), moved, max(0, moved - changed))


def _bits(numbers: Tensor) -> Tensor:
    """Floating point numbers as integers, which are compared faster."""
    return numbers.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[numbers.element_size()])


def _count(one: Tensor, other: Tensor, room: Tensor) -> int:
    """How many entries differ. By NumPy, which takes a fifth of torch's time here."""
    import numpy as np

    return int(np.count_nonzero(np.not_equal(one.numpy(), other.numpy(), out=room.numpy())))


def _blocks(update: Update) -> tuple[LowRank, ...]:
    """The update of each block of rows in the base's layout, weight and scale in `b`."""
    weight = update.source.weight
    parts = []
    for part in update.source.factors.parts(update.module):
        a, b = part.a.double(), part.b.double() * (part.scale * weight)
        parts.append(LowRank(a=b.T.contiguous(), b=a.T.contiguous()) if update.is_turned else LowRank(a=a, b=b))
    return tuple(parts)


def _column(offset: Update) -> tuple[LowRank]:
    """What is added to a bias, as a column."""
    bias = offset.source.factors.bias(offset.module)
    assert bias is not None
    return (LowRank(a=torch.ones(1, 1, dtype=torch.float64), b=bias[:, None] * offset.source.weight),)


def _read(taken: Taken) -> Tensor:
    return taken.source.factors.tensor(taken.spec)


def _rows_of(taken: Taken, grid: Grid, start: int, stop: int) -> Tensor:
    """Rows of a tensor that replaces one of the base; may be called from several threads."""
    dtype = TORCH_DTYPES[taken.spec.dtype]
    room = torch.empty(stop - start, grid.columns, dtype=dtype)
    place = taken.spec.start + start * grid.columns * dtype.itemsize
    taken.source.factors.weights.read_into(room.flatten().view(torch.uint8).numpy().data, place)
    return room


def read_into(room: Tensor, handle: int, start: int, where: str) -> None:
    """Fill a tensor with the bytes of an open file from byte `start` on.

    Raises:
        CouldNotTell: it cannot be read.
        MalformedTensorFile: it has become shorter since its header was read.
    """
    view, filled = room.flatten().view(torch.uint8).numpy().data, 0
    while filled < len(view):
        try:
            got = os.preadv(handle, [view[filled:]], start + filled)
        except OSError as error:
            raise CouldNotTell(f"`{where}` cannot be read: {error.strerror}") from None
        if not got:
            raise MalformedTensorFile(where, "became shorter while it was read")
        filled += got
