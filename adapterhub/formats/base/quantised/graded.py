"""Evidence that a copy is that of a model where the writer moved numbers before it rounded them.

GPTQ, AWQ, SmoothQuant and AutoRound leave numbers outside the intervals of their codes, and so does a fine-tune. Whole
rows of both files tell them apart:

- GPTQ makes up for the error of a column in the columns that come after it, with the same weights in all rows. The
  column that comes first is plain rounding: none of its numbers lies further than half a step from its code.
- AWQ and SmoothQuant multiply columns by factors, and divide the norm or the rows before by them. Without the factors
  it is plain rounding. The factors are those by which the norms differ, or the slopes of the columns.
- AutoRound chooses the direction of rounding: few numbers lie further than a step from their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, prod
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adapterhub.core.errors import shown
from adapterhub.formats.base.quantised.weight import Numbers, Reader, Weight

_SLACK: Final = 0.004
"""Steps by which the arithmetic of a writer is off where it decides between two codes."""
_DOUBT: Final = 2.0**-9
"""The relative error of a scale in bfloat16, the coarsest dtype of scales."""
_DOUBT_OF_FACTORS: Final = 2.0**-7
"""The same for products of numbers and factors that were each rounded to bfloat16."""
_LEAST_ROWS: Final = 16
_FITTING: Final = 0.05
"""By how much slopes of columns may be off the factors that a norm shows, as the median of relative errors."""


class Window(NamedTuple):
    """Some rows of a weight: arrays [rows, columns] of the source's numbers, of the copy's, and of the copy's steps."""

    name: str
    source: Numbers
    value: Numbers
    step: Numbers


def window(source: tuple[Weight, Reader], copy: tuple[Weight, Reader], rows: int) -> Window:
    """At most `rows` rows of a weight, in equal distances; all dimensions but the last count as rows.

    Raises:
        CouldNotTell: a file cannot be read.
    """
    (theirs, reader), (ours, other) = source, copy
    width = theirs.shape[-1]
    height = prod(theirs.shape[:-1])
    chosen = np.unique(np.linspace(0, height - 1, min(rows, height)).astype(np.int64))
    at = (chosen[:, None] * width + np.arange(width)).reshape(-1)
    numbers = (theirs.ranges(reader, at).value, ours.ranges(other, at).value, ours.steps(other, at))
    return Window(theirs.name, *(found.reshape(len(chosen), width) for found in numbers))


@dataclass(frozen=True, kw_only=True)
class MovedFigures:
    """What a window shows. Shares are of its numbers, residuals are in steps.

    `correlation`: of the copy with the source times the factors of columns and rows, as those of AWQ may be large:
    `down_proj` of layer 11 of SmolLM2-135M correlates 0.26 without them.
    `spread`: the root mean square of residuals, 0.289 after plain rounding.
    `off`: the share further from its code than half a step; `beyond`: further than a whole one. `plainest`: the least
    share `off` of a column, and `chance` how likely some column has so few if all are alike. `scaled`: the share that
    is off once the factors of columns are undone. Without steps (codebooks), only the correlation is known.
    """

    name: str
    has_steps: bool
    correlation: float
    spread: float
    off: float
    beyond: float
    plainest: float
    chance: float
    scaled: float


def figures(seen: Window, factors: Sequence[Numbers] = ()) -> MovedFigures:
    """Return the figures of a window. `factors`: by how much each norm of the copy is smaller, see `factors_of`."""
    name, source, value, step = seen
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        codes, residual = np.abs(value / step), np.abs(source - value) / step
        is_known = np.isfinite(residual) & np.isfinite(source)
        off = _off(residual, codes, _DOUBT) & is_known
        count = is_known.sum(0)
        by_column = np.where(count >= min(_LEAST_ROWS, len(source)), off.sum(0) / count, 1.0)
        known = residual[is_known]
        both = np.isfinite(source) & np.isfinite(value)
        without = _undone(seen, factors, both)
        numbers, copied = without[both], value[both]
        sizes = np.sqrt((numbers**2).sum() * (copied**2).sum())
        undone = np.abs(without - value) / step
    share = float(off.sum() / max(1, known.size))
    plainest = float(by_column.min(initial=1.0))
    return MovedFigures(
        name=name,
        has_steps=known.size > 0,
        correlation=float((numbers * copied).sum() / sizes) if sizes > 0 else 0.0,
        spread=float(np.sqrt((known**2).mean())) if known.size else np.inf,
        off=share,
        beyond=float((known > 1 + _SLACK).mean()) if known.size else 1.0,
        plainest=plainest,
        chance=_chance(plainest, share, len(source), source.shape[1]),
        scaled=float((_off(undone, codes, _DOUBT_OF_FACTORS) & is_known).sum() / max(1, known.size)),
    )


