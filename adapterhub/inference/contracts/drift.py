"""Measures how far an adapter has moved from its recording, in units of its effect, and how much of that is noise.

The log-odds of the recorded tokens, log p - log(1 - p), are compared: a token that is almost certain has hardly any
probability left to gain, so its log-probability hides the changes that its log-odds show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from adapterhub.formats.contract.contract import MOST_ODDS, Golden, unpacked_odds

SHARE_ASKED_ALONE: Final = 1 / 10
"""Of the tokens of all goldens, those that the base alone is asked, too, to learn the noise of this machine."""

NOISE_REACHES: Final = 2.0
"""Times the noise of the base alone up to which a drift may be noise, too."""

ROUNDING_REACHES: Final = 1.25
"""Times what rounding to bfloat16 did at the recording up to which it may have done so again."""

LEAST_OF_NOISE: Final = 1 / 3
"""Of the noise that the base tells here, what counts in place of the recorded rounding where it is more."""

CENTRAL: Final = 0.9
"""Of the changes, the smallest: rounding moves a few tokens far, in another way on each machine."""

LEAST_SENSITIVITY: Final = 0.1
MOST_SENSITIVITY: Final = 100.0
ROUNDING: Final = 0.002
"""The drift that rounding an adapter to bfloat16, and a recording to half precision, may make."""

_STUDENT: Final = (12.7, 4.3, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""Quantiles of Student's t for 95 %, by degrees of freedom from 1; `_NORMAL` stands for more."""

_NORMAL: Final = 2.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The root mean square change of the log-odds of all recorded tokens, over that of the adapter's effect on them.

    The effect is adapter minus base at the recording. `interval` holds the drift on other such prompts in 95 of 100
    cases. `noise` is the change of the plain base in the same units, from precision, packing and programs, times the
    sensitivity of the adapter. `of` has the drift of each golden by its id. `central` is the drift of the nine tenths
    of the tokens that changed least.
    """

    value: float
    interval: tuple[float, float] | None
    noise: float | None
    of: Mapping[str, float]
    central: float

    def is_more_than_noise(self, rounding: float | None = None) -> bool | None:
        """Return whether noise and rounding do not explain it; None if the noise is not known.

        `rounding` is the central drift that rounding to bfloat16 made at the recording, where this machine rounds so.
        """
        if self.noise is None:
            return None
        is_wide = self.value > max(ROUNDING, NOISE_REACHES * self.noise)
        if rounding is None:
            return is_wide
        return is_wide or self.central > max(ROUNDING, ROUNDING_REACHES * max(rounding, LEAST_OF_NOISE * self.noise))


def drift(
    goldens: Sequence[Golden],
    odds: Mapping[str, Sequence[float]],
    base: Mapping[str, Sequence[float]],
    sensitivity: float = 1.0,
) -> Drift | None:
    """Return the drift of measured log-odds, by the ids of the goldens; `base` has those of the plain base on some.

    None if the recording has no log-odds, the adapter had no effect, or a number is not finite.
    """
    moved, effects, changes = {}, {}, []
    for golden in goldens:
        if golden.odds is None or golden.base_odds is None:
            continue
        count = len(golden.tokens)
        recorded, plain = unpacked_odds(golden.odds, count), unpacked_odds(golden.base_odds, count)
        now = odds[golden.id]
        if len(now) != count:
            return None
        squares = _squares(recorded, now)
        moved[golden.id] = math.fsum(squares), count
        effects[golden.id] = math.fsum(_squares(recorded, plain)), count
        changes += squares
    effect = _mean_root(list(effects.values()))
    if not effect:
        return None
    value, of_base = _mean_root(list(moved.values())) / effect, base_moved(goldens, base)
    return Drift(
        value=value,
        interval=_interval(moved, effects, value),
        noise=None if of_base is None else sensitivity * of_base / effect,
        of={name: _mean_root([one]) / effect for name, one in moved.items()},
        central=_mean_root([(one, 1) for one in sorted(changes)[: math.ceil(CENTRAL * len(changes))]]) / effect,
    )


def base_moved(goldens: Sequence[Golden], base: Mapping[str, Sequence[float]]) -> float | None:
    """Return the root mean square change of the log-odds of the plain base, in nats; None if it gave none."""
    alone = []
    for golden in goldens:
        now, count = base.get(golden.id, ()), len(golden.tokens)
        if golden.base_odds is not None and len(now) == count:
            alone.append((math.fsum(_squares(unpacked_odds(golden.base_odds, count), now)), count))
    return _mean_root(alone) if alone else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """What rounding the base to bfloat16 did to an adapter, both in two digits.

    `sensitivity` is how many times as far as its base it moved the adapter; `central` is as in `Drift`, None if the
    adapter did not move.
    """

    sensitivity: float = 1.0
    central: float | None = None


def rounded_by(
    goldens: Sequence[Golden], odds: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]]
) -> Rounded:
    """Return the effect of rounding, from the log-odds of adapter and base, with `base` on the goldens of a test."""
    found = drift(goldens, odds, base)
    if found is None or not found.noise:
        return Rounded()
    times = min(MOST_SENSITIVITY, max(LEAST_SENSITIVITY, float(f"{found.value / found.noise:.2g}")))
    return Rounded(sensitivity=times, central=min(1.0, float(f"{found.central:.2g}")) or None)


def asked_alone(goldens: Sequence[Golden], lengths: Mapping[str, int]) -> list[Golden]:
    """Return the goldens for the plain base as well: the first ones that make up a tenth of all tokens.

    `lengths` are the tokens of each prompt and its answer, by the id of the golden.
    """
    found: list[Golden] = []
    room = SHARE_ASKED_ALONE * sum(lengths[golden.id] for golden in goldens)
    for golden in (one for one in goldens if one.odds is not None):
        if room <= 0:
            break
        found.append(golden)
        room -= lengths[golden.id]
    return found


def _squares(recorded: Sequence[float], now: Sequence[float]) -> list[float]:
    """Return the squared changes, `now` within what a recording holds."""
    held = (max(-MOST_ODDS, min(MOST_ODDS, number)) for number in now)
    return [(one - other) ** 2 for one, other in zip(recorded, held, strict=True)]


def _mean_root(sums: Sequence[tuple[float, int]]) -> float:
    """Return the root of the mean of sums of squares, each of so many numbers; 0 of none."""
    count = sum(number for _, number in sums)
    return math.sqrt(math.fsum(total for total, _ in sums) / count) if count else 0.0


def _interval(
    moved: Mapping[str, tuple[float, int]], effects: Mapping[str, tuple[float, int]], value: float
) -> tuple[float, float] | None:
    """Return the jackknife's interval of the drift over the goldens; None for a single one."""
    left = []
    for name in moved:
        top, bottom = (_mean_root([held[other] for other in held if other != name]) for held in (moved, effects))
        left.append(top / bottom if bottom else 0.0)
    free = len(left) - 1
    if free < 1:
        return None
    mean = math.fsum(left) / len(left)
    error = math.sqrt(math.fsum((one - mean) ** 2 for one in left) * free / len(left))
    reach = error * (_STUDENT[free - 1] if free <= len(_STUDENT) else _NORMAL)
    return max(0.0, value - reach), value + reach
