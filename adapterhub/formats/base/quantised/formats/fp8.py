"""Weights in float8 with scales for blocks, groups, rows or a whole tensor.

Writers: DeepSeek and Qwen, and transformers' FineGrainedFP8 (`weight_scale_inv`, one scale a block of 128 by 128);
compressed-tensors and llm-compressor (`weight_scale`: [out, 1] for rows, a block grid, or one number); FBGEMM and
TensorRT Model Optimizer (`weight_scale`); torchao and optimum-quanto; MXFP8 (a power of two for 32 numbers of a row).
The value is code times scale in all of them. They divide in float32 or in the dtype of the scale; by a single number of
float32, PyTorch divides in the dtype of the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from adapterhub.formats.base.quantised.codes import (
    ONE,
    POWERS,
    CodeGrid,
    arithmetic,
    floats,
    grid,
    looked_up,
    positive,
    powers,
    stored,
)
from adapterhub.formats.base.quantised.weight import Places, Ranges, Reader, Tensors, Weight, bits, numbers, scaled

_CODES: Final = ("F8_E4M3", "F8_E5M2")
_BLOCK: Final = (128, 128)


@dataclass(frozen=True, kw_only=True)
class Fp8(Weight):
    """Codes [.., out, in], and scales in a grid; `arithmetic` as `codes` says."""

    grid: CodeGrid = ONE
    arithmetic: str = "F32"

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """Each code's interval, times its scale."""
        codes, scales = self.parts
        read = powers if reader.tensors[scales].dtype in POWERS else numbers
        scale = positive(read(reader, scales, self.grid.of(self, at)))
        table = floats(reader.tensors[codes].dtype, self.arithmetic)
        return scaled(looked_up(table, bits(reader, codes, at)), scale)


def weights(model: Tensors) -> Mapping[str, Weight]:
    """Return the weights in float8 that have a scale.

    Raises:
        Malformed: the scale has another shape or dtype than its weight needs.
    """
    found: dict[str, Weight] = {}
    for name, codes, scale, _ in stored(model, _CODES):
        shape, dtype = model.tensors[codes].shape, model.tensors[scale].dtype
        kind, where = grid(model, scale, shape, _BLOCK)
        is_power = dtype in POWERS
        computed = "F32" if is_power else arithmetic(model, scale)
        if computed == "F32" and where == ONE and not (is_power or scale.endswith("_inv")):
            computed = "BF16"
        form = "mxfp8" if is_power and where.block == (1, 32) else f"fp8-{kind}"
        found[name] = Fp8(name=name, shape=shape, form=form, parts=(codes, scale), grid=where, arithmetic=computed)
    return found
