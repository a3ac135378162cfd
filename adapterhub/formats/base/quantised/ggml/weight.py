"""Weights in GGML's types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from adapterhub.core.errors import CouldNotTell, Malformed, shown
from adapterhub.core.extras import extra_named
from adapterhub.formats.base.quantised.ggml.blocks import CODEBOOKS, LAYOUTS, Block, Bytes, Codes, Layout
from adapterhub.formats.base.quantised.weight import (
    DENSE,
    DOUBT,
    Numbers,
    Places,
    Plain,
    Ranges,
    Reader,
    Weight,
    is_run,
    numbers,
    scaled,
)
from adapterhub.formats.gguf.types import BY_NAME, GgmlType

_AT_ONCE: Final = 1 << 15
"""Numbers that are decoded at once, so that their arrays stay in the processor's cache."""
_PROBES: Final = 8
_PROBED: Final = 32
"""Runs of blocks, and blocks in each, which show a fitted weight. Of fitted blocks, one in six lacks a code."""


def ggml_weight(name: str, dtype: str, shape: tuple[int, ...], part: str, *, factor: str = "") -> Weight:
    """Return the weight `name`, as the tensor `part` of type `dtype` keeps it.

    `shape`: that of the source, its last dimension the innermost. `factor`: a tensor of floats that the copy multiplies
    with, one number or one for each matrix (NVFP4 from a checkpoint in NVFP4 has one).

    Raises:
        CouldNotTell: GGML has no such type, or no file holds it.
        Malformed: the rows are not whole blocks.
    """
    kind = BY_NAME.get(dtype)
    if kind is None or (kind.block > 1 and dtype not in LAYOUTS and dtype not in CODEBOOKS):
        hint = "a newer version may know it: `pip install -U adapterhub`"
        raise CouldNotTell(
            f"`{shown(part)}` has the type {shown(dtype)}, which GGUF files are not known to hold", hint=hint
        )
    if not shape or shape[-1] % kind.block:
        raise Malformed(
            f"`{shown(part)}` is {list(shape)}, but {dtype} needs rows of whole blocks of {kind.block} numbers"
        )
    if kind.block == 1:
        return Plain(name=name, shape=shape, form=dtype, parts=(part,))
    is_rounded = dtype in LAYOUTS
    parts = (part, factor) if factor else (part,)
    return Ggml(name=name, shape=shape, form=f"gguf-{dtype.lower()}", parts=parts, is_rounded=is_rounded, kind=kind)


