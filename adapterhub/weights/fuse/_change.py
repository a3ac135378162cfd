"""The arithmetic of a change: reads the factors once, computes the new rows piece by piece, and measures rounding.

Base, factors and sums are float64. A number is rounded once, when it is stored. (Torch rounds to 16-bit dtypes by way
of float32, so between two neighbours that are equally near to seven digits, it may take either.)
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
from adapterhub.weights.fuse._places import AdapterTensor, Change, Update
from adapterhub.weights.lowrank.algebra import LowRank, stack


@final
class Scratch:
    """Memory of one thread, reused for every piece: allocating each piece would take longer than the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def tensor(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor with the leftover numbers of the last tensor for that use."""
        size = math.prod(shape) * dtype.itemsize
        held = self._held.get(use)
        if held is None or held.numel() < size:
            held = self._held[use] = torch.empty(size, dtype=torch.uint8)
        return held[:size].view(dtype).view(*shape)


@dataclass(frozen=True, slots=True)
class RoundingLoss:
    """The loss of an update to rounding: the squared norms of the error and of the update, and two counts.

    `moved` counts the entries with an update, `lost` those of them that are stored as if they had none.
    """

    error: float = 0.0
    update: float = 0.0
    moved: int = 0
    lost: int = 0

    def plus(self, other: RoundingLoss) -> RoundingLoss:
        """The loss over both."""
        return RoundingLoss(
            self.error + other.error, self.update + other.update, self.moved + other.moved, self.lost + other.lost
        )


class Grid(NamedTuple):
    """A tensor as a matrix: its rows, in `blocks` of equal size (one for each expert), and their length."""

    rows: int
    columns: int
    blocks: int = 1

    @classmethod
    def of(cls, shape: tuple[int, ...], blocks: Sequence[LowRank] = ()) -> Grid:
        """The grid of a tensor of that shape, divided like its updates; without any, trailing dimensions form rows."""
        columns = blocks[0].shape[1] if blocks else math.prod(shape[1:])
        return cls(math.prod(shape) // max(1, columns), columns, max(1, len(blocks)))

    def pieces(self, numbers: int) -> list[tuple[int, int]]:
        """Ranges of rows `[start, stop)` of about that many numbers; no range crosses a block."""
        length, step = self.rows // self.blocks, max(1, numbers // max(1, self.columns))
        return [
            (start, min(start + step, first + length))
            for first in range(0, self.rows, max(1, length))
            for start in range(first, first + length, step)
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arithmetic:
    """A change with its factors in memory.

    `blocks` holds the update of each block of rows, scale 1 and float64, in the layout of the base: `b` [rows, r], `a`
    [r, columns]. `lengths` (DoRA) and `norms` have one number for each output.
    """

    grid: Grid
    blocks: tuple[LowRank, ...]
    whole: AdapterTensor | None
    tokens: Tensor
    rows: Tensor
    lengths: Tensor | None
    is_by_row: bool
    norms: Tensor | None = None

    def apply(self, weight: Tensor, start: int, scratch: Scratch) -> Tensor:
        """The new rows for rows of the base from `start` on; float64 [rows, columns], in scratch memory."""
        stop = start + len(weight)
        new = self._sum(weight, start, scratch)
        if self.lengths is not None and self.norms is not None:
            factors = self.lengths / self.norms
            new *= factors[start:stop, None] if self.is_by_row else factors
        return new

    def squares(self, weight: Tensor, start: int, scratch: Scratch) -> Tensor:
        """The contribution of rows of the base to the squared norm of each output; float64 [outputs]."""
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
    """The arithmetic of a change; reads the adapter's factors, but not a tensor that replaces a whole one."""
    turned = [update.is_turned for update in change.updates]
    parts = [update.blocks() for update in change.updates] + [_column(offset) for offset in change.offsets]
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


def measure(old: Tensor, new: Tensor, stored: Tensor, scratch: Scratch) -> RoundingLoss:
    """The loss of storing `new` (float64) as `stored` in place of `old`."""
    work = scratch.tensor("measured", new.shape, torch.float64)
    flat = work.flatten()
    work.copy_(stored).sub_(new)
    error = float(flat.dot(flat))
    if not math.isfinite(error):
        return RoundingLoss(error=error)
    torch.sub(new, work.copy_(old), out=work)
    room = scratch.tensor("counted", (flat.numel(),), torch.bool)
    moved = _count(flat, torch.zeros((), dtype=flat.dtype), room)
    changed = _count(_bits(stored).flatten(), _bits(old.to(stored.dtype)).flatten(), room)
    # an entry without an update keeps its bits, except that a zero may lose its sign
    return RoundingLoss(error, float(flat.dot(flat)), moved, max(0, moved - changed))


def _bits(numbers: Tensor) -> Tensor:
    """Floating point numbers as integers, which compare faster."""
    return numbers.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[numbers.element_size()])


def _count(one: Tensor, other: Tensor, room: Tensor) -> int:
    """The number of entries that differ. NumPy takes a fifth of torch's time here."""
    import numpy as np

    return int(np.count_nonzero(np.not_equal(one.numpy(), other.numpy(), out=room.numpy())))


def _column(offset: Update) -> tuple[LowRank]:
    """The update of a bias, as a column."""
    bias = offset.source.factors.bias(offset.module)
    assert bias is not None
    return (LowRank(a=torch.ones(1, 1, dtype=torch.float64), b=bias[:, None] * offset.source.weight),)


def _read(tensor: AdapterTensor) -> Tensor:
    return tensor.source.factors.tensor(tensor.spec)


def _rows_of(tensor: AdapterTensor, grid: Grid, start: int, stop: int) -> Tensor:
    """Rows of a tensor that replaces one of the base; safe to call from several threads."""
    dtype = TORCH_DTYPES[tensor.spec.dtype]
    room = torch.empty(stop - start, grid.columns, dtype=dtype)
    place = tensor.spec.start + start * grid.columns * dtype.itemsize
    tensor.source.factors.weights.read_into(room.flatten().view(torch.uint8).numpy().data, place)
    return room


def read_into(room: Tensor, handle: int, start: int, where: str) -> None:
    """Fill a tensor with the bytes of an open file from byte `start` on.

    Raises:
        CouldNotTell: the file cannot be read.
        MalformedTensorFile: the file became shorter after its header was read.
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
