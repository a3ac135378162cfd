"""Codes of a few bits: what a writer rounds to each, where they lie packed, and which scale belongs to which.

A writer divides a number by its scale and rounds the quotient to a code. It rounds twice where it divides in BF16 or
F16: the quotient to that dtype, then to the code. A quotient beside the border of two codes becomes the border itself,
which goes to the code whose last bit is 0; so these codes reach half a unit further. `arithmetic` is that dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import ceil, prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adapterhub.formats.base.quantised.weight import (
    DOUBT,
    Numbers,
    Places,
    Ranges,
    Reader,
    Tensors,
    Weight,
    bits,
    decoded,
    rounded_to,
    scaled,
)
from adapterhub.formats.safetensors.header import DTYPES

if TYPE_CHECKING:
    from typing import TypeGuard

_DIGITS: Final = {"BF16": 8, "F16": 11}
"""Bits of the significand. F32 counts as exact, but for `DOUBT`."""
_SMALLEST: Final = {"BF16": -126, "F16": -14}
E2M1: Final = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FLOATS: Final = ("BF16", "F16", "F32")
"""Dtypes of scales that are plain numbers."""
_DENSE: Final = 4
"""Where codes lie so close that there are fewer than this many bytes for each, all are read, once."""
_SAID_BYTES: Final = 64
_LARGEST: Final = 1 << 31
_MX: Final = 32
"""Numbers of a group in the formats of the Open Compute Project (MXFP8, MXFP4)."""
POWERS: Final = ("U8", "F8_E8M0")
"""Dtypes of scales that are powers of two: the exponent, plus 127."""


# ---------------------------------------------------------------- what rounds to a code
def half_unit(values: Numbers, dtype: str) -> Numbers:
    """Half a unit in the last place of each value in `dtype`; 0 for F32."""
    if dtype not in _DIGITS:
        return np.zeros_like(values)
    _, exponent = np.frexp(np.where(np.isfinite(values), values, 0.0))
    found: Numbers = np.ldexp(0.5, np.maximum(exponent - 1, _SMALLEST[dtype]) - (_DIGITS[dtype] - 1))
    return found


@lru_cache(maxsize=64)
def integers(lowest: int, highest: int, arithmetic: str) -> Ranges:
    """Return the quotients that round to each integer. The writer cuts off: the first and the last one are open."""
    codes = np.arange(lowest, highest + 1, dtype=np.float64)
    low, high = codes - 0.5, codes + 0.5
    low[0], high[-1] = -np.inf, np.inf
    return _computed(Ranges(low, high, codes), codes % 2 == 0, arithmetic)


@lru_cache(maxsize=16)
def floats(dtype: str, arithmetic: str) -> Ranges:
    """Return the quotients that round to each code of a float of 8 bits, or of 4 (`F4`: sign, two bits, one bit)."""
    if dtype != "F4":
        codes = np.arange(256, dtype=np.uint8)
        return _computed(rounded_to(dtype, codes), codes % 2 == 0, arithmetic)
    borders = (E2M1[1:] + E2M1[:-1]) / 2
    low, high = np.concatenate([[-borders[0]], borders]), np.concatenate([borders, [np.inf]])
    found = Ranges(np.concatenate([low, -high]), np.concatenate([high, -low]), np.concatenate([E2M1, -E2M1]))
    return _computed(found, np.arange(16) % 2 == 0, arithmetic)


def _computed(codes: Ranges, is_even: NDArray[np.bool_], arithmetic: str) -> Ranges:
    with np.errstate(invalid="ignore"):  # of infinite ends
        low, high = (
            np.where(np.isinf(end), end, end + side * (np.abs(end) * DOUBT + is_even * half_unit(end, arithmetic)))
            for side, end in ((-1, codes.low), (1, codes.high))
        )
    return Ranges(low, high, codes.value)


def looked_up(table: Ranges, codes: NDArray[Any]) -> Ranges:
    """Return the ranges of some codes, counted from the table's first; NaN for those that it does not have."""
    has = (codes >= 0) & (codes < len(table.value))
    index = np.where(has, codes, 0).astype(np.intp)
    found = Ranges(*(np.take(each, index, mode="clip") for each in table))
    return found if has.all() else Ranges(*(np.where(has, each, np.nan) for each in found))


