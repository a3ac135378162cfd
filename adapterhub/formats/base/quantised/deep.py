"""Compares two models by their files: by windows of many numbers in each tensor, or by every number."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from heapq import nsmallest
from itertools import takewhile
from math import prod
from operator import eq
from threading import Event, Lock
from typing import Final, NamedTuple

import numpy as np

from adapterhub.core.digests import Progress
from adapterhub.core.errors import shown
from adapterhub.formats.base.copies import (
    BOTH_QUANTISED,
    ONE_MORE,
    VAGUE,
    Evidence,
    Seen,
    Sides,
    Tally,
    absent,
    changes_of,
    unknown_format,
    verdict_of,
)
from adapterhub.formats.base.fingerprint import BaseComparison, BaseVerdict
from adapterhub.formats.base.quantised.graded import (
    MOVING,
    ROWS,
    Window,
    factors_of,
    figures,
    is_folded,
    judged,
    window,
)
from adapterhub.formats.base.quantised.model import FileModel, places
from adapterhub.formats.base.quantised.weight import Numbers, Places, Plain, Ranges, Weight
from adapterhub.formats.safetensors.header import DTYPES

WINDOW: Final = 256
"""Numbers around each sampled place: reading a kilobyte costs as much as reading one number."""

_CHUNK: Final = 1 << 18
"""Numbers that are compared at once: some megabytes."""

_MOST_WINDOWS: Final = 64
"""Weights of which whole rows are read."""

_LEAST_UNSEEN: Final = 0.8
"""The correlation of the numbers below which whole rows of a weight are read in any case."""

_NEAR: Final = 16
"""Weights with names next to a norm's that are looked at for its factors: those of its layer."""
_ROWS_OF_NORM: Final = 64

_MOST_THREADS: Final = 8
_LISTED: Final = 4


class Pair(NamedTuple):
    """A tensor of the source, and the same in the copy."""

    source: Weight
    copy: Weight


def compare_models(
    a: FileModel,
    b: FileModel,
    *,
    full: bool = False,
    bar: Callable[[int], AbstractContextManager[Progress]] | None = None,
    named: Sides = ("first", "second"),
) -> BaseComparison:
    """Return how two models relate, by their files; two in floats are never SAME_WEIGHTS, which digests tell.

    `named` is what the sentences call them. `bar` gets the number of numbers to compare, and yields what counts them.

    Raises:
        CouldNotTell: a file cannot be read, or changed while it was read.
    """
    if a.is_copy and b.is_copy:
        return BaseComparison(verdict=BaseVerdict.CANNOT_TELL, differences=(BOTH_QUANTISED,))
    source, copy, sides = (b, a, (named[1], named[0])) if a.is_copy else (a, b, named)
    if copy.unknown:
        return unknown_format(copy.unknown, copy.form, sides)
    shapes = {name: weight.shape for name, weight in source.weights.items()}
    weights = copy.weights_for(shapes)
    pairs = {name: Pair(source.weights[name], weight) for name, weight in weights.items()}
    names = {name: weight.name for name, weight in weights.items()}
    left_out = copy.left_out(source.weights) if len(pairs) < len(source.weights) else ()
    lone = absent(source.weights, names, copy.weights, sides, _tied_to(source, pairs), left_out)
    apart = tuple(
        f"`{shown(name)}` is {list(pair.source.shape)} in the {sides[0]} and {list(pair.copy.shape)} in the {sides[1]}"
        for name, pair in pairs.items()
        if not pair.copy.may_have_shape(pair.source.shape)
    )
    if lone.of_another or apart:
        return BaseComparison(verdict=BaseVerdict.DIFFERENT, differences=lone.of_another + apart[:_LISTED])
    with nullcontext() if bar is None else bar(numbers_in(pairs, full=full)) as progress:
        evidence = compare_numbers(source, copy, pairs, full=full, progress=progress)
    found = verdict_of(evidence, copy.form, sides)
    if evidence.is_moved and evidence.is_alike:
        found = _graded(found, source, copy, pairs, evidence)
    return found.doubted(lone.unseen)


