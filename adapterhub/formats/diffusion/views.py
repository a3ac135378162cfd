"""A tensor as part of another one: some of its rows, its halves exchanged, or its transpose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub.core.errors import shown
from adapterhub.formats.safetensors.dtypes import DTYPE_BITS
from adapterhub.formats.safetensors.header import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorView:
    """A tensor that a weight file holds in other names or inside another: its bytes are `pieces`, end to end.

    `pieces` are `[start, end)` in the file. `is_transposed`: they are the rows of its transpose, a matrix.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[int, int], ...]
    is_transposed: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return sum(end - start for start, end in self.pieces)

    @classmethod
    def of(cls, spec: TensorSpec, name: str | None = None) -> TensorView:
        """The whole of `spec`."""
        name = spec.name if name is None else name
        return cls(name=name, dtype=spec.dtype, shape=spec.shape, pieces=((spec.start, spec.end),))


def rows(spec: TensorSpec, parts: Sequence[tuple[str, int]]) -> list[TensorView]:
    """The rows of `spec` by parts, each a name and a number of rows.

    Raises:
        ValueError: the parts are not all of its rows, or do not fill whole bytes.
    """
    total = spec.shape[0] if spec.shape else 0
    if sum(count for _, count in parts) != total or any(count < 1 for _, count in parts):
        listed = ", ".join(str(count) for _, count in parts)
        raise ValueError(f"`{shown(spec.name)}` has {total} rows, expected {listed}")
    bits = math.prod(spec.shape[1:]) * DTYPE_BITS[spec.dtype]
    found, start = [], spec.start
    for name, count in parts:
        size, rest = divmod(bits * count, 8)
        if rest:
            raise ValueError(f"`{shown(spec.name)}`: {count} rows of {spec.dtype} do not fill whole bytes")
        shape = (count, *spec.shape[1:])
        found.append(TensorView(name=name, dtype=spec.dtype, shape=shape, pieces=((start, start + size),)))
        start += size
    return found


def swapped_halves(spec: TensorSpec, name: str) -> TensorView:
    """`spec` with the second half of its rows first.

    Raises:
        ValueError: the rows have no halves of whole bytes.
    """
    half = (spec.shape[0] if spec.shape else 0) // 2
    first, second = rows(spec, [(name, half), (name, half)])
    return TensorView(name=name, dtype=spec.dtype, shape=spec.shape, pieces=(*second.pieces, *first.pieces))


def transposed(spec: TensorSpec, name: str) -> TensorView:
    """The transpose of the matrix `spec`.

    Raises:
        ValueError: it is no matrix, or its numbers do not fill whole bytes.
    """
    if len(spec.shape) != 2 or DTYPE_BITS[spec.dtype] % 8:  # noqa: PLR2004 - a matrix
        raise ValueError(f"`{shown(spec.name)}`: expected a matrix of whole bytes, got {spec.dtype} {list(spec.shape)}")
    shape = (spec.shape[1], spec.shape[0])
    return TensorView(name=name, dtype=spec.dtype, shape=shape, pieces=((spec.start, spec.end),), is_transposed=True)
