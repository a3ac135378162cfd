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
from adapterhub.core.errors import CouldNotTell, MergeRefused, shown
from adapterhub.formats.safetensors.dtypes import DTYPE_BITS
from adapterhub.formats.safetensors.file import TensorFile, header_bytes
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.dtypes import TORCH_DTYPES
from adapterhub.weights.fuse._change import Arithmetic, Grid, RoundingLoss, Scratch, load, measure, read_into
from adapterhub.weights.fuse._places import Change

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
    """The new file's layout; `dtypes` maps the names of tensors to their new dtypes.

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
        self, file: TensorFile, layout: ShardLayout, path: Path, changes: Mapping[str, Change]
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
            raise CouldNotTell(f"`{file.path}` cannot be read: {error.strerror}") from None
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
                raise CouldNotTell(f"`{shard.file.path}` became shorter while it was read")
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

    def _put(self, shard: _Shard, new: TensorSpec, change: Change) -> None:
        """Write a replaced tensor that is not floating point, such as a count."""
        assert change.whole is not None
        data = change.whole.source.factors.data(change.whole.spec)
        _write_at(shard.target, data, new.start)
        self._progress(len(data))

    def _each(self, grid: Grid, work: Callable[[int, int, Scratch], _T]) -> Iterator[_T]:
        """The results of `work` on every piece, in order, computed by all threads."""

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


def _stretches(layout: ShardLayout, changes: Mapping[str, Change]) -> Sequence[Stretch]:
    """The bytes to copy: tensors with unchanged dtype and numbers, neighbours joined."""
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