def shifted(codes: Ranges, zero: Numbers, arithmetic: str) -> Ranges:
    """Ranges of quotients, where the writer added `zero` to each before it rounded."""
    low, high = codes.low - zero, codes.high - zero
    return Ranges(low - half_unit(low, arithmetic), high + half_unit(high, arithmetic), codes.value - zero)


def positive(scale: Numbers) -> Numbers:
    """Return the scales; NaN for those that are not positive, because no writer divides by them."""
    return np.where(np.isfinite(scale) & (scale > 0), scale, np.nan)


def rounded(values: Numbers, dtype: str) -> Numbers:
    """Return the values as a writer has them in `dtype`, which is BF16, F16 or F32."""
    if dtype not in _DIGITS:
        return values.astype(np.float32).astype(np.float64)
    with np.errstate(invalid="ignore"):  # of what is no number
        unit = 2 * half_unit(values, dtype)
        return np.asarray(np.round(values / unit) * unit)


def around(
    codes: Numbers, width: int, scale: Numbers, zero: Numbers | None, arithmetic: str, *, is_after: bool = False
) -> Ranges:
    """Return the source intervals of signed codes of some width, in which `zero` stands for 0.

    `is_after`: the writer rounded before it added the zero. NaN for codes and zeros that the width does not have.
    """
    lowest = -(1 << (width - 1))
    if zero is None:
        return scaled(looked_up(integers(lowest, -lowest - 1, arithmetic), codes - lowest), scale)
    if is_after:
        found = looked_up(integers(2 * lowest, -2 * lowest, arithmetic), codes - zero - 2 * lowest)
        low = np.where(codes == lowest, -np.inf, found.low)
        found = Ranges(low, np.where(codes == -lowest - 1, np.inf, found.high), found.value)
    else:
        found = shifted(looked_up(integers(lowest, -lowest - 1, arithmetic), codes - lowest), zero, arithmetic)
    has = (codes >= lowest) & (codes < -lowest) & (zero >= lowest) & (zero < -lowest)
    lost = np.where(has, 0.0, np.nan)
    return scaled(Ranges(*(each + lost for each in found)), scale)


def powers(reader: Reader, name: str, at: Places) -> Numbers:
    """Scales that are stored as exponents of two."""
    return decoded("F8_E8M0", bits(reader, name, at))


# ---------------------------------------------------------------- which scale belongs to a place
class CodeGrid(NamedTuple):
    """One scale for each `block` (rows, columns) of a matrix, in so many rows and columns; matrices in turn."""

    block: tuple[int, int]
    down: int
    across: int
    is_tiled: bool = False

    def of(self, weight: Weight, at: Places) -> Places:
        """Return the index of the scale of each place."""
        if self.down == 0:
            return np.zeros_like(at)
        height = weight.shape[-2]
        rows, columns = weight.rows_and_columns(at)
        down, across = rows // height * self.down + rows % height // self.block[0], columns // self.block[1]
        return in_tiles(down, across, self.across) if self.is_tiled else down * self.across + across


ONE: Final = CodeGrid((1, 1), 0, 0)
"""One scale for all."""


