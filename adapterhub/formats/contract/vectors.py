"""Vectors of encoders in a contract: base64 of a scale (float32, little-endian) and one int8 for each number."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from typing import Final

MAX_VECTOR: Final = 4096
_STEPS: Final = 127
_SCALE_BYTES: Final = 4


def packed(vector: Sequence[float]) -> str:
    """A vector as base64 of a scale (float32) and one int8 for each number."""
    scale = max((abs(number) for number in vector), default=0.0) / _STEPS or 1.0
    return base64.b64encode(struct.pack("<f", scale) + bytes(round(n / scale) & 0xFF for n in vector)).decode()


def unpacked(text: str) -> list[float]:
    """The vector that `packed` wrote.

    Raises:
        ValueError: the text is no such vector.
    """
    raw = base64.b64decode(text, validate=True)
    if not _SCALE_BYTES < len(raw) <= _SCALE_BYTES + MAX_VECTOR:
        raise ValueError("no vector of 1 to 4096 numbers")
    (scale,) = struct.unpack("<f", raw[:_SCALE_BYTES])
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError("a scale is a number above 0")
    return [scale * number for number in struct.unpack(f"<{len(raw) - _SCALE_BYTES}b", raw[_SCALE_BYTES:])]
