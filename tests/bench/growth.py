"""How the cost of a piece of work grows with its size: the slope of a curve whose axes are both logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping

MOST = 1.1
"""The greatest exponent without a reason on the page of measurements."""


def exponent(curve: Mapping[int, float], start: float = 0.0) -> float:
    """The exponent between the two largest sizes, without what a start costs whatever the size."""
    small, large = sorted(curve)[-2:]
    least = 1e-6
    return math.log(max(curve[large] - start, least) / max(curve[small] - start, least)) / math.log(large / small)


def told(what: str, curve: Mapping[int, float], start: float = 0.0) -> str:
    """The curve in one line, with its exponent."""
    points = ", ".join(f"{size:,}: {seconds:.3f} s" for size, seconds in sorted(curve.items()))
    return f"{what}: {points}; exponent {exponent(curve, start):.2f} (at most {MOST})"
