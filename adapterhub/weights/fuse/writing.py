"""Writes the weight files of a fused model: copies the bytes that stay and computes the tensors that change.

The kernel copies. Several threads compute a changed tensor piece by piece: each reads, adds, rounds, measures and
writes its own pieces, so memory is that of the factors and a few megabytes for each thread.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, TypeVar, final

import torch
from torch import Tensor

from adapterhub.core.digests import Progress
from adapterhub.core.disk.files import not_read
from adapterhub.core.errors import CouldNotTell, MalformedTensorFile, MergeRefused, shown
from adapterhub.formats.safetensors.file import TensorFile, header_bytes
from adapterhub.formats.safetensors.header import DTYPE_BITS, TensorSpec
from adapterhub.weights.dtypes import TORCH_DTYPES
from adapterhub.weights.fuse.model import StoredBase
from adapterhub.weights.fuse.places import AdapterTensor, TensorChange, TensorUpdate
from adapterhub.weights.lowrank.algebra import LowRank, stack

PIECE_NUMBERS: Final = 1 << 18
"""Numbers in a thread's piece: 2 MB in float64, which fit a core's cache."""

MOST_THREADS: Final = 8
_COPY_BYTES: Final = 32 << 20

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Stretch:
    """`count` bytes to copy from `start` in the base's file to `target` in the new one."""

    start: int
    target: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLayout:
    """The layout of a new file: its first bytes, then `tensors` as (old, new) in the new order."""

    prefix: bytes
    tensors: tuple[tuple[TensorSpec, TensorSpec], ...]

    @property
    def size_bytes(self) -> int:
        """Size of the new file."""
        return self.tensors[-1][1].end


def lay_out(file: TensorFile, dtypes: Mapping[str, str]) -> ShardLayout:
    """Return the new file's layout; `dtypes` maps the names of tensors to their new dtypes.

    Without new dtypes it equals the base's layout byte for byte, including the header.
    """
    changed = [spec for spec in file.tensors if dtypes.get(spec.name, spec.dtype) != spec.dtype]
    if not changed and "format" in file.metadata:
        with file.path.open("rb") as stream:
            prefix = stream.read(file.data_start)
        return ShardLayout(prefix=prefix, tensors=tuple((spec, spec) for spec in file.tensors))
    pairs = [(s, TensorSpec.planned(s.name, dtypes.get(s.name, s.dtype), s.shape)) for s in file.tensors]
    pairs.sort(key=lambda pair: -DTYPE_BITS[pair[1].dtype])  # each starts at a multiple of its number size
    prefix = header_bytes([new for _, new in pairs], {"format": "pt"} | file.metadata)
    reached, placed = len(prefix), []
    for old, new in pairs:
        placed.append((old, new._replace(start=reached, end=reached + new.size_bytes)))
        reached += new.size_bytes
    return ShardLayout(prefix=prefix, tensors=tuple(placed))


