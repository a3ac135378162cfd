"""Weights in the layout of GPTQ: AutoGPTQ and GPTQModel, and AutoRound's own and its `auto_gptq` files.

For a weight [out, in]: `qweight` I32 holds the codes of a column one after another along `in`, the lowest bits first;
`scales` [groups, out]; `qzeros` I32 [groups, ..] the zeros along `out`; `g_idx` [in] the group of each column, or
columns come in groups of one size. The value is (code - zero) times scale. The first version stores zeros less one.
The writers move numbers (GPTQ) or choose the direction of rounding (AutoRound), so a code does not bound the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from adapterhub.core.errors import shown
from adapterhub.formats.base.quantised.weight import (
    Numbers,
    Places,
    Ranges,
    Reader,
    Tensors,
    Weight,
    bits,
    moved,
    numbers,
)

_WORD: Final = 32
_WIDTHS: Final = (2, 3, 4, 5, 6, 7, 8)
_UNEVEN: Final = (3, 5, 6, 7)
"""Bits that GPTQModel's `gptq_p` spreads over planes, and its other formats do not have beyond 3."""
_SCALES: Final = ("F16", "BF16", "F32")


@dataclass(frozen=True, kw_only=True)
class Gptq(Weight):
    """Parts: qweight, qzeros, scales, and g_idx if there is one.

    `bits`: of a code. `group`: columns of a group where g_idx is absent. `groups`: how many. `added`: to a stored zero.
    """

    bits: int
    group: int
    groups: int
    added: int
    is_rounded: bool = False

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """Return only the value; NaN for a column of a group that does not exist."""
        rows, columns = self.rows_and_columns(at)
        group, is_there = self._group(reader, columns)
        high, low = self.shape[0], columns * self.bits
        code = _codes(reader, self.parts[0], (low // _WORD) * high + rows, high, low % _WORD, self.bits)
        width, start = reader.tensors[self.parts[1]].shape[1], rows * self.bits
        zero = _codes(reader, self.parts[1], group * width + start // _WORD, 1, start % _WORD, self.bits)
        zero = (zero + self.added) & ((1 << self.bits) - 1)
        scale = numbers(reader, self.parts[2], group * high + rows)
        return moved(code - zero, np.where(is_there, scale, np.nan))

    def steps(self, reader: Reader, at: Places) -> Numbers:
        """Return the sizes of the scales; AutoRound's may be negative."""
        rows, columns = self.rows_and_columns(at)
        group, is_there = self._group(reader, columns)
        scale = np.abs(numbers(reader, self.parts[2], group * self.shape[0] + rows))
        return np.where(is_there & np.isfinite(scale) & (scale > 0), scale, np.nan)

    def _group(self, reader: Reader, columns: Places) -> tuple[Places, NDArray[np.bool_]]:
        """Return the group of each column, and whether it exists; 0 if not."""
        group = columns // self.group
        if len(self.parts) > 3:
            group = numbers(reader, self.parts[3], columns).astype(np.int64)
        is_there = (group >= 0) & (group < self.groups)
        return np.where(is_there, group, 0), is_there


def _codes(reader: Reader, name: str, word: Places, to_next: int, shift: Places, width: int) -> NDArray[np.int64]:
    """Codes of `width` bits that begin at bit `shift` of `word`; those that do not end in it go on `to_next` later."""
    found = bits(reader, name, word).astype(np.int64) >> shift
    is_cut = shift + width > _WORD
    if is_cut.any():
        rest = bits(reader, name, word[is_cut] + to_next).astype(np.int64)
        found[is_cut] |= rest << (_WORD - shift[is_cut])
    found &= (1 << width) - 1
    return found


def weights(model: Tensors) -> Mapping[str, Weight]:
    """Return the weights in GPTQ's layout; none for the spread bits of `gptq_p`.

    Raises:
        Malformed: the tensors of a weight do not fit each other.
    """
    found: dict[str, Weight] = {}
    for name in model.tensors:
        front = name.removesuffix("qweight")
        if front == name or not {f"{front}scales", f"{front}qzeros"} <= model.tensors.keys():
            continue
        weight = _weight(model, front)
        if weight is not None:
            found[weight.name] = weight
    return found


def _weight(model: Tensors, front: str) -> Gptq | None:
    names = tuple(f"{front}{end}" for end in ("qweight", "qzeros", "scales"))
    codes, zeros, scales = (model.tensors[name] for name in names)
    if len(codes.shape) != 2 or len(scales.shape) != 2 or codes.shape[1] != scales.shape[1]:
        return None  # AWQ's layouts
    groups, high = scales.shape
    if codes.dtype != "I32" or zeros.dtype != "I32" or scales.dtype not in _SCALES or not groups or not high:
        dtypes = f"{codes.dtype}, {zeros.dtype} and {scales.dtype}"
        raise model.refuse(names[0], f"has codes, zeros and scales in {dtypes}, expected I32, I32 and a float")
    fitting = [width for width in _WIDTHS if zeros.shape == (groups, -(-high * width // _WORD))]
    said = model.quantisation.get("bits")
    width = said if said in fitting else next(iter(fitting), 0)
    if not width:
        raise model.refuse(names[1], f"is {list(zeros.shape)}, which fits no bits for scales of {list(scales.shape)}")
    if width in _UNEVEN and _is_spread(model, width):
        return None
    columns = codes.shape[0] * _WORD // width
    index = f"{front}g_idx"
    if index in model.tensors:
        dtype, shape = model.tensors[index]
        if dtype not in ("I32", "I64") or len(shape) != 1 or -(-shape[0] * width // _WORD) != codes.shape[0]:
            expected = f"expected {columns:,} integers for `qweight` {list(codes.shape)} in {width} bits"
            raise model.refuse(index, f"is {dtype} {list(shape)}, {expected}")
        names, columns = (*names, index), shape[0]
    group = model.quantisation.get("group_size")
    if type(group) is not int or group < 1 or -(-columns // group) != groups:
        group = -(-columns // groups)
    if -(-columns // group) != groups and len(names) == 3:
        raise model.refuse(names[2], f"has {groups} groups, which do not divide {columns:,} columns")
    made: dict[str, Any] = {"name": f"{front}weight", "shape": (high, columns), "form": _form(model), "parts": names}
    return Gptq(**made, bits=width, group=group, groups=groups, added=_added(model))


def _is_spread(model: Tensors, width: int) -> bool:
    is_auto_round = model.quantisation.get("quant_method") == "auto-round"
    return _format(model) == "gptq_p" or (width != 3 and not is_auto_round)


def _format(model: Tensors) -> str:
    said = model.quantisation.get("checkpoint_format") or model.quantisation.get("format")
    return said if isinstance(said, str) else "gptq"


def _form(model: Tensors) -> str:
    method = model.quantisation.get("quant_method")
    if model.quantisation.get("provider") == "auto-round":
        return "auto-round"
    return shown(method) if isinstance(method, str) and method != "gptq" else "gptq"


def _added(model: Tensors) -> int:
    """Return the offset of a stored zero. AutoRound names a backend: its own changes no zeros, that of GPTQ does."""
    if model.quantisation.get("quant_method") == "auto-round":
        packing = str(model.quantisation.get("packing_format", "auto_round:auto_gptq"))
        return int("gptq" in packing and "gptqmodel" not in packing)
    return int(_format(model) not in ("gptq_v2", "gptq_p"))