@dataclass(frozen=True, kw_only=True)
class Ggml(Weight):
    """Blocks of `kind`, and perhaps a factor.

    If the copy's scales were fitted (Q4_0, Q4_1, Q5_0, Q5_1 with an importance matrix), the ends are NaN, as those of
    codebooks are; the blocks show whether they were.
    """

    kind: GgmlType

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """Return the interval of each code with its scale, as the writers of llama.cpp round."""
        found = self._intervals(reader, at)
        layout = LAYOUTS.get(self.kind.name)
        is_fitted = layout is not None and bool(layout.needs) and self._is_fitted(reader, layout)
        return _without_ends(found.value) if is_fitted else found

    def steps(self, reader: Reader, at: Places) -> Numbers:
        """Twice the way to the nearer end, as some codes have one only. Unlike `ranges`, it includes fitted scales."""
        low, high, value = self._intervals(reader, at)
        width = 2 * np.minimum(high - value, value - low)
        return np.where(width > 0, width, np.nan)

    def _intervals(self, reader: Reader, at: Places) -> Ranges:
        """Return the ranges if no scale was fitted."""
        layout = LAYOUTS.get(self.kind.name)
        blocks, index = self._blocks(at)
        raw = self._raw(reader, blocks)
        with np.errstate(invalid="ignore", over="ignore"):  # scales that are no numbers, infinite ends
            found = _from_codebook(self.kind.name, raw) if layout is None else _decoded(layout, raw, self.kind.block)
        found = Ranges(*(each[index] for each in found))
        return self._multiplied(reader, found, at) if len(self.parts) > 1 else found

    def _blocks(self, at: Places) -> tuple[Places, slice | Places]:
        """Return the blocks that hold some places, and where among their numbers these are.

        Close ones are read in one run.
        """
        size = self.kind.block
        if len(at) == 0:
            return at, at
        first, last = int(at.min()) // size, int(at.max()) // size
        start = first * size
        if last - first < DENSE * len(at) // size:
            index = slice(int(at[0]) - start, int(at[-1]) + 1 - start) if is_run(at) else at - start
            return np.arange(first, last + 1), index
        blocks, inverse = np.unique(at // size, return_inverse=True)
        return blocks, inverse.reshape(-1) * size + at % size

    def _raw(self, reader: Reader, blocks: Places) -> Bytes:
        return reader.rows(self.parts[0], blocks * self.kind.size, self.kind.size)

    def _is_fitted(self, reader: Reader, layout: Layout) -> bool:
        """Return whether some block lacks a code that each block has whose scale was not fitted."""
        count = int(np.prod(self.shape)) // self.kind.block
        starts = np.linspace(0, max(count - _PROBED, 0), _PROBES).astype(np.int64)
        blocks = np.unique(np.minimum(starts[:, None] + np.arange(_PROBED), count - 1))
        block = layout.read(self._raw(reader, blocks))
        holds = np.all([(block.codes == code).any(axis=-1) for code in layout.needs], axis=0)
        return bool(((block.scale.value != 0) & ~holds).any())

    def _multiplied(self, reader: Reader, found: Ranges, at: Places) -> Ranges:
        factor = self.parts[1]
        count = int(np.prod(reader.tensors[factor].shape))
        matrices = int(np.prod(self.shape[:-2]))
        if count not in (1, matrices):
            raise Malformed(f"`{shown(factor)}` holds {count} numbers, expected 1 or {matrices}")
        where = np.zeros_like(at) if count == 1 else at // int(np.prod(self.shape[-2:]))
        return scaled(found, numbers(reader, factor, where), doubt=DOUBT)


def _decoded(layout: Layout, raw: Bytes, size: int) -> Ranges:
    """Return the ranges of all numbers of some blocks, one after the other."""
    found = Ranges(*(np.empty(len(raw) * size) for _ in range(3)))
    step = max(_AT_ONCE // size, 1)
    for begin in range(0, len(raw), step):
        block = layout.read(raw[begin : begin + step])
        part = Ranges(*(each[begin * size : (begin + step) * size].reshape(block.codes.shape) for each in found))
        _fill(part, layout.codes, block)
    return found


def _fill(found: Ranges, codes: Codes, block: Block) -> None:
    """Write into `found` [blocks, groups, numbers] what the codes stand for."""
    scale, offset = block.scale, block.offset or Ranges(*[np.zeros_like(block.scale.value)] * 3)
    middle = np.where(np.isfinite(scale.value) & np.isfinite(offset.value), scale.value, np.nan)
    is_negative, is_zero = np.signbit(middle), middle == 0
    index: NDArray[np.intp] = block.codes + (is_negative * (len(codes.low) // 2)).astype(np.intp)[:, :, None]
    width = np.maximum(np.abs(scale.high - middle), np.abs(middle - scale.low))
    edge = np.where(is_zero, block.hidden, np.abs(middle) * codes.slack)
    for out, table in ((found.low, codes.low), (found.high, codes.high), (found.value, codes.value)):
        np.take(table, index, out=out, mode="clip")
        np.multiply(out, middle[:, :, None], out=out)
        if is_zero.any():
            out[is_zero] = 0
    if width.any():
        spread = np.take(codes.reach, index, mode="clip")
        spread *= np.where(is_zero, 0, width)[:, :, None]
        np.subtract(found.low, spread, out=found.low)
        np.add(found.high, spread, out=found.high)
    np.add(found.low, (offset.low - edge)[:, :, None], out=found.low)
    np.add(found.high, (offset.high + edge)[:, :, None], out=found.high)
    if block.offset is not None:
        np.add(found.value, offset.value[:, :, None], out=found.value)


def _without_ends(value: Numbers) -> Ranges:
    lost = np.full(len(value), np.nan)
    return Ranges(lost, lost, value)


def _from_codebook(name: str, raw: Bytes) -> Ranges:
    """Return the numbers of some blocks; gguf-py knows the codebooks."""
    with extra_named(f"a weight in {name}", "export"):
        from gguf import GGMLQuantizationType, quants

    step = max(_AT_ONCE // BY_NAME[name].block, 1)
    found = [
        quants.dequantize(raw[begin : begin + step].reshape(1, -1), GGMLQuantizationType[name]).reshape(-1)
        for begin in range(0, len(raw), step)
    ]
    return _without_ends(np.concatenate([np.empty(0), *found]))
