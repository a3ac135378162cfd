"""Weights of 2 and 4 bits as optimum-quanto writes them.

`x.weight._data._data` U8 [rows, group] keeps `x.weight` cut into rows of one group: the first rows in the lowest bits,
the next ones above them. `x.weight._scale` and `x.weight._shift` are [groups, 1]. The file does not keep the shape of
the source. A code is the quotient of number plus shift and scale, each step in the dtype of the scale. If the writer
used a kernel of PyTorch (`tinygemm`: 4 bits, groups of 128, BF16), the shift went to the middle of the range and back,
and lost some bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from adapterhub.formats.base.quantised.codes import arithmetic, half_unit, integers, looked_up, positive
from adapterhub.formats.base.quantised.weight import (
    Flat,
    Places,
    Ranges,
    Reader,
    Tensors,
    Weight,
    bits,
    numbers,
    scaled,
)

_END: Final = "._data._data"
_WIDTHS: Final = (4, 2)
_TINYGEMM: Final = (4, 128, "BF16")


@dataclass(frozen=True, kw_only=True)
class Quanto(Flat):
    """Codes of `width` bits in groups of `group` numbers; parts: codes, scales, shifts."""

    width: int
    group: int
    arithmetic: str

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """Each code's interval, times its scale, less its shift."""
        packed, scales, shifts = self.parts
        group, column = at // self.group, at % self.group
        rows = reader.tensors[packed].shape[0]
        raw = bits(reader, packed, group % rows * self.group + column)
        codes = (raw >> (group // rows * self.width).astype(raw.dtype)) & ((1 << self.width) - 1)
        scale, shift = positive(numbers(reader, scales, group)), numbers(reader, shifts, group)
        found = scaled(looked_up(integers(0, (1 << self.width) - 1, self.arithmetic), codes), scale)
        low, high = (end + side * half_unit(end, self.arithmetic) for side, end in ((-1, found.low), (1, found.high)))
        if (self.width, self.group, self.arithmetic) == _TINYGEMM:
            lost = half_unit(shift, "BF16") + half_unit((1 << (self.width - 1)) * scale - shift, "BF16")
            low, high = low - lost, high + lost
        return Ranges(low - shift, high - shift, found.value - shift)


def weights(model: Tensors) -> Mapping[str, Weight]:
    """Return the weights of 2 and 4 bits.

    Raises:
        Malformed: scales and shifts have another shape or dtype than the codes need.
    """
    found: dict[str, Weight] = {}
    for packed, (dtype, shape) in model.tensors.items():
        name = packed.removesuffix(_END)
        scale, shift = f"{name}._scale", f"{name}._shift"
        if name == packed or dtype != "U8" or scale not in model.tensors or shift not in model.tensors:
            continue
        groups = model.tensors[scale].shape
        count = groups[0] if groups else 0
        width = next((each for each in _WIDTHS if shape[:1] == (-(-count * each // 8),)), 0)
        if len(shape) != 2 or groups != (count, 1) or not width:
            raise model.refuse(scale, f"is {list(groups)} beside codes of {list(shape)}")
        if model.tensors[shift] != model.tensors[scale]:
            raise model.refuse(shift, f"is {list(model.tensors[shift].shape)}, expected {list(groups)} as the scales")
        found[name] = Quanto(
            name=name,
            shape=(count * shape[1],),
            form=f"int{width}-group",
            parts=(packed, scale, shift),
            width=width,
            group=shape[1],
            arithmetic=arithmetic(model, scale),
        )
    return found
