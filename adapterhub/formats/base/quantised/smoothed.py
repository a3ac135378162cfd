"""Weights whose columns TensorRT Model Optimizer divided before it quantised them, for SmoothQuant and AWQ.

`x.pre_quant_scale` [in] is what the inputs of the layer are multiplied by, so the source is the copy's weight times it.
The quotient was rounded to the dtype of the weight, and the scale of a column too. A scale that went into a norm before
the layer is in no file: such sources lie outside.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from adapterhub.formats.base.quantised.codes import half_unit, positive
from adapterhub.formats.base.quantised.weight import Places, Ranges, Reader, Tensors, Weight, numbers, scaled

_END: Final = "pre_quant_scale"
_DTYPES: Final = ("BF16", "F16", "F32")


@dataclass(frozen=True, kw_only=True)
class Smoothed(Weight):
    """The weight `inner`, and the scales of its columns, the last of `parts`."""

    inner: Weight

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """Return the interval of the divided weight, rounded, times the scale of the column."""
        name = self.parts[-1]
        dtype = "F16" if reader.tensors[name].dtype == "F16" else "BF16"
        scale = positive(numbers(reader, name, at % self.shape[-1]))
        low, high, value = self.inner.ranges(reader, at)
        with np.errstate(invalid="ignore"):  # of infinite ends
            low, high = (
                np.where(np.isinf(end), end, end + side * half_unit(end, dtype)) for side, end in ((-1, low), (1, high))
            )
        return scaled(Ranges(low, high, value), scale, doubt=half_unit(np.ones(1), dtype)[0])


def smoothed(model: Tensors, weight: Weight) -> Weight:
    """Return the weight, with the scales of its columns if there are some.

    Raises:
        Malformed: they have another shape or dtype than the weight needs.
    """
    scale = f"{weight.name.removesuffix('weight')}{_END}"
    if scale not in model.tensors or not weight.name.endswith(".weight"):
        return weight
    dtype, shape = model.tensors[scale]
    if dtype not in _DTYPES or shape != weight.shape[-1:]:
        raise model.refuse(
            scale, f"is {dtype} {list(shape)}, expected one float for each of {weight.shape[-1]} columns"
        )
    made = {field.name: getattr(weight, field.name) for field in fields(Weight)}
    return Smoothed(**made | {"parts": (*weight.parts, scale)}, inner=weight)
