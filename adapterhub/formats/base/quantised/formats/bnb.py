"""Weights of bitsandbytes in 4 bits (nf4, fp4) and in 8 bits, in files and in memory.

Four bits: `weight` holds two codes a byte, the first in the upper half; `weight.quant_map` their 16 levels and
`weight.absmax` one scale a block. Scales may be quantised in their turn: `weight.absmax` then holds codes of
`weight.nested_quant_map` for blocks with the scales `weight.nested_absmax`, less an offset. The JSON of
`weight.quant_state.bitsandbytes__nf4` (or `fp4`) has shapes. Eight bits: `weight` times `SCB` / 127 by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import shown
from adapterhub.formats.base.quantised.codes import is_size
from adapterhub.formats.base.quantised.weight import Numbers, Places, Ranges, Reader, Tensors, Weight, bits, numbers
from adapterhub.formats.safetensors.header import CHOICES, DTYPES

_SLACK: Final = 1e-4
"""Part of a block's scale: the kernels round their thresholds, differently on different CPUs."""

_ROUNDING: Final = {
    choice: layout.rounding for choice, name in CHOICES.items() if (layout := DTYPES[name].layout) is not None
}
"""The largest relative error of rounding to the dtype that was quantised."""
_COARSEST: Final = 2.0**-8

_STATE: Final = ".quant_state.bitsandbytes__"
_STATE_BYTES: Final = 1 << 14
_LEVELS: Final = 16
_LARGEST: Final = 1e30
"""Offsets beyond this are none."""


class Nested(NamedTuple):
    """Scales that are themselves quantised: the size of a block of them, and the offset added to each."""

    block: int
    offset: float