def factors_of(source: Numbers, copy: Numbers) -> Numbers:
    """By how much each number of a norm is smaller in the copy; 1 where one of them is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = source / copy
    return np.where(np.isfinite(found) & (found > 0), found, 1.0)


def _chance(plainest: float, share: float, rows: int, columns: int) -> float:
    """Return the chance that the best of `columns` columns is at least as good as `plainest`.

    Each number is off with the probability `share`, independently of the others.
    """
    if not 0 < share < 1:
        return 1.0
    most = min(round(plainest * rows), rows)
    return min(1.0, columns * sum(comb(rows, k) * share**k * (1 - share) ** (rows - k) for k in range(most + 1)))


def _off(residual: Numbers, codes: Numbers, doubt: float) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = residual > 0.5 + _SLACK + codes * doubt
    return found


def slopes(seen: Window) -> Numbers:
    """Return the factor of each column, by least squares; 1 for a column of zeros."""
    _, source, value, step = seen
    is_known = np.isfinite(step) & np.isfinite(value) & np.isfinite(source)
    return _slopes(np.where(is_known, source, 0.0), np.where(is_known, value, 0.0), 0)


def _slopes(source: Numbers, value: Numbers, axis: int) -> Numbers:
    size = (source**2).sum(axis)
    found: Numbers = np.where(size > 0, (source * value).sum(axis) / np.where(size > 0, size, 1.0), 1.0)
    return np.where(np.isfinite(found), found, 1.0)


def _undone(seen: Window, factors: Sequence[Numbers], is_known: NDArray[np.bool_]) -> Numbers:
    """Return the source's numbers times the factors of their columns, and then of their rows."""
    source, value = np.where(is_known, seen.source, 0.0), np.where(is_known, seen.value, 0.0)
    own = _slopes(source, value, 0)
    fitting = [(_misfit(own, each), at) for at, each in enumerate(factors) if each.shape == own.shape]
    error, at = min(fitting, default=(np.inf, 0))
    scaled = source * (factors[at] if error < _FITTING else own)
    return scaled * _slopes(scaled, value, 1)[:, None]


def _misfit(own: Numbers, factors: Numbers) -> float:
    return float(np.median(np.abs(own / factors - 1)))


def is_folded(factors: Numbers, seen: Window) -> bool:
    """Whether the factors by which a norm differs are those of the columns of a weight, and no tuning made them."""
    return seen.source.shape[1] == len(factors) and _misfit(slopes(seen), factors) < _FITTING


# ---------------------------------------------------------------- the verdict
ROWS: Final = 256
"""Rows of a window with which the limits were measured."""

MOVING: Final = ("gptq", "awq", "scaled", "auto-round")
"""Algorithms that move numbers, as forms and explanations call them."""

_LEAST_CORRELATION: Final = 0.5
_MOST_OFF: Final = 0.002
_MOST_OFF_OF_FITTED: Final = 0.04
_MOST_SCALED: Final = 0.01
_MOST_PLAINEST: Final = 0.005
_MOST_PLAINEST_OF_ONE: Final = 0.03
_MOST_CHANCE: Final = 1e-3
_LEAST_PLAIN: Final = 0.9
_MOST_BEYOND: Final = 0.02


@dataclass(frozen=True, kw_only=True)
class Graded:
    """Whether a copy is likely that of a model, and the evidence as sentences.

    `how`: what explains the copy: `rounding`, `fitted`, `codebooks`, or one of `MOVING`; "" for nothing. AWQ and
    SmoothQuant both leave `scaled` columns.
    """

    is_likely: bool
    how: str
    evidence: tuple[str, ...]


