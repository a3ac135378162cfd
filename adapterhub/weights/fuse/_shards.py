"""A weight file of the base as a weight file of the fused model: what stays is copied, what changes is computed.

The copy is left to the kernel. A tensor that changes is worked on piece by piece, by several threads that read, add,
round, measure and write each piece on their own, so memory is that of its factors and a few megabytes a thread.
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
from adapterhub.weights.fuse._change import Arithmetic, Grid, Landed, Scratch, load, measure, read_into
from adapterhub.weights.fuse._places import Change

PIECE_NUMBERS: Final = 1 << 18
"""Numbers worked on at once by a thread: 2 MB in float64, which stay in a core's cache."""

MOST_THREADS: Final = 8
_COPY_BYTES: Final = 32 << 20

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes that stay as they are: `count` of them, from `start` of the base's file to `target` of the new one."""

    start: int
    target: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a file of the base lies in the new one: its first bytes, then `tensors` as (old, new), in the new order."""

    prefix: bytes
    tensors: tuple[tuple[TensorSpec, TensorSpec], ...]

    @property
    def size_bytes(self) -> int:
        """Size of the new file."""
        return self.tensors[-1][1].end


def lay_out(file: TensorFile, dtypes: Mapping[str, str]) -> Layout:
    """The new file's layout; `dtypes` are those of tensors that get another one, by name.

    Without any, it is the base's byte by byte, header included.
    """
    changed = [spec for spec in file.tensors if dtypes.get(spec.name, spec.dtype) != spec.dtype]
    if not changed and "format" in file.metadata:
        with file.path.open("rb") as stream:
            prefix = stream.read(file.data_start)
        return Layout(prefix=prefix, tensors=tuple((spec, spec) for spec in file.tensors))
    pairs = [(s, TensorSpec.planned(s.name, dtypes.get(s.name, s.dtype), s.shape)) for s in file.tensors]
    pairs.sort(key=lambda pair: -DTYPE_BITS[pair[1].dtype])  # each begins at a multiple of its numbers' size
    prefix = header_bytes([new for _, new in pairs], {"format": "pt"} | file.metadata)
    reached, placed = len(prefix), []
    for old, new in pairs:
        placed.append((old, replace(new, start=reached, end=reached + new.size_bytes)))
        reached += new.size_bytes
    return Layout(prefix=prefix, tensors=tuple(placed))


@final
class ShardWriter:
    """Writes weight files; a context manager that ends its threads. `progress` gets the bytes that are written."""

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
        torch.set_num_threads(self._threads_of_torch)  # what ours set is the default of threads begun later, too

    def write(self, file: TensorFile, layout: Layout, path: Path, changes: Mapping[str, Change]) -> dict[str, Landed]:
        """Write one file; how the update of each changed tensor landed, by name.

        Raises:
            MergeRefused: a result that is not finite in its dtype.
            CouldNotTell, MalformedTensorFile: a file that cannot be read, or has become shorter.
            OSError: the new file cannot be written.
        """
        landed: dict[str, Landed] = {}
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
                    landed[old.name] = self._rework(shard, old, new, load(change))
                elif change is not None and change.whole is not None:
                    self._put(shard, new, change)
                elif old.dtype != new.dtype:
                    self._convert(shard, old, new)
        finally:
            os.close(source)
            if target >= 0:
                os.close(target)
        return landed

    def _copy(self, shard: _Shard, stretch: Stretch) -> None:
        done = 0
        while done < stretch.count:
            count = min(_COPY_BYTES, stretch.count - done)
            copied = _copy_range(shard, stretch.start + done, stretch.target + done, count)
            if not copied:
                raise CouldNotTell(f"`{shard.file.path}` became shorter while it was read")
            self._progress(copied)
            done += copied

    def _rework(self, shard: _Shard, old: TensorSpec, new: TensorSpec, arithmetic: Arithmetic) -> Landed:
        grid = arithmetic.grid

        def squares_of(start: int, stop: int, scratch: Scratch) -> Tensor:
            return arithmetic.squares(shard.rows(old, grid, start, stop, scratch), start, scratch)

        if arithmetic.lengths is not None:
            squares = torch.zeros_like(arithmetic.lengths)
            for some in self._each(grid, squares_of):
                squares += some
            arithmetic = replace(arithmetic, norms=squares.sqrt())

        def work(start: int, stop: int, scratch: Scratch) -> Landed:
            weight = shard.rows(old, grid, start, stop, scratch)
            result = arithmetic.apply(weight, start, scratch)
            stored = scratch.tensor("stored", result.shape, TORCH_DTYPES[new.dtype]).copy_(result)
            landed = measure(weight, result, stored, scratch)
            shard.put(stored, new, grid, start)
            return landed

        total = Landed()
        for (start, stop), landed in zip(grid.pieces(PIECE_NUMBERS), self._each(grid, work), strict=True):
            total = total.plus(landed)
            if not math.isfinite(total.error):
                reason = f"`{shown(old.name)}` is not finite in {new.dtype}: its numbers are too large, or no numbers"
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
        """A tensor of another kind than floats that is replaced whole: a count, say."""
        assert change.whole is not None
        data = change.whole.source.factors.data(change.whole.spec)
        _write_at(shard.target, data, new.start)
        self._progress(len(data))

    def _each(self, grid: Grid, work: Callable[[int, int, Scratch], _T]) -> Iterator[_T]:
        """`work` on every piece, by all threads; results in order."""

        def with_scratch(piece: tuple[int, int]) -> _T:
            return work(*piece, self._own.scratch)

        return self._pool.map(with_scratch, grid.pieces(PIECE_NUMBERS))


class _Own(threading.local):
    """What each thread has for itself."""

    def __init__(self) -> None:
        self.scratch = Scratch()


def _compute_alone() -> None:
    """Keep torch in this thread from using others, which would wait for each other several times a piece."""
    torch.set_num_threads(1)


class _Shard(NamedTuple):
    """A file of the base and its successor, open for reading and for writing."""

    file: TensorFile
    source: int
    target: int

    def rows(self, spec: TensorSpec, grid: Grid, start: int, stop: int, scratch: Scratch) -> Tensor:
        """Rows `[start, stop)` of a tensor of the base, in the scratch memory."""
        dtype = TORCH_DTYPES[spec.dtype]
        room = scratch.tensor("read", (stop - start, grid.columns), dtype)
        read_into(room, self.source, spec.start + start * grid.columns * dtype.itemsize, str(self.file.path))
        return room

    def put(self, rows: Tensor, spec: TensorSpec, grid: Grid, start: int) -> None:
        """Write rows from `start` on of a new tensor."""
        width = grid.columns * DTYPE_BITS[spec.dtype] // 8
        _write_at(self.target, rows.flatten().view(torch.uint8).numpy().data, spec.start + start * width)


def _stretches(layout: Layout, changes: Mapping[str, Change]) -> Sequence[Stretch]:
    """What is copied: tensors that keep dtype and numbers, neighbours together."""
    found: list[Stretch] = []
    for old, new in layout.tensors:
        if old.name in changes or old.dtype != new.dtype:
            continue
        last = found[-1] if found else None
        if last and last.start + last.count == old.start and last.target + last.count == new.start:
            found[-1] = replace(last, count=last.count + old.size_bytes)
        else:
            found.append(Stretch(old.start, new.start, old.size_bytes))
    return found


def _copy_range(shard: _Shard, start: int, target: int, count: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(shard.source, shard.target, count, start, target)
        except OSError:  # across file systems on an old kernel, or one that cannot do it
            pass
    data = os.pread(shard.source, min(count, 1 << 20), start)
    _write_at(shard.target, data, target)
    return len(data)


def _write_at(handle: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(handle, view[done:], offset + done)
