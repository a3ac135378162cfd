"""Weights in the layouts of AutoAWQ, in 4 bits: `gemm` and `gemv`.

For a weight [out, in]. `gemm`: `qweight` I32 [in, out / 8] and `qzeros` [groups, out / 8] hold eight rows a word in the
order 0, 2, 4, 6, 1, 3, 5, 7; `scales` [groups, out]. `gemv`: `qweight` I32 [out, in / 8] and `qzeros` [out, ..] hold
columns and groups in their order; `scales` [out, ..]. The value is (code - zero) times scale.
The writer multiplied columns by factors and divided the previous layer by them, so a code does not bound the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

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

_IN_WORD: Final = 8
_PLACES: Final = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Where each of eight neighbouring rows lies in a word of `gemm`."""


@dataclass(frozen=True, kw_only=True)
class Awq(Weight):
    """Parts: qweight, qzeros, scales. `group`: columns of a group. `is_turned`: the layout is `gemm`."""

    group: int
    is_turned: bool
    is_rounded: bool = False

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """Return only the value, without an interval."""
        rows, columns = self.rows_and_columns(at)
        codes = self._codes(reader, self.parts[0], rows, columns)
        zeros = self._codes(reader, self.parts[1], rows, columns // self.group)
        return moved(codes - zeros, self._scales(reader, at))

    def steps(self, reader: Reader, at: Places) -> Numbers:
        """Return the sizes of the scales; AutoRound's may be negative."""
        scale = np.abs(self._scales(reader, at))
        return np.where(np.isfinite(scale) & (scale > 0), scale, np.nan)

    def _scales(self, reader: Reader, at: Places) -> Numbers:
        rows, columns = self.rows_and_columns(at)
        name, group = self.parts[2], columns // self.group
        width = reader.tensors[name].shape[1]
        return numbers(reader, name, group * width + rows if self.is_turned else rows * width + group)

    def _codes(self, reader: Reader, name: str, rows: Places, columns: Places) -> Places:
        """Return the codes of four bits of a matrix in the layout."""
        outer, inner = (columns, rows) if self.is_turned else (rows, columns)
        place = _PLACES[inner % _IN_WORD] if self.is_turned else inner % _IN_WORD
        words = bits(reader, name, outer * reader.tensors[name].shape[1] + inner // _IN_WORD).astype(np.int64)
        found: Places = (words >> (4 * place)) & 15
        return found


def weights(model: Tensors) -> Mapping[str, Weight]:
    """Return the weights in one of AWQ's layouts.

    Raises:
        Malformed: the tensors of a weight do not fit each other.
    """
    found: dict[str, Weight] = {}
    for name, codes in model.tensors.items():
        front = name.removesuffix("qweight")
        names = (name, f"{front}qzeros", f"{front}scales")
        if front == name or codes.dtype != "I32" or not model.tensors.keys() >= set(names):
            continue
        scales = model.tensors[names[2]]
        if len(codes.shape) != 2 or len(scales.shape) != 2 or 0 in (*codes.shape, *scales.shape):
            continue
        is_tuned = "auto-round" in (model.quantisation.get("provider"), model.quantisation.get("quant_method"))
        form = "auto-round" if is_tuned else "awq"
        made: dict[str, Any] = {"name": f"{front}weight", "form": form, "parts": names}
        (height, width), (first, second) = codes.shape, scales.shape
        if width * _IN_WORD == second:
            _ensure_zeros(model, names[1], (first, width))
            group = -(-height // first)
            if -(-height // group) != first:
                raise model.refuse(names[2], f"has {first} groups, which do not divide {height:,} columns")
            found[made["name"]] = Awq(**made, shape=(second, height), group=group, is_turned=True)
        elif height == first and width != second and model.quantisation.get("version") == "gemv":
            group = model.quantisation.get("group_size", model.quantisation.get("q_group_size"))
            columns = width * _IN_WORD
            if type(group) is not int or group < 1 or -(-columns // group) > second:
                raise model.refuse(names[2], f"is {list(scales.shape)}, too small for groups of {group!r}")
            _ensure_zeros(model, names[1], (first, -(-second // _IN_WORD)))
            found[made["name"]] = Awq(**made, shape=(first, columns), group=group, is_turned=False)
    return found


def _ensure_zeros(model: Tensors, name: str, shape: tuple[int, int]) -> None:
    dtype, found = model.tensors[name]
    if dtype != "I32" or found != shape:
        raise model.refuse(name, f"is {dtype} {list(found)}, expected I32 {list(shape)}")