@dataclass(frozen=True, kw_only=True)
class FourBits(Weight):
    """Parts: codes, scales, levels; with `nested`, also the scales and the levels of the scales.

    `block`: numbers for a scale. `dtype`: what was quantised, as torch calls it; a finer source was rounded to it.
    """

    block: int
    dtype: str
    nested: Nested | None = None

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """From half-way to the level below to half-way to the level above, times the scale."""
        codes, _, map_name = self.parts[:3]
        pairs = reader.rows(codes, at // 2, 1)[:, 0]
        levels = numbers(reader, map_name, np.arange(_LEVELS))
        value = levels[np.where(at % 2 == 0, pairs >> 4, pairs & 15)]
        steps = np.unique(levels)
        ends = np.concatenate([steps[:1], (steps[1:] + steps[:-1]) / 2, steps[-1:]])
        step = np.searchsorted(steps, value)
        scales, doubt = self._scales(reader, at // self.block)
        corners = np.stack([ends[step + i] * (scales + d) for i in (0, 1) for d in (-doubt, doubt)])
        return _widened(corners.min(0), corners.max(0), value * scales, slack=_SLACK * scales, dtype=self.dtype)

    def _scales(self, reader: Reader, blocks: Places) -> tuple[Numbers, Numbers]:
        """Return the scale of each block, and its possible error if the scales themselves are quantised."""
        scales = self.parts[1]
        if self.nested is None:
            found = numbers(reader, scales, blocks)
            return found, np.zeros_like(found)
        outer = numbers(reader, self.parts[3], blocks // self.nested.block)
        size = prod(reader.tensors[self.parts[4]].shape)
        levels = numbers(reader, self.parts[4], np.arange(size))
        widest = np.diff(np.unique(levels)).max(initial=0.0) / 2
        codes = np.minimum(bits(reader, scales, blocks), size - 1)
        return levels[codes] * outer + self.nested.offset, widest * outer


@dataclass(frozen=True, kw_only=True)
class EightBits(Weight):
    """Parts: codes [out, in], and one scale a row."""

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """Half a code to each side."""
        rows, _ = self.rows_and_columns(at)
        codes, scales = numbers(reader, self.parts[0], at), numbers(reader, self.parts[1], rows) / 127
        low, high = (codes - 0.5) * scales, (codes + 0.5) * scales
        # quantised from float16, to which the model's own dtype was rounded first: bfloat16 is the coarsest
        return _widened(low, high, codes * scales, slack=_SLACK * 127 * scales, dtype="bfloat16")


def _widened(low: Numbers, high: Numbers, value: Numbers, *, slack: Numbers, dtype: str) -> Ranges:
    rounding = _ROUNDING.get(dtype, _COARSEST) * np.maximum(np.abs(low), np.abs(high)) + slack
    lost = np.where(np.isfinite(value) & np.isfinite(rounding), 0.0, np.nan)
    return Ranges(low - rounding + lost, high + rounding + lost, value + lost)


# ---------------------------------------------------------------- files
def weights(model: Tensors) -> Mapping[str, Weight]:
    """Return the weights that bitsandbytes quantised.

    Those in 4 bits need the reader of `model`, as a tensor has their shape.

    Raises:
        Malformed: a tensor is missing, or has another shape or dtype than the others need; or the JSON is not an object
            with these settings.
    """
    found: dict[str, Weight] = {}
    for name, stored in model.tensors.items():
        weight, _, kind = name.partition(_STATE)
        scales = f"{name.removesuffix('weight')}SCB"
        if kind:
            state = model.small(name, _STATE_BYTES)
            if state is not None:
                found[weight] = _four_bits(model, weight, name, state)
        elif stored.dtype == "I8" and name.endswith(".weight") and scales in model.tensors:
            found[name] = _eight_bits(model, name, scales)
    return found


def _four_bits(model: Tensors, weight: str, state: str, raw: bytes) -> FourBits:
    try:
        said = strict_json(raw, limit_bytes=_STATE_BYTES)
    except ValueError as error:
        raise model.refuse(state, f"is no JSON of bitsandbytes: {error}") from None
    if not isinstance(said, dict):
        raise model.refuse(state, f"is no JSON of bitsandbytes: {shown(said)}")
    shape, dtype = said.get("shape"), said.get("dtype")
    if not isinstance(shape, list) or not shape or not all(type(size) is int and size > 0 for size in shape):
        raise model.refuse(state, f"says the shape {shown(shape)}, expected a list of sizes")
    count, block = prod(shape), _size(model, state, said, "blocksize")
    nested, sizes = None, {"absmax": -(-count // block), "quant_map": _LEVELS}
    if "nested_blocksize" in said:
        offset = said.get("nested_offset")
        if not isinstance(offset, int | float) or not abs(offset) <= _LARGEST:  # nor NaN
            raise model.refuse(state, f"says nested_offset {shown(offset)}, expected a number")
        nested = Nested(_size(model, state, said, "nested_blocksize"), float(offset))
        sizes |= {"nested_absmax": -(-sizes["absmax"] // nested.block), "nested_quant_map": 256}
    _ensure_bytes(model, weight, -(-count // 2))
    for key, size in sizes.items():
        of = ("U8",) if key == "absmax" and nested else ("F32", "F16", "BF16")
        _ensure(model, f"{weight}.{key}", of, size, f"for {shown(shape)} in blocks of {block}")
    parts = (weight, *(f"{weight}.{key}" for key in sizes), state)
    form = f"bnb-{state.rpartition('__')[2]}"
    kept: dict[str, Any] = {"name": weight, "shape": tuple(shape), "form": form, "parts": parts}
    return FourBits(**kept, block=block, dtype=str(dtype).removeprefix("torch."), nested=nested)


def _eight_bits(model: Tensors, weight: str, scales: str) -> EightBits:
    shape = model.tensors[weight].shape
    if len(shape) != 2:
        raise model.refuse(weight, f"is {list(shape)}, expected two dimensions for 8 bits")
    _ensure(model, scales, ("F32", "F16", "BF16"), shape[0], f"for {list(shape)}")
    layout = f"{weight}_format"
    if layout not in model.tensors:
        return EightBits(name=weight, shape=shape, form="bnb-int8", parts=(weight, scales))
    if any(model.small(layout, 8) or b""):
        raise model.refuse(layout, "names an order of codes other than by rows")
    return EightBits(name=weight, shape=shape, form="bnb-int8", parts=(weight, scales, layout))


def _size(model: Tensors, state: str, said: Mapping[str, Any], key: str) -> int:
    size = said.get(key)
    if not is_size(size):
        raise model.refuse(state, f"says {key} {shown(size)}, expected a size")
    return size


def _ensure(model: Tensors, name: str, dtypes: tuple[str, ...], size: int, why: str) -> None:
    found = model.tensors.get(name)
    if found is None or found.dtype not in dtypes or prod(found.shape) != size:
        is_now = "is missing" if found is None else f"is {found.dtype} {list(found.shape)}"
        raise model.refuse(name, f"{is_now}, expected {size:,} numbers of {' or '.join(dtypes)} {why}")


def _ensure_bytes(model: Tensors, name: str, size: int) -> None:
    """Four bits may be stored as any dtype (`bnb_4bit_quant_storage`)."""
    found = model.tensors.get(name)
    has = 0 if found is None else prod(found.shape) * DTYPES[found.dtype].bits // 8
    if not size <= has < size + 8:
        raise model.refuse(name, f"has {has:,} bytes, expected {size:,} for the shape that its state says")
