"""Weights in float4 (one bit of sign, two of exponent, one of mantissa), two a byte, with a scale for 16 or 32.

NVFP4: scales in float8 for 16 numbers of a row, and one more in float32 for all. compressed-tensors
(`weight_packed`, `weight_scale`, `weight_global_scale`) divides by the last; TensorRT Model Optimizer (`weight`,
`weight_scale`, `weight_scale_2`) multiplies by it. MXFP4: a power of two for 32 numbers. compressed-tensors
(`weight_packed`), Model Optimizer and AMD Quark (`weight`), DeepSeek (`weight` and `scale`), and gpt-oss: `_blocks`
[experts, out, in/32, 16] and `_scales`, of experts that transformers knows as [experts, in, out].
All of them divide in float32, or by a power of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from adapterhub.formats.base.quantised.codes import (
    POWERS,
    floats,
    in_tiles,
    looked_up,
    nibbles,
    positive,
    powers,
    tiles,
)
from adapterhub.formats.base.quantised.weight import Places, Ranges, Reader, Tensors, Weight, numbers, scaled

_PACKED: Final = ("U8", "I8")
_TABLE: Final = "F4"
_BLOCKS: Final = "_blocks"
_SCALES: Final = "_scales"
_GROUPS: Final = {"nvfp4": 16, "mxfp4": 32}


@dataclass(frozen=True, kw_only=True)
class Fp4(Weight):
    """Codes [.., out, in/2] of bytes and scales [.., out, in/group].

    `is_divisor`: the scale of all divides. `is_transposed`: the source is [.., in, out]. `is_tiled`: the scales lie in
    tiles, as torchao writes them.
    """

    group: int
    is_divisor: bool = False
    is_transposed: bool = False
    is_tiled: bool = False

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """Each code's interval, times its scales."""
        codes, scales, *whole = self.parts
        if self.is_transposed:
            rows, columns = self.shape[-2:]
            stack, row, column = at // (rows * columns), at // columns % rows, at % columns
            at = (stack * columns + column) * rows + row
        where = at // self.group
        if self.is_tiled:
            groups = self.shape[-1] // self.group
            where = in_tiles(where // groups, where % groups, groups)
        if reader.tensors[scales].dtype in POWERS:
            scale = powers(reader, scales, where)
        else:
            scale = positive(numbers(reader, scales, where))
        for name in whole:
            count = max(1, reader.tensors[name].shape[0] if reader.tensors[name].shape else 1)
            size = int(np.prod(self.shape)) // count
            factor = positive(numbers(reader, name, at // size))
            scale = scale / factor if self.is_divisor else scale * factor
        return scaled(looked_up(floats(_TABLE, "F32"), nibbles(reader, codes, at)), scale)


def weights(model: Tensors) -> Mapping[str, Weight]:
    """Return the weights in float4.

    Raises:
        Malformed: codes and scales do not fit together.
    """
    found: dict[str, Weight] = {}
    for name, codes, scale, whole in _named(model):
        (_, packed), (dtype, scales) = model.tensors[codes], model.tensors[scale]
        form = "nvfp4" if dtype == "F8_E4M3" else "mxfp4"
        group, is_transposed = _GROUPS[form], name + _BLOCKS == codes
        shape = (*packed[:-2], packed[-2] * packed[-1] * 2) if is_transposed else (*packed[:-1], packed[-1] * 2)
        expected = (*shape[:-1], shape[-1] // group)
        is_tiled = len(shape) == 2 and tiles(scales, *expected)  # of a matrix
        if not is_tiled and (scales != expected or shape[-1] % group):
            raise model.refuse(scale, f"is {list(scales)}, expected {list(expected)} for groups of {group}")
        if whole is not None and not _is_for_all(model, whole, shape):
            raise model.refuse(whole, f"is {list(model.tensors[whole].shape)}, expected one number in float32")
        source = (*shape[:-2], shape[-1], shape[-2]) if is_transposed else shape
        parts = (codes, scale) if whole is None else (codes, scale, whole)
        is_divisor = whole is not None and whole.endswith("_global_scale")
        found[name] = Fp4(
            name=name,
            shape=source,
            form=form,
            parts=parts,
            group=group,
            is_divisor=is_divisor,
            is_transposed=is_transposed,
            is_tiled=is_tiled,
        )
    return found


def _named(model: Tensors) -> Iterable[tuple[str, str, str, str | None]]:
    """Yield the source's name, and the tensors of codes, scales and the scale of all, of each weight in float4."""
    for codes, (dtype, shape) in model.tensors.items():
        if dtype not in _PACKED or len(shape) < 2:
            continue
        name = codes.removesuffix("_packed")
        scale, whole = f"{name}_scale", f"{name}_global_scale" if name != codes else f"{name}_scale_2"
        stem, _, last = codes.rpartition(".")
        if codes.endswith(_BLOCKS) and len(shape) > 3:
            name = codes.removesuffix(_BLOCKS)
            scale = f"{name}{_SCALES}"
        elif last == "_weight_qdata":
            name, scale, whole = f"{stem}.weight", f"{stem}._weight_scale", f"{stem}._weight_per_tensor_scale"
        elif last == "weight" and scale not in model.tensors:
            scale = f"{stem}.scale"
        if scale in model.tensors and _is_float4(model, dtype, scale):
            yield name, codes, scale, whole if whole in model.tensors else None


def _is_float4(model: Tensors, dtype: str, scale: str) -> bool:
    """Say whether scales are of float4: float8 or exponents. Bytes of integers have scales of 16 or 32 bits."""
    return model.tensors[scale].dtype in ("F8_E4M3", "F8_E8M0", "U8") and (
        dtype != "I8" or model.tensors[scale].dtype != "U8"
    )


def _is_for_all(model: Tensors, name: str, shape: tuple[int, ...]) -> bool:
    """Say whether this is one number in float32, or one for each matrix of a stack."""
    dtype, scales = model.tensors[name]
    count = int(np.prod(scales))
    return dtype == "F32" and (count == 1 or (len(shape) > 2 and scales[0] == count == shape[0]))
