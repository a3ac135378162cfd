"""The blocks of GGML's types: where their codes and scales lie, and which numbers a writer rounds to a code.

Read from llama.cpp's `ggml-quants.c` of 2026 (with and without an importance matrix) and gguf-py's `quants.py`. They
write a code in one of three ways:

- Q2_K to Q6_K, MXFP4 and NVFP4 round with the scale that the file holds. The interval is exact.
- Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, IQ4_XS, and the types of one to two bits, round with a scale that is then stored
  as float16. The scale may have been anything that rounds to it.
- With an importance matrix, Q4_0, Q4_1, Q5_0 and Q5_1 round with one scale and store another, fitted to the codes.
  Nothing bounds how far the two are apart. Rounded blocks hold the code of their largest number; fitted ones need not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adapterhub.formats.base.quantised.weight import Numbers, Ranges, decoded, rounded_to

Bytes = NDArray[np.uint8]

_HALF: Final = 2.0**-25
"""The largest scale that float16 rounds to 0."""
_SLACK: Final = 2.0**-22
"""What a writer in float32 misses, as a part of the largest code: a division, a product and a sum."""


class Block(NamedTuple):
    """Blocks, read: their codes and, for each group of codes, what these are multiplied with and what is added.

    `codes` [blocks, groups, numbers]; `scale`, `offset` and `hidden` [blocks, groups]. `hidden`: what a group whose
    scale is stored as 0 may have held, as a distance from its offset.
    """

    codes: Bytes
    scale: Ranges
    offset: Ranges | None
    hidden: Numbers


class Codes(NamedTuple):
    """The interval and the value of each code, in units of its scale.

    Each table holds all codes, then all again for negative scales, where low and high change places. `reach`: how far
    an end moves when the scale does. `slack`: what a writer in float32 misses, the same for all.
    """

    low: Numbers
    high: Numbers
    value: Numbers
    reach: Numbers
    slack: float


@dataclass(frozen=True)
class Layout:
    """How the blocks of a type are read. `codes`: what its codes mean.

    `needs`: the codes that every block holds unless its scale was fitted; () where no writer fits scales.
    """

    codes: Codes
    read: Callable[[Bytes], Block]
    needs: tuple[int, ...] = ()


# ---------------------------------------------------------------- codes
def _codes(low: Numbers, high: Numbers, value: Numbers) -> Codes:
    reach = np.maximum(*(np.where(np.isfinite(each), np.abs(each), 0) for each in (low, high)))
    tables = [np.concatenate(pair) for pair in ((low, high), (high, low), (value, value), (reach, reach))]
    return Codes(tables[0], tables[1], tables[2], tables[3], slack=(float(reach.max()) + 1) * _SLACK)


def _steps(count: int, zero: int, *, clamped: bool = False, last: float | None = None) -> Codes:
    """Codes from 0, of which `zero` means 0, each half a step wide to both sides.

    `clamped`: the first and the last code also stand for all numbers beyond the range. `last`: where the last ends
    otherwise.
    """
    value = np.arange(count, dtype=np.float64) - zero
    low, high = value - 0.5, value + 0.5
    if clamped:
        low[0], high[-1] = -np.inf, np.inf
    if last is not None:
        high[-1] = last
    return _codes(low, high, value)


def _nearest(*values: float) -> Codes:
    """Codes that stand for `values`: a number gets the nearest."""
    value, every = np.array(values, dtype=np.float64), np.unique(np.array(values, dtype=np.float64))
    ends = np.concatenate([[-np.inf], (every[1:] + every[:-1]) / 2, [np.inf]])
    place = np.searchsorted(every, value)
    return _codes(ends[place], ends[place + 1], value)


def _signed() -> Codes:
    """Codes of 8 bits, in two's complement."""
    value = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float64)
    return _codes(value - 0.5, value + 0.5, value)


