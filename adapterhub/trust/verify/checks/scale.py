"""Reports the factor on B @ A, module by module, and checks that the scaled update fits its dtype."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from operator import attrgetter
from typing import Final

from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.peft.config import owner
from adapterhub.formats.peft.keys import KeyPair
from adapterhub.formats.safetensors.header import DTYPES, F32, FACTOR_DTYPES, TensorSpec
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.subject import Subject, as_floats

_MOST_GROUPS: Final = 12
# An adapter runs in float32 or less, whatever its file holds.
_LARGEST: Final = {name: min(layout.maximum, F32.maximum) for name in FACTOR_DTYPES if (layout := DTYPES[name].layout)}
_MAX_MULTIPLICATIONS: Final = 2_000_000_000  # about a second; a folder with more of them has one warned of already
_MAX_ELEMENTS: Final = 16_000_000  # 128 MB in float64
_ROWS: Final = 1024


def check(subject: Subject) -> Iterator[Finding]:
    """Yield a note for each group of modules of one scale; a warning where the scaled update overflows."""
    config = subject.config
    if not config.is_lora:
        return
    pairs, has_patterns = subject.keys.pairs, config.rank_pattern or config.alpha_pattern
    known: dict[str, tuple[float, float, int]] = {}
    groups: Counter[tuple[float, float, int]] = Counter()
    scales: list[float] = []
    for pair in pairs:
        # what the config's patterns are matched against; the first of several parameters
        place = next(iter(config.parameters_of(pair.module)), owner(pair.module)) if has_patterns else ""
        if place not in known:
            known[place] = config.scaling_of(place), config.alpha_of(place), config.rank_of(place)
        groups[known[place]] += 1
        scales.append(known[place][0])
    divisor = "sqrt({})" if config.use_rslora else "r {}"
    for (scale, alpha, rank), count in groups.most_common(_MOST_GROUPS):
        modules = "1 module" if count == 1 else f"{count} modules"
        message = f"scale {scale:.4g} on {modules} (alpha {alpha:g} / {divisor.format(rank)})"
        yield Finding("N_SCALE", CONFIG_FILE, message)
    if len(groups) > _MOST_GROUPS:
        message = f"{len(groups) - _MOST_GROUPS} more scales"
        yield Finding("N_SCALE", CONFIG_FILE, message)
    yield from _overflows(subject, scales)


def _overflows(subject: Subject, scales: list[float]) -> Iterator[Finding]:
    """Yield the first module whose update is too large.

    Only where a bound allows it is the update itself made, in rows.
    """
    left, largest = _MAX_MULTIPLICATIONS, max(map(attrgetter("largest"), subject.numbers.values()), default=0.0)
    if largest * largest * (subject.facts.rank or 0) * max([1.0, *map(abs, scales)]) <= min(_LARGEST.values()):
        return  # nearly always
    for pair, scale in zip(subject.keys.pairs, scales, strict=True):
        factor = max(1.0, abs(scale))  # programs multiply B and A first, and infinity stays infinity
        suspect = _bound(subject, pair, factor)
        if suspect is None or not pair.whole:
            continue
        a, b = pair.whole
        left -= a.elements * b.shape[0]
        obstacle = ""
        if find_spec("numpy") is None:
            obstacle = "computing it needs numpy, which `adapterhub[weights]` brings"
        elif left < 0 or a.elements + b.elements > _MAX_ELEMENTS:
            obstacle = "it is too large to compute"
        if obstacle:
            text = f"the update on `{shown(pair.module)}` may overflow {a.dtype}; {obstacle}"
            yield Finding("W_OVERFLOW", WEIGHTS_FILE, text)
            return
        largest = _largest_entry(subject, a, b) * factor
        if largest > suspect:
            limit = f"which {'F32' if a.dtype == 'F64' else a.dtype} cannot hold (at most {suspect:.4g})"
            text = f"the update on `{shown(pair.module)}` reaches {largest:.4g}, {limit}"
            yield Finding("W_OVERFLOW", WEIGHTS_FILE, text)
            return


def _bound(subject: Subject, pair: KeyPair, factor: float) -> float | None:
    """Return the largest number of the dtype if the update could exceed it, None if it cannot."""
    if not pair.whole:
        return None
    a, b = pair.whole
    numbers = subject.numbers
    limit = _LARGEST.get(a.dtype)
    if limit is None or a.name not in numbers or b.name not in numbers or a.shape[0] != b.shape[1]:
        return None
    reach = numbers[a.name].largest * numbers[b.name].largest * a.shape[0] * factor
    return limit if math.isfinite(numbers[a.name].largest + numbers[b.name].largest) and reach > limit else None


def _largest_entry(subject: Subject, a: TensorSpec, b: TensorSpec) -> float:
    """Greatest magnitude in B @ A, in float64, a few rows of B at a time."""
    import numpy as np

    try:
        left, right = _matrix(subject, b), _matrix(subject, a)
    except OSError as error:
        raise MalformedTensorFile(WEIGHTS_FILE, f"cannot be read: {error.strerror}") from None
    with np.errstate(over="ignore", invalid="ignore"):
        return max(float(np.abs(left[i : i + _ROWS] @ right).max()) for i in range(0, len(left), _ROWS))


def _matrix(subject: Subject, spec: TensorSpec):  # type: ignore[no-untyped-def]  # noqa: ANN202 - a numpy array
    return as_floats(subject.held.read(spec.start, spec.end), spec.dtype).astype("f8").reshape(spec.shape[0], -1)
