"""Weights in integers of 8 bits, or of fewer in as many bytes, with scales for groups, rows or a whole tensor.

Writers: compressed-tensors and llm-compressor (`int-quantized`: `weight`, `weight_scale`, `weight_zero_point`),
TensorRT Model Optimizer (int8, and int4 with two rows a byte), torchao (Int8Tensor, IntxUnpackedToInt8Tensor),
optimum-quanto (qint8). A code is the quotient of number and scale, plus the zero point, as an integer; all writers cut
off at the ends of the range. torchao multiplies by the inverse of the scale, in the dtype of the scale, and rounds
before it adds the zero point. GPTQ and SmoothQuant copies have the same layout: their sources lie outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from adapterhub.formats.base.quantised.codes import (
    FLOATS,
    ONE,
    CodeGrid,
    arithmetic,
    around,
    grid,
    nibbles,
    positive,
    rounded,
    stored,
    widths,
)
from adapterhub.formats.base.quantised.weight import Numbers, Places, Ranges, Reader, Tensors, Weight, numbers

_INT8: Final = 8
_INT4: Final = 4
_PAIR: Final = 2


@dataclass(frozen=True, kw_only=True)
class Integers(Weight):
    """Codes [.., out, in] from `lowest`, and scales in a grid; the third of `parts` keeps zero points like them.

    `arithmetic` as `codes` says. `has_inverse`: the writer multiplied by the rounded inverse of the scale.
    """

    width: int
    grid: CodeGrid = ONE
    arithmetic: str = "F32"
    has_inverse: bool = False

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """Each code's interval, less its zero point, times its scale."""
        where = self.grid.of(self, at)
        scale = positive(numbers(reader, self.parts[1], where))
        if self.has_inverse:
            scale = 1 / rounded(1 / scale, self.arithmetic)
        zero = numbers(reader, self.parts[2], where) if len(self.parts) > _PAIR else None
        return around(self.codes(reader, at), self.width, scale, zero, self.arithmetic, is_after=self.has_inverse)

    def codes(self, reader: Reader, at: Places) -> Numbers:
        """Return the stored codes."""
        return numbers(reader, self.parts[0], at)


@dataclass(frozen=True, kw_only=True)
class PairsOfRows(Integers):
    """Codes of 4 bits, of two rows a byte; the even row is in the lower half."""

    def codes(self, reader: Reader, at: Places) -> Numbers:
        """Return the stored codes, whose highest bit is the sign."""
        rows, columns = self.rows_and_columns(at)
        found = nibbles(reader, self.parts[0], (rows // 2 * self.shape[-1] + columns) * 2 + rows % 2)
        return np.where(found < 8, found, found.astype(np.float64) - 16)  # of two's complement


def weights(model: Tensors) -> Mapping[str, Weight]:
    """Return the weights in integers of 8 bits, and those of Model Optimizer in 4.

    Raises:
        Malformed: scales or zero points have another shape or dtype than their weight needs.
    """
    found: dict[str, Weight] = {}
    for name, codes, scale, zero in stored(model, ("I8", "U8")):
        dtype, shape = model.tensors[codes]
        if model.tensors[scale].dtype not in FLOATS:
            continue
        is_pairs = dtype == "U8"
        if is_pairs and not codes.endswith(".weight"):
            continue
        if is_pairs:
            shape = (*shape[:-2], shape[-2] * 2, shape[-1])
        kind, where = grid(model, scale, shape)
        width = _INT4 if is_pairs else _width(model, scale, where)
        if zero is not None and (
            model.tensors[zero].dtype != "I8" or model.tensors[zero].shape != model.tensors[scale].shape
        ):
            raise model.refuse(zero, f"is {model.tensors[zero]}, expected I8 as `{scale}`")
        computed, is_torchao = arithmetic(model, scale), codes.endswith("_qdata")
        if computed == "F32" and where == ONE:
            computed = "BF16"
        kind_of_weight = PairsOfRows if is_pairs else Integers
        found[name] = kind_of_weight(
            name=name,
            shape=shape,
            form=f"int{width}-{kind}",
            parts=(codes, scale) if zero is None else (codes, scale, zero),
            width=width,
            grid=where,
            arithmetic=computed,
            has_inverse=is_torchao,
        )
    return found


def _width(model: Tensors, scale: str, where: CodeGrid) -> int:
    """Return the bits of codes in bytes: those that the settings name for groups as these are; 8 if they name none."""
    found = widths(model, where)
    if not found and scale.endswith("._weight_scale") and model.tensors[scale].dtype != "F32":
        raise model.refuse(scale, "is of integers of 1 to 8 bits, and no config.json says of how many")
    if len(found) > 1:
        raise model.refuse(scale, f"is of codes of {' or '.join(map(str, sorted(found)))} bits: config.json names both")
    return found.pop() if found else _INT8
