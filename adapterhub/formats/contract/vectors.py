"""Numbers in a contract, as base64: vectors of encoders, and latents of pipelines."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from typing import Final

MAX_VECTOR: Final = 4096
MAX_LATENT: Final = 1024
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


def packed_latent(numbers: Sequence[float]) -> str:
    """A latent as base64 of half-precision numbers, little-endian: within 0.05 % of each.

    Raises:
        OverflowError: a number is beyond half precision.
    """
    return base64.b64encode(struct.pack(f"<{len(numbers)}e", *numbers)).decode()


def unpacked_latent(text: str) -> list[float]:
    """The latent that `packed_latent` wrote.

    Raises:
        ValueError: the text is no such latent, or is zero everywhere.
    """
    raw = base64.b64decode(text, validate=True)
    if not 0 < len(raw) <= 2 * MAX_LATENT or len(raw) % 2:
        raise ValueError(f"no latent of 1 to {MAX_LATENT} numbers in half precision")
    numbers = list(struct.unpack(f"<{len(raw) // 2}e", raw))
    if not all(map(math.isfinite, numbers)) or not any(numbers):
        raise ValueError("expected finite numbers, and one other than 0")
    return numbers