def _graded(
    found: BaseComparison, source: FileModel, copy: FileModel, pairs: Mapping[str, Pair], evidence: Evidence
) -> BaseComparison:
    """Judge numbers that left their intervals or have none: whole rows show the work of an algorithm.

    Norms that differ may be those from which an algorithm took the factors of columns.
    """
    left = any(tally.outside for tally in evidence.rounded.values())
    moved = [*evidence.graded, *(name for name, tally in evidence.rounded.items() if tally.outside)]
    codes = [name for name in moved if len(pairs[name].copy.shape) > 1]
    tallies = evidence.rounded | evidence.graded
    unlike = {name for name in codes if tallies[name].correlation < _LEAST_UNSEEN}
    chosen = sorted(unlike | set(codes[:: -(-len(codes) // _MOST_WINDOWS) or 1]))
    norms = {
        name: _factors(source, copy, pairs[name])
        for name, tally in evidence.kept.items()
        if tally.outside and len(pairs[name].copy.shape) == 1
    }

    def seen(name: str, rows: int) -> Window:
        return window((pairs[name].source, source.reader), (pairs[name].copy, copy.reader), rows)

    figured = [figures(seen(name, ROWS), tuple(norms.values())) for name in chosen]
    folded = {
        norm
        for norm, factors in norms.items()
        if any(is_folded(factors, seen(name, _ROWS_OF_NORM)) for name in nsmallest(_NEAR, codes, key=_distance(norm)))
    }
    apart = [name for name, tally in evidence.kept.items() if tally.outside and name not in folded]
    equal = len(evidence.kept) - len(folded) - len(apart)
    graded = judged(figured, kept=equal, folded=len(folded), apart=apart, form=copy.form, may_be_rounded=not left)
    if not graded.is_likely:
        return replace(found, verdict=BaseVerdict.SAME_SHAPES, differences=(*found.differences, *graded.evidence))
    form = copy.form if copy.form in MOVING or graded.how not in MOVING else f"{copy.form}, {graded.how}"
    return replace(found, verdict=BaseVerdict.LIKELY_SAME_QUANTISED, form=form, differences=graded.evidence)


def _distance(norm: str) -> Callable[[str], int]:
    """Return how far a weight is from a norm, by how much of their names is the same."""
    parts = norm.split(".")
    return lambda name: -sum(1 for _ in takewhile(bool, map(eq, parts, name.split("."))))


def _factors(source: FileModel, copy: FileModel, pair: Pair) -> Numbers:
    """By how much each number of a norm is smaller in the copy."""
    at = np.arange(prod(pair.source.shape))
    return factors_of(pair.source.ranges(source.reader, at).value, pair.copy.ranges(copy.reader, at).value)


def _tied_to(model: FileModel, names: Collection[str]) -> Callable[[str], bool]:
    """Whether a tensor of the model has the numbers of one of `names`, which are read when the first one asks."""
    known = cache(lambda: {_start(model, name) for name in names})
    return lambda name: _start(model, name) in known()


def _start(model: FileModel, name: str) -> bytes:
    """Return the numbers at the sampled places of a tensor in floats."""
    weight = model.weights[name]
    return weight.ranges(model.reader, places(weight.shape)).value.tobytes()


def compare_numbers(
    source: FileModel,
    copy: FileModel,
    pairs: Mapping[str, Pair],
    *,
    full: bool = False,
    progress: Progress | None = None,
) -> Evidence:
    """Judge a copy by the numbers of `source`, tensor by tensor; `pairs` are by the source's names.

    `full` compares every number, otherwise windows of 256 around the 16 sampled places of each tensor. `progress` gets
    how many were compared.

    Raises:
        CouldNotTell: a file cannot be read, or changed while it was read.
    """
    stop, one_at_a_time = Event(), Lock()

    def tally(pair: Pair) -> Tally:
        found = Tally()
        exact = isinstance(pair.copy, Plain) and pair.copy.form == pair.source.form  # half a step apart is not equal
        is_norm = pair.copy.form in DTYPES and len(pair.source.shape) == 1
        changes = changes_of(pair.source.form, is_norm=is_norm)
        for at in _chunks(pair.source.shape, full=full):
            if stop.is_set():
                break
            _add(found, pair.source.ranges(source.reader, at), pair.copy.ranges(copy.reader, at), changes, exact=exact)
            if progress is not None:
                with one_at_a_time:
                    progress(len(at))
        return found

    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="compare") as pool:
        try:
            tallies = dict(zip(pairs, pool.map(tally, pairs.values()), strict=True))
        finally:
            stop.set()  # Ctrl-C here must not wait for all of a model
    found = Evidence(is_full=full)
    for name, pair in pairs.items():
        has_ends = pair.copy.is_rounded and not tallies[name].unbounded
        kind = found.kept if pair.copy.form in DTYPES else found.rounded if has_ends else found.graded
        kind[name] = tallies[name]
    return found.settle()


def numbers_in(pairs: Mapping[str, Pair], *, full: bool) -> int:
    """Return how many numbers `compare_numbers` compares, for a progress bar."""
    return sum(_count(pair.source.shape, full=full) for pair in pairs.values())


def _count(shape: tuple[int, ...], *, full: bool) -> int:
    return prod(shape) if full else min(prod(shape), len(places(shape)) * WINDOW)


def _chunks(shape: tuple[int, ...], *, full: bool) -> Iterator[Places]:
    """Yield the places of a tensor that are compared, in rising order."""
    size = prod(shape)
    if full or size <= len(places(shape)) * WINDOW:
        for start in range(0, size, _CHUNK):
            yield np.arange(start, min(start + _CHUNK, size))
        return
    starts = np.unique(np.clip(places(shape) // WINDOW * WINDOW, 0, size - WINDOW))
    yield np.unique((starts[:, None] + np.arange(WINDOW)).reshape(-1))


def _add(found: Tally, source: Ranges, copy: Ranges, changes: Collection[str], *, exact: bool) -> None:
    """Count the numbers of one chunk; `exact`: both have one dtype, so the same number is equal.

    `changes`: what the writer may have done to them before.
    """
    lost = np.isnan(copy.value)
    is_same = source.value == copy.value if exact else (source.low <= copy.high) & (copy.low <= source.high)
    unbounded = np.isnan(copy.low) & ~lost
    outside = ~(is_same | unbounded | (lost & np.isnan(source.value)))
    for change in changes:
        number = _CHANGES[change](source.value)
        is_inside = number == copy.value if exact else (copy.low <= number) & (number <= copy.high)
        found.otherwise[change] = found.otherwise.get(change, 0) + int((outside & ~is_inside).sum())
    found.unbounded += int(unbounded.sum())
    found.numbers += len(lost)
    found.lost += int(lost.sum())
    numbers, values = np.where(lost, 0.0, source.value), np.where(lost, 0.0, copy.value)
    found.source += float(numbers @ numbers)
    found.copy += float(values @ values)
    found.both += float(numbers @ values)
    wide = VAGUE * float(np.sqrt((numbers @ numbers) / max(1, len(numbers))))
    found.vague += int(((copy.low < -wide) & (wide < copy.high)).sum())
    count = int(outside.sum())
    if count:
        found.outside += count
        far: Numbers = np.where(outside, np.where(lost, np.inf, np.abs(source.value - copy.value)), -1.0)
        k = int(far.argmax())
        seen = Seen(
            number=float(source.value[k]),
            source=(float(source.low[k]), float(source.high[k])),
            copy=(float(copy.low[k]), float(copy.high[k])),
            value=float(copy.value[k]),
        )
        if found.example is None or seen.distance > found.example.distance:
            found.example = seen


def _bfloat16(numbers: Numbers) -> Numbers:
    codes = numbers.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (codes + 0x7FFF + (codes >> 16 & 1)) & 0xFFFF_0000
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def _float16(numbers: Numbers) -> Numbers:
    with np.errstate(over="ignore"):
        return numbers.astype(np.float16).astype(np.float64)


_CHANGES: Final[Mapping[str, Callable[[Numbers], Numbers]]] = {
    "float16": _float16,
    "bfloat16": _bfloat16,
    ONE_MORE: lambda numbers: _bfloat16(_bfloat16(1 + numbers) - 1),
}
"""As `copies.CHANGES`, for arrays."""
