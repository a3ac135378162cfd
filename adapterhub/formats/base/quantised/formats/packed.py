"""Weights in integers of 1 to 8 bits, packed in words of 32 bits by compressed-tensors and llm-compressor.

`weight_packed` I32 [.., out, words] has the codes of a row one after another, the lowest bit first; earlier versions
started every word with a whole code. `weight_scale` is [.., out, groups]; `weight_zero_point`, if there is one, is
packed along its rows; `weight_g_idx`, if there is one, names the group of each column; `weight_shape` says [out, in].
A code is the quotient of number and scale in the dtype of both, plus the zero point, plus half the range.

A file does not tell GPTQ's and AWQ's codes from rounded ones: their sources lie outside of the intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from adapterhub.formats.base.quantised.codes import (
    ONE,
    CodeGrid,
    arithmetic,
    around,
    grid,
    positive,
    said,
    settings_of_weights,
    streamed,
)
from adapterhub.formats.base.quantised.weight import Numbers, Places, Ranges, Reader, Tensors, Weight, bits, numbers

_END: Final = "_packed"
_WORD: Final = 32
_MATRIX: Final = 2


@dataclass(frozen=True, kw_only=True)
class Packed(Weight):
    """Codes of `width` bits in words; `is_dense`: they go on from one word into the next.

    `zero` and `order` are the tensors of zero points and of each column's group, if there are.
    """

    width: int
    is_dense: bool
    arithmetic: str
    grid: CodeGrid
    zero: str | None
    order: str | None

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """Each code's interval, less its zero point, times its scale."""
        packed, scales = self.parts[:2]
        rows, columns = self.rows_and_columns(at)
        starts = rows * (reader.tensors[packed].shape[-1] * _WORD) + self._bit(columns)
        codes = streamed(reader, packed, starts, self.width) - (1 << (self.width - 1))
        where = self.grid.of(self, at)
        is_lost = np.zeros(len(at), dtype=np.bool_)
        if self.order is not None:
            groups = numbers(reader, self.order, columns).astype(np.int64)
            is_lost = groups >= self.grid.across
            groups = np.where(groups < 0, columns // self.grid.block[1], groups)
            where = rows * self.grid.across + np.where(is_lost, 0, groups)
        scale = np.where(is_lost, np.nan, positive(numbers(reader, scales, where)))
        zero = None if self.zero is None else self._zero(reader, self.zero, where)
        return around(codes.astype(np.float64), self.width, scale, zero, self.arithmetic)

    def _bit(self, number: Places) -> Places:
        """Return the bit of its row at which the code of this number begins."""
        if self.is_dense:
            return number * self.width
        each = _WORD // self.width
        return number // each * _WORD + number % each * self.width

    def _zero(self, reader: Reader, name: str, where: Places) -> Numbers:
        """Return the zero points of some groups, which are packed down the rows."""
        height, across = self.shape[-2], self.grid.across
        row, column = where // across, where % across
        words = reader.tensors[name].shape[-2]
        start = self._bit(row % height)
        word = row // height * words + start // _WORD
        first = bits(reader, name, word * across + column).astype(np.int64)
        is_split = start % _WORD + self.width > _WORD
        second = bits(reader, name, (word + is_split) * across + column).astype(np.int64)
        both = (first | second << _WORD) >> (start % _WORD)
        return (both & ((1 << self.width) - 1)).astype(np.float64) - (1 << (self.width - 1))


def weights(model: Tensors) -> Mapping[str, Weight]:
    """Return the weights in packed integers.

    Raises:
        Malformed: codes, scales and the settings do not fit together, or fit in several ways.
    """
    found: dict[str, Weight] = {}
    for packed, (dtype, words) in model.tensors.items():
        name = packed.removesuffix(_END)
        scale = f"{name}_scale"
        if name != packed and dtype == "I32" and len(words) >= _MATRIX and scale in model.tensors:
            found[name] = _weight(model, name, packed, scale)
    return found


def _weight(model: Tensors, name: str, packed: str, scale: str) -> Packed:
    words, scales = model.tensors[packed].shape, model.tensors[scale].shape
    shape = said(model, f"{name}_shape")
    fits: set[tuple[int, int, bool]] = set()
    for settings in settings_of_weights(model):
        width, group = settings.get("num_bits"), settings.get("group_size") or 0
        if type(width) is not int or not 0 < width <= 8 or settings.get("type") == "float":  # of a byte
            continue
        has_groups = isinstance(group, int) and group > 0 and bool(scales)
        columns = scales[-1] * group if has_groups else shape[-1] if shape else words[-1] * _WORD // width
        if words[-1] == _words(columns, width, is_dense=True):
            fits.add((width, columns, True))
        elif words[-1] == _words(columns, width, is_dense=False):
            fits.add((width, columns, False))
    if len(fits) != 1:
        says = "fits the bits and groups of config.json in no way" if not fits else "fits them in several ways"
        raise model.refuse(packed, f"is {list(words)} beside scales of {list(scales)}, which {says}")
    width, columns, is_dense = fits.pop()
    if shape is not None and shape != (*words[:-1], columns):
        expected = f"expected {[*words[:-1], columns]} for codes of {width} bits"
        raise model.refuse(f"{name}_shape", f"says {list(shape)}, {expected} in {list(words)} words")
    shape = (*words[:-1], columns)
    kind, where = grid(model, scale, shape)
    if where == ONE:
        where = CodeGrid((shape[-2], columns), 0, 1)
    down = _words(shape[-2], width, is_dense=is_dense)
    zero = _beside(model, f"{name}_zero_point", "I32", (*shape[:-2], down, where.across))
    order = _beside(model, f"{name}_g_idx", "I32", (columns,))
    return Packed(
        name=name,
        shape=shape,
        form=f"int{width}-{kind}",
        parts=(packed, scale, *(other for other in (zero, order) if other is not None)),
        width=width,
        is_dense=is_dense,
        arithmetic=arithmetic(model, scale),
        grid=where,
        zero=zero,
        order=order,
    )


def _beside(model: Tensors, name: str, dtype: str, shape: tuple[int, ...]) -> str | None:
    """Return the name, if there is such a tensor."""
    if name not in model.tensors:
        return None
    found = model.tensors[name]
    if found != (dtype, shape):
        raise model.refuse(name, f"is {found.dtype} {list(found.shape)}, expected {dtype} {list(shape)}")
    return name


def _words(count: int, width: int, *, is_dense: bool) -> int:
    """Return the words that hold so many codes."""
    return -(-count * width // _WORD) if is_dense else -(-count // (_WORD // width))
