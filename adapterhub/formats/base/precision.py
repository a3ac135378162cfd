"""What a stored number stands for: the interval of reals that its dtype rounds to it.

Two copies of one model in different dtypes hold different numbers, yet every number of one lies within rounding of
its twin. Rounding one copy and asking for equality fails where the copies were made from a third (float32 to bfloat16
and to float16 round twice); asking whether the two intervals meet does not.
"""

from __future__ import annotations

import math
import struct

from adapterhub.formats.safetensors.dtypes import DTYPES

Interval = tuple[float, float]


def stored_bytes(dtype: str) -> int:
    """Bytes that hold one number of `dtype`; 1 for the kinds that pack several numbers in a byte or across bytes."""
    return max(1, DTYPES[dtype].bits // 8)


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
    """Whether two stored numbers can be one number, each rounded to its dtype.

    In one dtype only equal bytes are the same number. Across dtypes: floats when their intervals meet, integers when
    they are equal, anything else never.
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
    """A stored number for people: six digits, or the hex of its bytes for kinds that are no plain number."""
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
    magnitude = math.inf if code > layout.largest else layout.magnitude(code)
    return f"{-magnitude if sign else magnitude:.6g}"


def _integer(dtype: str, raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=dtype.startswith("I"))
