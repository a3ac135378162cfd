"""What a stored number stands for: the interval of reals that its dtype rounds to it.

Two copies of one model in different dtypes hold different numbers, yet every number of one lies within rounding of
its twin. Rounding one copy and asking for equality fails where the copies were made from a third (float32 to bfloat16
and to float16 round twice); asking whether the two intervals meet does not.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from adapterhub.formats.safetensors.header import DTYPE_BITS

Interval = tuple[float, float]

_INTEGERS: Final = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
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


_LAYOUTS: Final[Mapping[str, _Layout]] = MappingProxyType(
    {
        "F32": _Layout(exponent=8, mantissa=23, bias=127, largest=0x7F7F_FFFF),
        "BF16": _Layout(exponent=8, mantissa=7, bias=127, largest=0x7F7F),
        "F16": _Layout(exponent=5, mantissa=10, bias=15, largest=0x7BFF),
        "F8_E5M2": _Layout(exponent=5, mantissa=2, bias=15, largest=0x7B),
        "F8_E4M3": _Layout(exponent=4, mantissa=3, bias=7, largest=0x7E, infinity=False),
        "F8_E5M2FNUZ": _Layout(exponent=5, mantissa=2, bias=16, largest=0x7F, infinity=False, nan_is_minus_zero=True),
        "F8_E4M3FNUZ": _Layout(exponent=4, mantissa=3, bias=8, largest=0x7F, infinity=False, nan_is_minus_zero=True),
    }
)


def magnitude(dtype: str, code: int) -> float:
    """The number that a code without sign stands for, in a float of 8 to 64 bits."""
    if dtype == "F64":
        return float(struct.unpack("<d", code.to_bytes(8, "little"))[0])
    return _LAYOUTS[dtype].magnitude(code)


def stored_bytes(dtype: str) -> int:
    """Bytes that hold one number of `dtype`; 1 for the kinds that pack several numbers in a byte or across bytes."""
    return max(1, DTYPE_BITS[dtype] // 8)


def interval(dtype: str, raw: bytes) -> Interval | None:
    """The closed interval of reals that a number of `dtype` stands for; `(nan, nan)` for a NaN.

    It reaches half a unit in the last place to each side, so both neighbours of a tie contain it. Infinity begins
    where overflow begins; where a dtype has no infinity its largest number reaches on, since conversion saturates.
    A float64 stands for itself: no dtype is finer. None when the dtype is no float (integers, complex, scales and
    the kinds below 8 bits), whose numbers are compared exactly.
    """
    if dtype == "F64":
        (value,) = struct.unpack("<d", raw)
        return value, value
    layout = _LAYOUTS.get(dtype)
    if layout is None:
        return None
    code = int.from_bytes(raw, "little")
    sign_bit = 1 << (layout.exponent + layout.mantissa)
    sign, code = code & sign_bit, code & (sign_bit - 1)
    if layout.is_nan(sign, code):
        return math.nan, math.nan
    here = layout.magnitude(code)
    low = (layout.magnitude(code - 1) + here) / 2 if code else -layout.magnitude(1) / 2
    open_ended = code > layout.largest or (code == layout.largest and not layout.infinity)
    high = math.inf if open_ended else (here + layout.magnitude(code + 1)) / 2
    return (-high, -low) if sign else (low, high)


def may_be_same(a_dtype: str, a: bytes, b_dtype: str, b: bytes) -> bool:
    """Whether two stored numbers can be one number, each rounded to its dtype.

    In one dtype only equal bytes are the same number. Across dtypes: floats when their intervals meet, integers when
    they are equal, anything else never.
    """
    if a_dtype == b_dtype:
        return a == b
    if a_dtype in _INTEGERS and b_dtype in _INTEGERS:
        return _integer(a_dtype, a) == _integer(b_dtype, b)
    first, second = interval(a_dtype, a), interval(b_dtype, b)
    if first is None or second is None:
        return False
    if math.isnan(first[0]) or math.isnan(second[0]):
        return math.isnan(first[0]) and math.isnan(second[0])
    return first[0] <= second[1] and second[0] <= first[1]


def number_text(dtype: str, raw: bytes) -> str:
    """A stored number for people: six digits, or the hex of its bytes for kinds that are no plain number."""
    if dtype in _INTEGERS:
        return str(_integer(dtype, raw))
    if dtype == "F64":
        return f"{struct.unpack('<d', raw)[0]:.6g}"
    layout = _LAYOUTS.get(dtype)
    if layout is None:
        return f"0x{raw[::-1].hex()}"
    code = int.from_bytes(raw, "little")
    sign_bit = 1 << (layout.exponent + layout.mantissa)
    sign, code = code & sign_bit, code & (sign_bit - 1)
    if layout.is_nan(sign, code):
        return "nan"
    size = math.inf if code > layout.largest else layout.magnitude(code)
    return f"{-size if sign else size:.6g}"


def _integer(dtype: str, raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=dtype.startswith("I"))
