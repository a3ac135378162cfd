"""Weights of two models, read block by block, and their differences."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, final

import torch
from torch import Tensor

from adapterhub.core.errors import CouldNotTell, MalformedTensorFile, shown
from adapterhub.formats.safetensors.dtypes import DTYPE_BITS
from adapterhub.weights.dtypes import TORCH_DTYPES
from adapterhub.weights.extract._models import Weight
from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.lowrank.layouts import is_finite

BLOCK_BYTES: Final = 8 << 20
"""Read of each model at once: large enough for the disk, small beside any weight that matters."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Difference:
    """What one weight of the tuned model has over the base's.

    `matrix` is float32 [rows, columns], trailing dimensions flattened, and None when only the norm was asked for.
    `is_rounding`: the models are stored in two precisions, and the numbers are equal in the coarser one.
    """

    matrix: Tensor | None
    norm: float
    is_finite: bool
    is_rounding: bool

    @property
    def is_nothing(self) -> bool:
        """Whether the weight is the same in both models."""
        return self.is_rounding or self.norm == 0


@final
class WeightReader:
    """Open files of models; a context manager that closes them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._streams: dict[Path, IO[bytes]] = {}

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def data(self, weight: Weight, start: int = 0, count: int | None = None) -> bytearray:
        """`count` bytes of the weight from its byte `start`; all of them without.

        Raises:
            CouldNotTell: the file cannot be opened.
            MalformedTensorFile: it has become shorter since its header was read.
        """
        buffer = bytearray(weight.spec.size_bytes if count is None else count)
        stream = self._streams.get(weight.path)
        try:
            if stream is None:
                # unbuffered: what is read is megabytes at a time
                stream = self._streams[weight.path] = self._stack.enter_context(weight.path.open("rb", buffering=0))
            stream.seek(weight.spec.start + start)
            view, filled = memoryview(buffer), 0
            while filled < len(buffer):
                got = stream.readinto(view[filled:])  # type: ignore[attr-defined]  # a raw file has it
                if not got:
                    raise MalformedTensorFile(str(weight.path), f"ends inside tensor `{shown(weight.spec.name)}`")
                filled += got
        except OSError as error:
            raise CouldNotTell(f"`{weight.path}` cannot be read: {error.strerror}") from None
        return buffer

    def difference(self, base: Weight, tuned: Weight, *, with_matrix: bool = True) -> Difference:
        """What the tuned weight has over the base's, each entry rounded once to float32; one shape, floating dtypes."""
        rows = tuned.spec.shape[0] if tuned.spec.shape else 1
        columns = tuned.spec.elements // rows if rows else 0
        matrix = torch.empty(rows, columns) if with_matrix else None
        widest = max(DTYPE_BITS[w.spec.dtype] for w in (base, tuned)) // 8
        step = max(1, BLOCK_BYTES // max(1, columns * widest))
        squares, finite = 0.0, True
        is_rounding = base.spec.dtype != tuned.spec.dtype
        for first in range(0, rows, step):
            last = min(first + step, rows)
            old, new = (self._rows(w, first, last, columns) for w in (base, tuned))
            is_rounding = is_rounding and _equal_when_rounded(old, new)
            block = _minus(new, old)
            finite = finite and is_finite(block)
            squares += float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2
            if matrix is not None:
                matrix[first:last] = block
        return Difference(matrix=matrix, norm=math.sqrt(squares), is_finite=finite, is_rounding=is_rounding)

    def _rows(self, weight: Weight, first: int, last: int, columns: int) -> Tensor:
        dtype = TORCH_DTYPES[weight.spec.dtype]
        data = self.data(weight, first * columns * dtype.itemsize, (last - first) * columns * dtype.itemsize)
        return torch.frombuffer(data, dtype=dtype).reshape(last - first, columns)


def error_of(stored: LowRank, matrix: Tensor) -> float:
    """‖matrix - b a‖, Frobenius, block by block; `stored` has scale 1 and any dtype. Floor: 1e-7 of ‖matrix‖."""
    a, b = stored.a.float(), stored.b.float()
    step = max(1, BLOCK_BYTES // (4 * matrix.shape[1]))
    squares = 0.0
    for first in range(0, matrix.shape[0], step):
        gap = torch.addmm(matrix[first : first + step], b[first : first + step], a, alpha=-1)
        squares += float(torch.linalg.vector_norm(gap, dtype=torch.float64)) ** 2
    return math.sqrt(squares)


def _minus(new: Tensor, old: Tensor) -> Tensor:
    """The difference in float32; through float64 where one side is that wide."""
    wide = torch.float64 if torch.float64 in (new.dtype, old.dtype) else torch.float32
    return torch.sub(new.to(wide), old.to(wide)).float()


def _equal_when_rounded(old: Tensor, new: Tensor) -> bool:
    """Whether the numbers are equal once those of the finer dtype are rounded to the coarser one."""
    coarse = max(old.dtype, new.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    return torch.equal(old.to(coarse), new.to(coarse))