_SIGN: Final = _codes(np.array([-256.0, 0]), np.array([0, 256.0]), np.array([-1.0, 1.0]))
"""Signs. The scale is the mean size of 128 numbers, so none is larger than 128 scales; 256 leave room for rounding."""
_TERNARY: Final = _steps(4, 1)
_NORMAL_4_BIT: Final = _nearest(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FLOAT_4_BIT: Final = _nearest(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the values of E2M1."""


def _unpacked(raw: Bytes, width: int, run: int) -> Bytes:
    """Codes of `width` bits: the lowest bits of `run` bytes, then their next bits, and so on; then the next bytes."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    codes: Bytes = (raw.reshape(len(raw), -1, 1, run) >> shifts) & np.uint8((1 << width) - 1)
    return codes.reshape(len(raw), -1)


def _trits(raw: Bytes, run: int, count: int) -> Bytes:
    """Codes 0 to 2: the first `count` digits in base 3 of each byte, a fraction of 256; `run` as for `_unpacked`."""
    powers = np.array([1, 3, 9, 27, 81][:count], dtype=np.uint8)[:, None]
    digits = raw.reshape(len(raw), -1, 1, run) * powers
    return ((digits.astype(np.uint16) * 3) >> 8).astype(np.uint8).reshape(len(raw), -1)


# ---------------------------------------------------------------- scales
def _words(raw: Bytes, at: int) -> NDArray[Any]:
    return np.ascontiguousarray(raw[:, at : at + 2]).view("<u2")


def _half(raw: Bytes, at: int) -> Numbers:
    """Return the float16 at byte `at` of each block, as [blocks, 1]."""
    return decoded("F16", _words(raw, at))


def _exactly(value: Numbers) -> Ranges:
    return Ranges(value, value, value)


def _times(scale: Ranges, factor: Numbers) -> Ranges:
    return Ranges(*(np.asarray(each * factor) for each in scale))


def _simple(codes: Bytes, scale: Ranges, hidden: float, offset: Ranges | None = None) -> Block:
    """Return a block of one group."""
    return Block(codes[:, None], scale, offset, np.full(scale.value.shape, hidden))


def _rounded(raw: Bytes, at: int) -> Ranges:
    """Return the source interval of the float16 at byte `at`."""
    return rounded_to("F16", _words(raw, at))


def _q4_0(raw: Bytes) -> Block:
    return _simple(_unpacked(raw[:, 2:], 4, 16), _rounded(raw, 0), 16 * _HALF)


def _q4_1(raw: Bytes) -> Block:
    return _simple(_unpacked(raw[:, 4:], 4, 16), _rounded(raw, 0), 32 * _HALF, _rounded(raw, 2))


def _five_bits(raw: Bytes, at: int) -> Bytes:
    codes: Bytes = _unpacked(raw[:, at + 4 :], 4, 16) | (_unpacked(raw[:, at : at + 4], 1, 1) << np.uint8(4))
    return codes


def _q5_0(raw: Bytes) -> Block:
    return _simple(_five_bits(raw, 2), _rounded(raw, 0), 32 * _HALF)


def _q5_1(raw: Bytes) -> Block:
    return _simple(_five_bits(raw, 4), _rounded(raw, 0), 64 * _HALF, _rounded(raw, 2))


def _q8_0(raw: Bytes) -> Block:
    return _simple(raw[:, 2:], _rounded(raw, 0), 256 * _HALF)


def _q1_0(raw: Bytes) -> Block:
    return _simple(_unpacked(raw[:, 2:], 1, 1), _exactly(_half(raw, 0)), 256 * _HALF)


def _q2_0(raw: Bytes) -> Block:
    return _simple(_unpacked(raw[:, 2:], 2, 1), _rounded(raw, 0), 2 * _HALF)


def _tq1_0(raw: Bytes) -> Block:
    parts = (_trits(raw[:, :32], 32, 5), _trits(raw[:, 32:48], 16, 5), _trits(raw[:, 48:52], 4, 4))
    return _simple(np.concatenate(parts, axis=1), _rounded(raw, 52), 2 * _HALF)


def _tq2_0(raw: Bytes) -> Block:
    return _simple(_unpacked(raw[:, :64], 2, 32), _rounded(raw, 64), 2 * _HALF)


def _mxfp4(raw: Bytes) -> Block:
    return _simple(_unpacked(raw[:, 1:], 4, 16), _exactly(decoded("F8_E8M0", raw[:, :1]) / 2), 0.0)


def _nvfp4(raw: Bytes) -> Block:
    """Four groups of 16. A scale is 0 where the largest of its numbers is under 6 times half of the least E4M3."""
    scale = decoded("F8_E4M3", raw[:, :4] & np.uint8(0x7F)) / 2
    return Block(_groups(_unpacked(raw[:, 4:], 4, 8), 4), _exactly(scale), None, np.full(scale.shape, 6 * 2.0**-10))


def _iq4_nl(raw: Bytes) -> Block:
    return _simple(_unpacked(raw[:, 2:], 4, 16), _rounded(raw, 0), 256 * _HALF)


def _groups(codes: Bytes, count: int) -> Bytes:
    return codes.reshape(len(codes), count, -1)


def _scaled_groups(codes: Bytes, scale: Ranges, factors: Bytes, zero: int, reach: float) -> Block:
    """Return groups with a scale each: a float16 of the block times an integer, of which `zero` means 0.

    A group whose integer is 0 had a scale up to half of the block's, more where that was fitted: `reach` is twice the
    codes' own. If the float16 is 0, the scales were at most 2^-25.
    """
    integers = factors.astype(np.float64) - zero
    hidden = reach * (np.abs(scale.value) + _HALF * np.maximum(np.abs(integers), 1))
    return Block(_groups(codes, integers.shape[1]), _times(scale, integers), None, hidden)


def _iq4_xs(raw: Bytes) -> Block:
    factors = _unpacked(raw[:, 4:8], 4, 1) | (_unpacked(raw[:, 2:4], 2, 1) << np.uint8(4))
    return _scaled_groups(_unpacked(raw[:, 8:], 4, 16), _rounded(raw, 0), factors, 32, 256)


def _q3_k(raw: Bytes) -> Block:
    codes = _unpacked(raw[:, 32:96], 2, 32) | (_unpacked(raw[:, :32], 1, 32) << np.uint8(2))
    factors = _unpacked(raw[:, 96:104], 4, 8) | (_unpacked(raw[:, 104:108], 2, 4) << np.uint8(4))
    return _scaled_groups(codes, _exactly(_half(raw, 108)), factors, 32, 10)


def _q6_k(raw: Bytes) -> Block:
    codes = _unpacked(raw[:, :128], 4, 64) | (_unpacked(raw[:, 128:192], 2, 32) << np.uint8(4))
    factors = raw[:, 192:208] ^ np.uint8(0x80)  # two's complement, moved by 128
    return _scaled_groups(codes, _exactly(_half(raw, 208)), factors, 128, 66)


def _scales_and_offsets(codes: Bytes, raw: Bytes, at: int, factors: Bytes, minima: Bytes, reach: float) -> Block:
    """As `_scaled_groups`, less a second float16 times a second integer; both float16 lie at byte `at`."""
    unit, step = _half(raw, at), _half(raw, at + 2)
    many, more = factors.astype(np.float64), minima.astype(np.float64)
    offset = -step * more
    hidden = np.abs(offset) + 2 * np.abs(step) + reach * np.abs(unit)
    hidden += _HALF * (reach * np.maximum(many, 1) + 2 * np.maximum(more, 1))
    return Block(_groups(codes, factors.shape[1]), _exactly(unit * many), _exactly(offset), hidden)


def _q2_k(raw: Bytes) -> Block:
    codes, scales = _unpacked(raw[:, 16:80], 2, 32), raw[:, :16]
    return _scales_and_offsets(codes, raw, 80, scales & np.uint8(15), scales >> np.uint8(4), 8)


def _of_six_bits(raw: Bytes) -> tuple[Bytes, Bytes]:
    """Eight factors and eight minima in 12 bytes: the first four of each whole, of the others two bits beside those."""
    first, second, rest = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    four, top = np.uint8(0x0F), np.uint8(0x30)
    factors = (first & np.uint8(63), (rest & four) | ((first >> np.uint8(2)) & top))
    minima = (second & np.uint8(63), (rest >> np.uint8(4)) | ((second >> np.uint8(2)) & top))
    return np.concatenate(factors, axis=1), np.concatenate(minima, axis=1)


def _q4_k(raw: Bytes) -> Block:
    return _scales_and_offsets(_unpacked(raw[:, 16:], 4, 32), raw, 0, *_of_six_bits(raw[:, 4:16]), 32)


def _q5_k(raw: Bytes) -> Block:
    codes = _unpacked(raw[:, 48:], 4, 32) | (_unpacked(raw[:, 16:48], 1, 32) << np.uint8(4))
    return _scales_and_offsets(codes, raw, 0, *_of_six_bits(raw[:, 4:16]), 64)


LAYOUTS: Final[Mapping[str, Layout]] = MappingProxyType(
    {
        "Q1_0": Layout(_SIGN, _q1_0),
        "Q2_0": Layout(_TERNARY, _q2_0),
        "TQ1_0": Layout(_TERNARY, _tq1_0),
        "TQ2_0": Layout(_TERNARY, _tq2_0),
        "Q4_0": Layout(_steps(16, 8, last=8), _q4_0, needs=(0,)),
        "Q4_1": Layout(_steps(16, 0), _q4_1, needs=(0, 15)),
        "Q5_0": Layout(_steps(32, 16, last=16), _q5_0, needs=(0,)),
        "Q5_1": Layout(_steps(32, 0), _q5_1, needs=(0, 31)),
        "Q8_0": Layout(_signed(), _q8_0),
        "Q2_K": Layout(_steps(4, 0, clamped=True), _q2_k),
        "Q3_K": Layout(_steps(8, 4, clamped=True), _q3_k),
        "Q4_K": Layout(_steps(16, 0, clamped=True), _q4_k),
        "Q5_K": Layout(_steps(32, 0, clamped=True), _q5_k),
        "Q6_K": Layout(_steps(64, 32, clamped=True), _q6_k),
        "IQ4_NL": Layout(_NORMAL_4_BIT, _iq4_nl),
        "IQ4_XS": Layout(_NORMAL_4_BIT, _iq4_xs),
        "MXFP4": Layout(_FLOAT_4_BIT, _mxfp4),
        "NVFP4": Layout(_FLOAT_4_BIT, _nvfp4),
    }
)
"""The types whose codes stand for one number each."""

CODEBOOKS: Final = ("IQ1_M", "IQ1_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ3_S", "IQ3_XXS")
"""The types whose codes stand for 4 or 8 numbers at once, so that none is the nearest to one number."""
