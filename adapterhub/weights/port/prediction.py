"""Says before any run whether a copy of an adapter is likely to work on a new base, from the distance of the two bases.

One number decides, the strength of the base's change beside the adapter's (`BaseDistance.strength`). On the measured
pairs the drift of a copy was about four times as large, from pruning and rounding, which spread over all directions, to
training, which concentrates in few. Two bounds come from these pairs, and between them no answer is given.
`python -m tests.bench.port --report` prints them, with the errors on pairs that were left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from adapterhub.formats.documented import Documented
from adapterhub.weights.port import BaseDistance

Expected = Literal["works", "fails", "cannot tell"]

CAUTIOUS: Final = 10
"""A bound stands where at most one copy in so many did otherwise."""
BOUNDS: Final = (0.006, 0.6)
"""The strength up to which copies passed, and from which they failed."""
LEAST_OVERLAP: Final = 0.5
"""Below it the bases do other work where the adapter acts: no copy passed, however strong the adapter is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction(Documented):
    """What is expected of a copy, and why."""

    expected: Annotated[str, "`works`, `fails` or `cannot tell`"]
    probability: Annotated[
        float | None, "share of such copies that passed on the measured pairs; null without a distance"
    ]
    reason: str


_PASSED: Final = {"works": 0.8, "fails": 0.2, "cannot tell": 0.4}
"""The share of measured copies that passed, by what other pairs let expect of them."""


def expected_of(strength: float, overlap: float, bounds: tuple[float, float] = BOUNDS) -> Expected:
    """Predict a copy where the base changed so much beside the adapter."""
    near, far = bounds
    if overlap < LEAST_OVERLAP or strength >= far:
        return "fails"
    return "works" if strength <= near else "cannot tell"


def predict(distance: BaseDistance | None) -> Prediction:
    """Predict a copy; `distance` None is one that cannot be measured."""
    if distance is None:
        reason = "the weights of both bases are not here as plain numbers"
        return Prediction(expected="cannot tell", probability=None, reason=reason)
    expected = expected_of(distance.strength, distance.overlap)
    reason = f"the base changed {distance.strength:.2g} times as strongly as the adapter changes it"
    if distance.overlap < LEAST_OVERLAP:
        reason = f"the bases do other work where the adapter acts: their overlap is {distance.overlap:.2f}"
    return Prediction(expected=expected, probability=_PASSED[expected], reason=reason)
