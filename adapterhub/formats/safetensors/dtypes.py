"""The dtypes of safetensors: the one table of their sizes, layouts and names. torch is not imported here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatLayout:
    """A binary float: sign, then `exponent` bits, then `mantissa` bits; codes without sign grow with the magnitude.

    `largest` is the code of the largest finite magnitude; with `infinity`, the next code is infinity. Every other
    code above is a NaN. `nan_is_minus_zero`: the code of -0 is the only NaN instead (the FNUZ kinds).
    """

    exponent: int
    mantissa: int
    bias: int
    largest: int
    infinity: bool = True
    nan_is_minus_zero: bool = False

    @property
    def sign_bit(self) -> int:
        """The code of -0; all bits below it are those of the magnitude."""
        return 1 << (self.exponent + self.mantissa)

    @property
    def maximum(self) -> float:
        """The largest finite magnitude."""
        return self.magnitude(self.largest)

    @property
    def rounding(self) -> float:
        """The largest relative error of rounding a number in range to this layout."""
        return 2.0 ** -(self.mantissa + 1)

    def magnitude(self, code: int) -> float:
        """The value of a code without sign; one above `largest` it is what the next power of two would be."""
        exponent, fraction = code >> self.mantissa, code & ((1 << self.mantissa) - 1)
        if exponent:
            return math.ldexp((1 << self.mantissa) | fraction, exponent - self.bias - self.mantissa)
        return math.ldexp(fraction, 1 - self.bias - self.mantissa)

    def is_nan(self, sign: int, code: int) -> bool:
        """Whether sign and code spell a NaN."""
        if self.nan_is_minus_zero:
            return bool(sign) and code == 0
        return code > self.largest + self.infinity


@dataclass(frozen=True, slots=True, kw_only=True)
class Dtype:
    """One dtype of the format. `torch` is torch's name for it, "" where this package never makes such a tensor."""

    bits: int
    torch: str = ""
    layout: FloatLayout | None = None
    is_integer: bool = False


def _integer(bits: int, torch: str = "") -> Dtype:
    return Dtype(bits=bits, torch=torch, is_integer=True)


_F8_E5M2: Final = FloatLayout(exponent=5, mantissa=2, bias=15, largest=0x7B)
_F8_E4M3: Final = FloatLayout(exponent=4, mantissa=3, bias=7, largest=0x7E, infinity=False)
_E5M2FNUZ: Final = FloatLayout(exponent=5, mantissa=2, bias=16, largest=0x7F, infinity=False, nan_is_minus_zero=True)
_E4M3FNUZ: Final = FloatLayout(exponent=4, mantissa=3, bias=8, largest=0x7F, infinity=False, nan_is_minus_zero=True)
_F16: Final = FloatLayout(exponent=5, mantissa=10, bias=15, largest=0x7BFF)
_BF16: Final = FloatLayout(exponent=8, mantissa=7, bias=127, largest=0x7F7F)
F32: Final = FloatLayout(exponent=8, mantissa=23, bias=127, largest=0x7F7F_FFFF)
_F64: Final = FloatLayout(exponent=11, mantissa=52, bias=1023, largest=0x7FEF_FFFF_FFFF_FFFF)

DTYPES: Final[Mapping[str, Dtype]] = MappingProxyType(
    {
        "BOOL": _integer(8, "bool"),
        "F4": Dtype(bits=4),
        "F6_E2M3": Dtype(bits=6),
        "F6_E3M2": Dtype(bits=6),
        "U8": _integer(8, "uint8"),
        "I8": _integer(8, "int8"),
        "F8_E5M2": Dtype(bits=8, torch="float8_e5m2", layout=_F8_E5M2),
        "F8_E4M3": Dtype(bits=8, torch="float8_e4m3fn", layout=_F8_E4M3),
        "F8_E8M0": Dtype(bits=8),
        "F8_E4M3FNUZ": Dtype(bits=8, layout=_E4M3FNUZ),
        "F8_E5M2FNUZ": Dtype(bits=8, layout=_E5M2FNUZ),
        "I16": _integer(16, "int16"),
        "U16": _integer(16),
        "F16": Dtype(bits=16, torch="float16", layout=_F16),
        "BF16": Dtype(bits=16, torch="bfloat16", layout=_BF16),
        "I32": _integer(32, "int32"),
        "U32": _integer(32),
        "F32": Dtype(bits=32, torch="float32", layout=F32),
        "C64": Dtype(bits=64),
        "F64": Dtype(bits=64, torch="float64", layout=_F64),
        "I64": _integer(64, "int64"),
        "U64": _integer(64),
    }
)
"""Every dtype of the format, by the name that headers have for it."""

DTYPE_BITS: Final[Mapping[str, int]] = MappingProxyType({name: dtype.bits for name, dtype in DTYPES.items()})
"""Bits of one element, for every dtype of the format."""

FACTOR_DTYPES: Final = ("F64", "F32", "F16", "BF16")
"""What a low-rank factor may be stored in."""

CHOICES: Final[Mapping[str, str]] = MappingProxyType({DTYPES[name].torch: name for name in ("F32", "BF16", "F16")})
"""What users may ask for with `--dtype`, and the format's name for it."""
