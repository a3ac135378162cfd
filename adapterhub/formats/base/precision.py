"""Comparison of stored numbers across dtypes: each stands for the interval of reals that its dtype rounds to it.

Two copies of one model in different dtypes hold different numbers, but each number lies within rounding of its twin.
Rounding one copy and comparing for equality fails if both were made from a third (float32 to bfloat16 and to float16);
comparing the intervals does not.
"""

from __future__ import annotations

import math
import struct

from adapterhub.formats.safetensors.dtypes import DTYPES

Interval = tuple[float, float]


def stored_bytes(dtype: str) -> int:
    """Bytes of one number of `dtype`; 1 for dtypes that pack several numbers in a byte or across bytes."""
    return max(1, DTYPES[dtype].bits // 8)


def interval(dtype: str, raw: bytes) -> Interval | None:
    """The closed interval of reals that a number of `dtype` stands for; `(nan, nan)` for a NaN.

    The interval reaches half a unit in the last place to each side, so both neighbours contain a tie. Infinity begins
    where overflow begins; without infinity, the interval of the largest number has no end, since conversion saturates.
    A float64 stands for itself, as no dtype is finer. None for dtypes that are compared exactly: integers, complex
    numbers, scales and dtypes below 8 bits.
    """
    if dtype == "F64":
        (value,) = struct.unpack("<d", raw)
        return value, value
    layout = DTYPES[dtype].layout
    if layout is None:
        return None
    code = int.from_bytes(raw, "little")
    sign_bit = layout.sign_bit
    sign, code = code & sign_bit, code & (sign_bit - 1)
    if layout.is_nan(sign, code):
        return math.nan, math.nan
    here = layout.magnitude(code)
    low = (layout.magnitude(code - 1) + here) / 2 if code else -layout.magnitude(1) / 2
    open_ended = code > layout.largest or (code == layout.largest and not layout.infinity)
    high = math.inf if open_ended else (here + layout.magnitude(code + 1)) / 2
    return (-high, -low) if sign else (low, high)


def may_be_same(a_dtype: str, a: bytes, b_dtype: str, b: bytes) -> bool:
    """Whether two stored numbers can be roundings of one number.

    In one dtype, the bytes must be equal. Across dtypes, the intervals of floats must meet, and integers must be equal;
    other pairs never match.
    """
    if a_dtype == b_dtype:
        return a == b
    if DTYPES[a_dtype].is_integer and DTYPES[b_dtype].is_integer:
        return _integer(a_dtype, a) == _integer(b_dtype, b)
    first, second = interval(a_dtype, a), interval(b_dtype, b)
    if first is None or second is None:
        return False
    if math.isnan(first[0]) or math.isnan(second[0]):
        return math.isnan(first[0]) and math.isnan(second[0])
    return first[0] <= second[1] and second[0] <= first[1]


def number_text(dtype: str, raw: bytes) -> str:
    """A stored number as text: six digits, or the hex of its bytes for dtypes without a plain number."""
    if DTYPES[dtype].is_integer:
        return str(_integer(dtype, raw))
    if dtype == "F64":
        return f"{struct.unpack('<d', raw)[0]:.6g}"
    layout = DTYPES[dtype].layout
    if layout is None:
        return f"0x{raw[::-1].hex()}"
    code = int.from_bytes(raw, "little")
    sign_bit = layout.sign_bit
    sign, code = code & sign_bit, code & (sign_bit - 1)
    if layout.is_nan(sign, code):
        return "nan"
    size = math.inf if code > layout.largest else layout.magnitude(code)
    return f"{-size if sign else size:.6g}"


def _integer(dtype: str, raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=dtype.startswith("I"))
