"""Weights as MLX quantises them: codes of 2 to 8 bits in words of 32, one after another, the lowest bit first.

Affine: `x.weight` U32 [.., out, words], `x.scales` and `x.biases` [.., out, groups]; the value is code times scale plus
bias. The bias is the number of the group that lies furthest from 0, and the scale is the bias over an integer, of
which the file has a rounded copy: the writer used the unrounded one, in float32. `config.json` says the bits, for
all layers (`quantization`) or for one by its name.
Without biases the codes are floats: `mxfp4` and `mxfp8` with a power of two for 32 numbers, `nvfp4` with a scale in
float8 for 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from adapterhub.core.errors import shown
from adapterhub.formats.base.quantised.codes import (
    arithmetic,
    floats,
    half_unit,
    integers,
    looked_up,
    positive,
    powers,
    streamed,
)
from adapterhub.formats.base.quantised.weight import (
    Numbers,
    Places,
    Ranges,
    Reader,
    Tensors,
    Weight,
    bits,
    decoded,
    numbers,
    scaled,
)

_WORD: Final = 32
_MATRIX: Final = 2
_BITS: Final = (2, 3, 4, 5, 6, 8)
_APART: Final = 0.4
"""Where rounding moves a bias over its scale by less, only one integer is near."""
_FLOATS: Final = {4 * 32: ("mxfp4", 4, 32), 4 * 16: ("nvfp4", 4, 16), 8 * 32: ("mxfp8", 8, 32)}
"""By the bits of a group: form, bits of a code, numbers of a group."""


@dataclass(frozen=True, kw_only=True)
class Mlx(Weight):
    """Codes of `width` bits, and what each `group` of a row has."""

    width: int
    group: int

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """Each code's interval, times its scale, plus its bias."""
        codes = streamed(reader, self.parts[0], at * self.width, self.width)
        where = at // self.group
        if len(self.parts) == _MATRIX:
            scale = self._scale(reader, where)
            return scaled(looked_up(floats("F4" if self.width == 4 else "F8_E4M3", "F32"), codes), scale)
        _, scales, biases = self.parts
        last = (1 << self.width) - 1
        table = integers(0, last, "F32")
        table = Ranges(np.concatenate([[-0.5], table.low[1:]]), table.high, table.value)
        scale, bias = numbers(reader, scales, where), numbers(reader, biases, where)
        scale = np.where(np.isfinite(scale) & np.isfinite(bias) & (scale != 0), scale, np.nan)
        quotients = looked_up(table, codes)
        return _between(quotients, scale, bias, last, reader.tensors[scales].dtype)

    def _scale(self, reader: Reader, where: Places) -> Numbers:
        if self.form.startswith("mx"):
            return powers(reader, self.parts[1], where)
        return positive(decoded("F8_E4M3", bits(reader, self.parts[1], where)))


def _between(codes: Ranges, scale: Numbers, bias: Numbers, last: int, dtype: str) -> Ranges:
    """Return the ranges for each scale that rounds to the one of the file, from the lowest to the highest."""
    value = codes.value * scale + bias
    low, high = np.full_like(value, np.inf), np.full_like(value, -np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):  # of biases of 0
        near = np.round(bias / scale)
    for step in (-1, 0, 1) if last * half_unit(np.ones(1), dtype)[0] > _APART else (0,):
        count = near + step
        with np.errstate(invalid="ignore", divide="ignore"):
            exact = bias / count
            fits = (np.abs(count) <= last) & (
                np.abs(exact - scale) <= half_unit(scale, dtype) * 1.001 + np.abs(scale) * 2**-22
            )
        each = scaled(codes, np.where(fits, exact, 0.0))
        low = np.where(fits, np.minimum(low, each.low + bias), low)
        high = np.where(fits, np.maximum(high, each.high + bias), high)
    is_alone = low > high  # the group is all zeros, or another writer chose scale and bias
    each, spread = scaled(codes, scale), np.abs(codes.value) * half_unit(scale, dtype)
    low, high = np.where(is_alone, each.low + bias - spread, low), np.where(is_alone, each.high + bias + spread, high)
    lost = np.where(np.isnan(value), np.nan, 0.0)
    return Ranges(low + lost, high + lost, value)


def weights(model: Tensors) -> Mapping[str, Weight]:
    """Return the weights that MLX quantised.

    Raises:
        Malformed: codes, scales and the settings do not fit together.
    """
    found: dict[str, Weight] = {}
    for name, (dtype, words) in model.tensors.items():
        module = name.removesuffix(".weight")
        scales, biases = f"{module}.scales", f"{module}.biases"
        if dtype == "U32" and module != name and len(words) >= _MATRIX and scales in model.tensors:
            found[name] = _weight(model, name, scales, biases if biases in model.tensors else None)
    return found


def _weight(model: Tensors, name: str, scales: str, biases: str | None) -> Mlx:
    words, (dtype, groups) = model.tensors[name].shape, model.tensors[scales]
    across = groups[-1] if groups else 0
    if groups[:-1] != words[:-1] or across == 0 or words[-1] * _WORD % across:
        raise model.refuse(scales, f"is {list(groups)} beside codes of {list(words)}")
    size = words[-1] * _WORD // across
    if biases is None:
        form, width, group = _FLOATS.get(size, ("", 1, 1))
        if not form or dtype != "U8":
            raise model.refuse(scales, f"is {dtype} {list(groups)}, which no format without biases has")
    else:
        arithmetic(model, scales)
        if model.tensors[biases] != model.tensors[scales]:
            raise model.refuse(biases, f"is {list(model.tensors[biases].shape)}, expected {list(groups)} as the scales")
        width = _width(model, name.removesuffix(".weight"))
        if type(width) is not int or width not in _BITS or size % width:
            raise model.refuse(name, f"has groups of {size} bits, which are no codes of {shown(width)} bits")
        group, form = size // width, f"int{width}-group"
    parts = (name, scales) if biases is None else (name, scales, biases)
    return Mlx(name=name, shape=(*words[:-1], across * group), form=form, parts=parts, width=width, group=group)


def _width(model: Tensors, module: str) -> Any:
    """Return the bits of a code, by the name of the layer or for all."""
    settings = model.config.get("quantization")
    settings = settings if isinstance(settings, Mapping) else model.quantisation
    own = settings.get(module)
    return (own if isinstance(own, Mapping) else settings).get("bits")
