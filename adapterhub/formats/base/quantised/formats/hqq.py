"""Weights of 1 to 8 bits as HQQ writes them: `x.W_q`, `x.scale` and `x.zero`, for `x.weight`.

HQQ searches the zero point of each group, then rounds number over scale plus zero point, in float32. The file has
scale and zero point in a shorter dtype. Groups lie along rows of the reshaped weight (`axis` 1: [groups, group]) or
down its columns (0: [group, groups]); the file has numbers in the order of the source, but its shape only as a number
in a tensor. Codes that share a byte come from rows a fixed step apart, the first in the highest bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np

from adapterhub.formats.base.quantised.codes import arithmetic, half_unit, integers, looked_up, positive, said
from adapterhub.formats.base.quantised.weight import Flat, Places, Ranges, Reader, Tensors, Weight, bits, numbers

_END: Final = ".W_q"
_PACKED: Final = {("U8", 8): 1, ("U8", 6): 1, ("U8", 5): 1, ("U8", 4): 2, ("U8", 2): 4, ("U8", 1): 8, ("I32", 3): 10}
"""By the dtype and the bits of a code: codes in one number of `W_q`."""
_WITHOUT: Final = (8, 4, 3, 2, 1)
"""The bits that shapes tell, without the settings."""


@dataclass(frozen=True, kw_only=True)
class Hqq(Flat):
    """Codes of `width` bits of a matrix that is `across` wide; `is_across`: axis 1.

    `shape` is flat where the file does not have the source's.
    """

    width: int
    across: int
    is_across: bool

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """Each code's interval, less its zero point, times its scale."""
        packed, scales, zeros = self.parts
        dtype, (rows, _) = reader.tensors[packed]
        each = _PACKED[dtype, self.width]
        row, column = at // self.across, at % self.across
        raw = bits(reader, packed, row % rows * self.across + column)
        size = {1: 8, 2: 4, 4: 2, 8: 1, 10: 3}[each]
        codes = (raw >> ((each - 1 - row // rows) * size).astype(raw.dtype)) & ((1 << size) - 1)
        where = row if self.is_across else column
        scale, zero = positive(numbers(reader, scales, where)), numbers(reader, zeros, where)
        short = reader.tensors[scales].dtype
        table = looked_up(integers(0, (1 << self.width) - 1, "F32"), codes)
        shift, spread = half_unit(zero, short), half_unit(scale, short)
        low, high = table.low - zero - shift, table.high - zero + shift
        with np.errstate(invalid="ignore"):  # of infinite ends
            low, high = (
                np.where(np.isinf(end), end, end * scale + side * np.abs(end) * spread)
                for side, end in ((-1, low), (1, high))
            )
        value = (table.value - zero) * scale
        lost = np.where(np.isfinite(value), 0.0, np.nan)
        return Ranges(low + lost, high + lost, value + lost)


def weights(model: Tensors) -> Mapping[str, Weight]:
    """Return the weights that HQQ quantised.

    Raises:
        Malformed: codes, scales and the settings do not fit together, or fit in several ways.
    """
    found: dict[str, Weight] = {}
    for packed, (dtype, shape) in model.tensors.items():
        stem = packed.removesuffix(_END)
        scale, zero = f"{stem}.scale", f"{stem}.zero"
        if stem == packed or scale not in model.tensors or zero not in model.tensors:
            continue
        groups = model.tensors[scale].shape
        if len(shape) != 2 or len(groups) != 2 or 1 not in groups:  # of a matrix
            raise model.refuse(scale, f"is {list(groups)} beside codes of {list(shape)}")
        if model.tensors[zero] != model.tensors[scale]:
            raise model.refuse(zero, f"is {list(model.tensors[zero].shape)}, expected {list(groups)} as the scales")
        arithmetic(model, scale)
        is_across = groups[1] == 1
        fits = {
            (width, height)
            for width, group in _settings(model, stem)
            if (each := _PACKED.get((dtype, width))) is not None
            and (height := groups[0] if is_across else group) is not None
            and shape == (-(-height // each), group if is_across and group else shape[1] if is_across else groups[1])
        }
        if len(fits) != 1:
            raise model.refuse(packed, f"is {dtype} {list(shape)}, which config.json does not explain")
        width, height = fits.pop()
        size = height * shape[1]
        source = said(model, f"{stem}.shape") or (size,)
        if prod(source) != size or min(source) < 0:
            raise model.refuse(f"{stem}.shape", f"says {list(source)}, expected the shape of {size:,} numbers")
        found[f"{stem}.weight"] = Hqq(
            name=f"{stem}.weight",
            shape=source,
            form=f"int{width}-group",
            parts=(packed, scale, zero),
            width=width,
            across=shape[1],
            is_across=is_across,
        )
    return found


def _settings(model: Tensors, stem: str) -> set[tuple[int, int | None]]:
    """Return bits and group size: those of the layer, or without them those in config.json for all layers or some."""
    own, size = said(model, f"{stem}.nbits"), said(model, f"{stem}.group_size")
    if own is not None and len(own) == 1:
        return {(own[0], size[0] if size is not None and len(size) == 1 else None)}
    top = model.quantisation.get("quant_config")
    found: set[tuple[int, int | None]] = set()
    for each in (top, *(top.values() if isinstance(top, Mapping) else ())):
        inner: Any = each.get("weight_quant_params", each) if isinstance(each, Mapping) else None
        if isinstance(inner, Mapping) and type(inner.get("nbits")) is int:
            group = inner.get("group_size")
            found.add((inner["nbits"], group if type(group) is int and group > 0 else None))
    return found or {(width, None) for width in _WITHOUT}