@final
class ShardWriter:
    """Writes weight files; a context manager that ends its threads. `progress` gets the written bytes."""

    def __init__(self, progress: Progress, *, threads: int | None = None) -> None:
        self._progress = progress
        self._own = _Own()
        self._threads_of_torch = torch.get_num_threads()
        count = threads or min(MOST_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(max_workers=count, thread_name_prefix="fuse", initializer=_compute_alone)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads_of_torch)  # the setting of our threads is also the default of later threads

    def write(
        self, file: TensorFile, layout: ShardLayout, path: Path, changes: Mapping[str, TensorChange]
    ) -> dict[str, RoundingLoss]:
        """Write one file; the rounding loss of each changed tensor, by name.

        Raises:
            MergeRefused: a result is not finite in its dtype.
            CouldNotTell, MalformedTensorFile: a file cannot be read, or became shorter.
            OSError: the new file cannot be written.
        """
        losses: dict[str, RoundingLoss] = {}
        try:
            source = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise not_read(error, file.path, CouldNotTell) from None
        target = -1
        try:
            target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            os.ftruncate(target, layout.size_bytes)
            _write_at(target, layout.prefix, 0)
            self._progress(len(layout.prefix))
            shard = _Shard(file, source, target)
            for stretch in _stretches(layout, changes):
                self._copy(shard, stretch)
            for old, new in layout.tensors:
                change = changes.get(old.name)
                if change is not None and old.dtype in TORCH_DTYPES:
                    losses[old.name] = self._rework(shard, old, new, load(change))
                elif change is not None and change.whole is not None:
                    self._put(shard, new, change)
                elif old.dtype != new.dtype:
                    self._convert(shard, old, new)
        finally:
            os.close(source)
            if target >= 0:
                os.close(target)
        return losses

    def _copy(self, shard: _Shard, stretch: Stretch) -> None:
        done = 0
        while done < stretch.count:
            count = min(_COPY_BYTES, stretch.count - done)
            copied = _copy_range(shard, stretch.start + done, stretch.target + done, count)
            if not copied:
                raise CouldNotTell(
                    f"`{shard.file.path}` became shorter while it was read", hint="run the command again"
                )
            self._progress(copied)
            done += copied

    def _rework(self, shard: _Shard, old: TensorSpec, new: TensorSpec, arithmetic: Arithmetic) -> RoundingLoss:
        grid = arithmetic.grid

        def squares_of(start: int, stop: int, scratch: Scratch) -> Tensor:
            return arithmetic.squares(shard.rows(old, grid, start, stop, scratch), start, scratch)

        if arithmetic.lengths is not None:
            squares = torch.zeros_like(arithmetic.lengths)
            for some in self._each(grid, squares_of):
                squares += some
            arithmetic = replace(arithmetic, norms=squares.sqrt())

        def work(start: int, stop: int, scratch: Scratch) -> RoundingLoss:
            weight = shard.rows(old, grid, start, stop, scratch)
            result = arithmetic.apply(weight, start, scratch)
            stored = scratch.tensor("stored", result.shape, TORCH_DTYPES[new.dtype]).copy_(result)
            loss = measure(weight, result, stored, scratch)
            shard.put(stored, new, grid, start)
            return loss

        total = RoundingLoss()
        for (start, stop), loss in zip(grid.pieces(PIECE_NUMBERS), self._each(grid, work), strict=True):
            total = total.plus(loss)
            if not math.isfinite(total.error):
                reason = f"`{shown(old.name)}` is not finite in {new.dtype}: its numbers are too large or NaN"
                raise MergeRefused("the fused weights cannot be stored", [reason])
            self._progress((stop - start) * grid.columns * DTYPE_BITS[new.dtype] // 8)
        return total

    def _convert(self, shard: _Shard, old: TensorSpec, new: TensorSpec) -> None:
        grid = Grid.of(old.shape)

        def work(start: int, stop: int, scratch: Scratch) -> int:
            rows = shard.rows(old, grid, start, stop, scratch)
            shard.put(rows.to(TORCH_DTYPES[new.dtype]), new, grid, start)
            return (stop - start) * grid.columns * DTYPE_BITS[new.dtype] // 8

        for done in self._each(grid, work):
            self._progress(done)

    def _put(self, shard: _Shard, new: TensorSpec, change: TensorChange) -> None:
        """Write a replaced tensor that is not floating point, such as a count."""
        assert change.whole is not None
        data = change.whole.source.factors.data(change.whole.spec)
        _write_at(shard.target, data, new.start)
        self._progress(len(data))

    def _each(self, grid: Grid, work: Callable[[int, int, Scratch], _T]) -> Iterator[_T]:
        """Return the results of `work` on every piece, in order, computed by all threads."""

        def with_scratch(piece: tuple[int, int]) -> _T:
            return work(*piece, self._own.scratch)

        return self._pool.map(with_scratch, grid.pieces(PIECE_NUMBERS))


class _Own(threading.local):
    """The scratch memory of each thread."""

    def __init__(self) -> None:
        self.scratch = Scratch()


def _compute_alone() -> None:
    """Limit torch in this thread to one thread; more would wait for each other several times a piece."""
    torch.set_num_threads(1)


class _Shard(NamedTuple):
    """A file of the base, open for reading, and the new file, open for writing."""

    file: TensorFile
    source: int
    target: int

    def rows(self, spec: TensorSpec, grid: Grid, start: int, stop: int, scratch: Scratch) -> Tensor:
        """Rows `[start, stop)` of a tensor of the base, in scratch memory."""
        dtype = TORCH_DTYPES[spec.dtype]
        room = scratch.tensor("read", (stop - start, grid.columns), dtype)
        read_into(room, self.source, spec.start + start * grid.columns * dtype.itemsize, str(self.file.path))
        return room

    def put(self, rows: Tensor, spec: TensorSpec, grid: Grid, start: int) -> None:
        """Write rows of a new tensor from `start` on."""
        width = grid.columns * DTYPE_BITS[spec.dtype] // 8
        _write_at(self.target, rows.flatten().view(torch.uint8).numpy().data, spec.start + start * width)


def _stretches(layout: ShardLayout, changes: Mapping[str, TensorChange]) -> Sequence[Stretch]:
    """Return the bytes to copy: tensors with unchanged dtype and numbers, neighbours joined."""
    stretches: list[Stretch] = []
    for old, new in layout.tensors:
        if old.name in changes or old.dtype != new.dtype:
            continue
        last = stretches[-1] if stretches else None
        if last and last.start + last.count == old.start and last.target + last.count == new.start:
            stretches[-1] = replace(last, count=last.count + old.size_bytes)
        else:
            stretches.append(Stretch(old.start, new.start, old.size_bytes))
    return stretches


def _copy_range(shard: _Shard, start: int, target: int, count: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(shard.source, shard.target, count, start, target)
        except OSError:  # between file systems on an old kernel, or a file system without it
            pass
    data = os.pread(shard.source, min(count, 1 << 20), start)
    _write_at(shard.target, data, target)
    return len(data)


def _write_at(handle: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(handle, view[done:], offset + done)


@final
class Scratch:
    """Memory of one thread, reused for every piece: allocating each piece would take longer than the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def tensor(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor with the leftover numbers of the last tensor for that use."""
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
        """Return the loss over both."""
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
        """Return the grid of a tensor of that shape, divided like its updates.

        Without any, trailing dimensions form rows.
        """
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
        """Return the new rows for rows of the base from `start` on; float64 [rows, columns], in scratch memory."""
        stop = start + len(weight)
        new = self._sum(weight, start, scratch)
        if self.lengths is not None and self.norms is not None:
            factors = self.lengths / self.norms
            new *= factors[start:stop, None] if self.is_by_row else factors
        return new

    def squares(self, weight: Tensor, start: int, scratch: Scratch) -> Tensor:
        """Return the contribution of rows of the base to the squared norm of each output; float64 [outputs]."""
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


def load(change: TensorChange) -> Arithmetic:
    """Return the arithmetic of a change; reads the adapter's factors, but not a tensor that replaces a whole one."""
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
    """Return the loss of storing `new` (float64) as `stored` in place of `old`."""
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
    """Return the number of entries that differ. NumPy takes a fifth of torch's time here."""
    import numpy as np

    return int(np.count_nonzero(np.not_equal(one.numpy(), other.numpy(), out=room.numpy())))


def _column(offset: TensorUpdate) -> tuple[LowRank]:
    """Return the update of a bias, as a column."""
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
            raise not_read(error, where, CouldNotTell) from None
        if not got:
            raise MalformedTensorFile(where, "became shorter while it was read")
        filled += got


def is_copy(tensor: AdapterTensor, model: StoredBase, name: str) -> bool:
    """Whether an adapter's tensor, in the base's dtype, equals the base's tensor `name`; reads both piece by piece."""
    file, spec = model.places[name]
    if tensor.spec.shape != spec.shape or not {tensor.spec.dtype, spec.dtype} <= TORCH_DTYPES.keys():
        return False
    mine, dtype = TORCH_DTYPES[tensor.spec.dtype], TORCH_DTYPES[spec.dtype]
    handle, at = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC), spec.start
    try:
        for chunk in tensor.source.factors.chunks(tensor.spec):
            numbers = torch.frombuffer(chunk, dtype=mine)
            base = torch.empty(numbers.shape, dtype=dtype)
            read_into(base, handle, at, str(file.path))
            if not torch.equal(numbers.to(dtype), base):
                return False
            at += base.nbytes
    finally:
        os.close(handle)
    return True