def grid(
    model: Tensors, scale: str, shape: tuple[int, ...], usual: tuple[int, int] | None = None
) -> tuple[str, CodeGrid]:
    """Return how the scales lie over a weight of this shape: `tensor`, `channel`, `group` or `block`, and their grid.

    The shapes decide, then the blocks and groups that `config.json` names, then the `usual` block.

    Raises:
        Malformed: the scales fit none of them, or several.
    """
    scales = model.tensors[scale].shape
    stack, (height, width) = shape[:-2], shape[-2:]
    if len(scales) == len(shape) + 2 and scales[-1] == scales[-3] == 1:  # Model Optimizer's [down, 1, across, 1]
        scales = (*scales[:-3], scales[-2])
    if prod(scales) == 1:
        return "tensor", ONE
    if scales in (stack, (*stack, 1, 1)):
        return "tensor", CodeGrid((height, width), 1, 1)
    if scales in (shape[:-1], (*shape[:-1], 1)):
        return "channel", CodeGrid((1, width), height, 1)
    if stack and scales == (*stack, 1, width):
        return "channel", CodeGrid((height, 1), 1, width)
    if model.tensors[scale].dtype in POWERS and not stack and tiles(scales, height, ceil(width / _MX)):
        return "group", CodeGrid((1, _MX), height, ceil(width / _MX), is_tiled=True)
    named = [each for each in blocks(model) if _counted(each, shape) == scales]
    if not named and scales[:-1] == shape[:-1] and scales[-1] and width % scales[-1] == 0:
        named = [(1, width // scales[-1])]
    if not named and usual is not None and _counted(usual, shape) == scales:
        named = [usual]
    if len(named) != 1:
        wanted = next(iter([*blocks(model), *([usual] if usual else [])]), None)
        expected = "one scale a tensor, row or group"
        if len(named) > 1:
            expected = "blocks of one size"
        elif wanted is not None:
            expected = f"{list(_counted(wanted, shape))} for blocks of {wanted[0]} by {wanted[1]}"
        raise model.refuse(scale, f"is {list(scales)}, expected {expected} of a weight of {list(shape)}")
    rows, columns = named[0]
    return "group" if rows == 1 else "block", CodeGrid((rows, columns), ceil(height / rows), ceil(width / columns))


def tiles(scales: tuple[int, ...], rows: int, groups: int) -> bool:
    """Say whether scales of this shape lie in tiles, as tensor cores read them: 128 rows by 4 groups, as 32 by 16."""
    return scales == (ceil(rows / 128) * 32, ceil(groups / 4) * 16)


def in_tiles(row: Places, group: Places, groups: int) -> Places:
    """Return the index of the scale of a row and group among scales that lie in tiles."""
    tile = row // 128 * ceil(groups / 4) + group // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + group % 4


def _counted(block: tuple[int, int], shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], ceil(shape[-2] / block[0]), ceil(shape[-1] / block[1]))


def blocks(model: Tensors) -> list[tuple[int, int]]:
    """Return the blocks (rows, columns) that the settings name; a group is one of a single row."""
    found: dict[tuple[int, int], None] = {}
    for settings in settings_of_weights(model):
        for key in ("weight_block_size", "block_structure"):
            block = settings.get(key)
            if (
                isinstance(block, list)
                and len(block) == 2
                and all(type(size) is int and 0 < size <= _LARGEST for size in block)
            ):
                found[block[0], block[1]] = None
        group = settings.get("group_size")
        if is_size(group):
            found[1, group] = None
    return list(found)


def is_size(value: object) -> TypeGuard[int]:
    """Return whether a setting is a number of columns, rows or blocks; none is larger than `_LARGEST`."""
    return type(value) is int and 0 < value <= _LARGEST


def settings_of_weights(model: Tensors) -> list[Mapping[str, Any]]:
    """Return the quantisation settings of `config.json`: at its top, and per group of layers."""
    found: list[Mapping[str, Any]] = [model.quantisation]
    groups = model.quantisation.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            found.append(weights)
    return found


def widths(model: Tensors, where: CodeGrid) -> set[int]:
    """Return the bits of integers that the settings name for groups as these are."""
    found = set()
    for settings in settings_of_weights(model):
        width, group = settings.get("num_bits"), settings.get("group_size")
        is_group = type(group) is int and group > 0
        is_here = where.block == (1, group) if is_group else where == ONE or where.across == 1
        if is_here and type(width) is int and settings.get("type") != "float":
            found.add(width)
    kinds = model.quantisation.get("quant_type")
    for kind in kinds.values() if isinstance(kinds, Mapping) else ():  # torchao's
        name = _inside(kind, "_data", "weight_dtype", "_data")
        if isinstance(name, str) and (digits := name.removeprefix("u").removeprefix("int")).isdecimal():
            found.add(int(digits))
    return {width for width in found if 0 < width <= 8}


def _inside(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


# ---------------------------------------------------------------- where codes lie
class StoredCodes(NamedTuple):
    """The tensors that keep one weight, by the name of the source's; `zero` may be absent."""

    name: str
    codes: str
    scale: str
    zero: str | None


def stored(model: Tensors, dtypes: tuple[str, ...]) -> Iterable[StoredCodes]:
    """Each tensor of one of these dtypes that has a scale beside it, by the names that writers give to the two.

    `x.weight` has `x.weight_scale_inv` (DeepSeek, Qwen, transformers), `x.weight_scale` (compressed-tensors, Model
    Optimizer, Quark, FBGEMM) or `x.scale`; experts in one tensor have the same ends. torchao writes `x._weight_qdata`
    and `x._weight_scale`, optimum-quanto `x.weight._data` and `x.weight._scale`.
    """
    for codes, (dtype, shape) in model.tensors.items():
        if dtype not in dtypes or len(shape) < 2:
            continue
        name, ends = codes, [f"{codes}_scale_inv", f"{codes}_scale"]
        zero = f"{codes}_zero_point"
        stem, _, last = codes.rpartition(".")
        if last.startswith("_") and last.endswith("_qdata"):
            begin = codes.removesuffix("_qdata")
            name, ends, zero = f"{stem}.{last[1:-6]}", [f"{begin}_scale"], f"{begin}_zero_point"
        elif last == "_data":
            name, ends = stem, [f"{stem}._scale"]
        elif last == "weight":
            ends.append(f"{stem}.scale")
        scale = next((end for end in ends if end in model.tensors), None)
        if scale is not None:
            yield StoredCodes(name, codes, scale, zero if zero in model.tensors else None)


def arithmetic(model: Tensors, scale: str) -> str:
    """Return the dtype in which a writer with these scales divides: that of the scales.

    Raises:
        Malformed: they are not floats of 16 or 32 bits.
    """
    dtype = model.tensors[scale].dtype
    if dtype not in FLOATS:
        raise model.refuse(scale, f"is {dtype}, expected one of {', '.join(FLOATS)}")
    return dtype


def nibbles(reader: Reader, name: str, at: Places) -> NDArray[np.uint8]:
    """Codes of 4 bits, two a byte, the first in the lower half."""
    both = bits(reader, name, at // 2)
    return ((both >> (at % 2 * 4).astype(np.uint8)) & 15).astype(np.uint8)


def streamed(reader: Reader, name: str, starts: Places, width: int) -> NDArray[np.int64]:
    """Codes of `width` bits (at most 8) that begin at the bits `starts` of a tensor, the lowest bit first."""
    if len(starts) == 0:
        return np.zeros(0, dtype=np.int64)
    byte = starts // 8
    first, last = int(byte.min()), int((starts.max() + width - 1) // 8)
    if last - first < _DENSE * len(starts):
        raw = reader.rows(name, np.array([first]), last - first + 1)[0].astype(np.int64)
        at, end = byte - first, last - first
    else:
        raw = reader.rows(name, np.minimum(byte, _size_bytes(reader, name) - 2), 2).astype(np.int64).reshape(-1)
        at = 2 * np.arange(len(byte)) + np.minimum(byte - (_size_bytes(reader, name) - 2), 1).clip(min=0)
        end = len(raw) - 1
    found: NDArray[np.int64] = raw[at] >> starts % 8
    if 8 % width:
        found |= raw[np.minimum(at + 1, end)] << (8 - starts % 8)
    found &= (1 << width) - 1
    return found


def _size_bytes(reader: Reader, name: str) -> int:
    dtype, shape = reader.tensors[name]
    return prod(shape) * DTYPES[dtype].bits // 8


def said(model: Tensors, name: str) -> tuple[int, ...] | None:
    """Return the few integers of a tensor that says a shape or a number of bits.

    None if there is none, or no reader.
    """
    if name not in model.tensors or model.tensors[name].dtype not in ("I32", "I64"):
        return None
    raw = model.small(name, _SAID_BYTES)
    width = DTYPES[model.tensors[name].dtype].bits // 8
    return None if raw is None else tuple(np.frombuffer(raw, f"<i{width}").tolist())