def judged(
    seen: Sequence[MovedFigures],
    *,
    kept: int,
    folded: int = 0,
    apart: Sequence[str] = (),
    form: str = "",
    may_be_rounded: bool = True,
) -> Graded:
    """Return the verdict on a copy from the figures of its weights.

    `kept`: tensors in floats that equal those of the source; `folded`: norms that differ by factors of the columns of a
    weight (see `is_folded`); `apart`: the names of those that differ otherwise. `form`: what the files say.
    `may_be_rounded`: plain rounding explains the copy; not so where numbers left the intervals of their codes.

    The limits are for windows of 256 rows. Mean shares over 21 weights of SmolLM2-135M in groups of 64, for the source
    and for one that a change of rank 16 moved by a part of its norm; what is refused has a star:

    | copy by | figure | source | 0.1 % | 0.3 % | 1 % | 3 % | 10 % |
    | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
    | plain rounding to 4 bits | off | 0 | 0.0001 | 0.0024* | 0.018* | 0.068* | 0.24* |
    | GPTQModel 7.6 | plainest | 0 | 0.0002 | 0.0017 | 0.013* | 0.042* | 0.13* |
    | the same, `desc_act` | plainest | 0 | 0.0002 | 0.0024 | 0.015* | 0.052* | 0.15* |
    | llm-compressor's GPTQ | plainest | 0.0012 | 0.0012 | 0.0037 | 0.018* | 0.053* | 0.15* |
    | llm-compressor's AWQ | scaled | 0.0035 | 0.0037 | 0.0051 | 0.016* | 0.063* | 0.24* |
    | AutoRound, 30 turns | beyond | 0.0072 | 0.0072 | 0.0072 | 0.0073 | 0.0079 | 0.047* |

    GPTQ in 8 bits (a small random model) has 0.0034 at 0.1 % and 0.034* at 0.3 %; in 3 bits 0.0036 at 1 % and 0.017* at
    3 %. Another model, and the source with the rows of a weight in another order, correlate less than 0.02 in each.
    Scales that llama.cpp fitted leave 0.005 to 0.018 of numbers off (Q4_0 with an importance matrix, IQ3_S).
    A rounded copy of a tuned model is not taken for GPTQ's: its columns are alike (`chance`).

    It does not see changes below these; a change that does not touch the windows and the first column of GPTQ; whether
    codebooks (IQ types of GGUF, which correlate 0.87 to 0.99) hold a tuned model; or which data the writer used.
    """
    if not seen:
        return Graded(is_likely=False, how="", evidence=("no quantised weight was compared",))
    least = min(seen, key=lambda one: one.correlation)
    untouched = f"{kept:,} tensors in floats are equal"
    if folded:
        untouched += f", and {folded:,} norms differ by the factors of columns alone"
    if apart:
        text = f"{len(apart):,} tensors in floats differ, such as `{shown(apart[0])}`"
        return Graded(is_likely=False, how="", evidence=(text,))
    if not least.correlation >= _LEAST_CORRELATION:
        text = f"`{shown(least.name)}` correlates {least.correlation:.3f} with the source"
        return Graded(is_likely=False, how="", evidence=(text,))
    how, text = _explained([one for one in seen if one.has_steps], folded, form, may_be_rounded=may_be_rounded)
    together = f"{len(seen):,} quantised weights correlate with the source by {least.correlation:.3f} or more"
    return Graded(is_likely=bool(how), how=how, evidence=(together, text, untouched))


def _explained(seen: Sequence[MovedFigures], folded: int, form: str, *, may_be_rounded: bool) -> tuple[str, str]:
    """Return the algorithm that explains the residuals, and what they show."""
    if not seen and may_be_rounded:
        return "codebooks", "the format has no steps, so nothing finer than the correlation was compared"
    off, scaled, beyond, plainest = (
        sum(getattr(one, key) for one in seen) / max(1, len(seen)) for key in ("off", "scaled", "beyond", "plainest")
    )
    plain = sum(
        one.off <= _MOST_OFF or (one.plainest <= _MOST_PLAINEST_OF_ONE and one.chance <= _MOST_CHANCE) for one in seen
    )
    if off <= _MOST_OFF:
        if not may_be_rounded:
            return "", f"{1 - off:.2%} of their numbers have the code that is nearest, so a writer of codes moved none"
        return "rounding", f"{1 - off:.2%} of their numbers have the code that is nearest"
    if form.startswith("gguf-") and may_be_rounded and off <= _MOST_OFF_OF_FITTED:
        return "fitted", f"{1 - off:.1%} of their numbers have the code that is nearest, after scales were fitted"
    if folded and scaled <= _MOST_SCALED:
        return "scaled", f"{1 - scaled:.2%} of their numbers have the code that is nearest, less the factors of columns"
    if plain >= _LEAST_PLAIN * len(seen) and plainest <= _MOST_PLAINEST:
        return "gptq", f"{plain:,} of them have a column that was rounded and not moved, as GPTQ leaves its first"
    if form == "auto-round" and beyond <= _MOST_BEYOND:
        return "auto-round", f"{1 - beyond:.1%} of their numbers lie within one step of their code"
    return "", f"{off:.1%} of their numbers do not have the code that is nearest, and neither GPTQ nor AWQ explains it"
