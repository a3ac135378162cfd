"""Compares two adapters as `adapt compare` does, and forecasts their merge where it is a plain sum of factors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.derived.comparison import Comparison, Side, Stored, compare_sides
from adapterhub.formats.derived.reading import MOST_RANK, AdapterUpdates
from adapterhub.formats.peft.config import owner
from adapterhub.formats.peft.methods import VARIANTS

MOST_NUMBERS: Final = 1 << 28
"""The most numbers in the factors of both adapters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """One of the two: its name in messages, its weight in the merge, and its updates."""

    label: str
    weight: float
    updates: AdapterUpdates


def compare_two(pair: Sequence[Weighted], *, time_s: float) -> Comparison:
    """The comparison. `obstacles` say why there is no forecast; `adapt compare` has those of every kind.

    Raises:
        UnsupportedAdapter: both together are too large, or take longer than `time_s` seconds.
        MergeRefused: numbers that are not finite, or no module to compare; lists every reason.
    """
    numbers = sum(one.a.elements + one.b.elements for side in pair for one in side.updates.modules.values())
    if numbers > MOST_NUMBERS:
        raise UnsupportedAdapter(f"they hold {numbers:,} numbers, compared here up to {MOST_NUMBERS:,}")
    first, second = (side.updates.modules for side in pair)
    for module in sorted(first.keys() & second.keys()):
        if (rank := first[module].rank + second[module].rank) > MOST_RANK:
            raise UnsupportedAdapter(f"`{shown(module)}` has rank {rank} in both together, compared up to {MOST_RANK}")
    end = time.monotonic() + time_s

    def check_time(_done: int, _all: int) -> None:
        if time.monotonic() > end:
            raise UnsupportedAdapter(f"the comparison takes longer than {time_s:g} seconds")

    obstacles = tuple(_obstacles(pair))
    sides = [
        Side(label=one.label, weight=one.weight, modules=one.updates.modules, parts=one.updates.parts) for one in pair
    ]
    stored = None if obstacles else Stored(units=_units(pair))
    return compare_sides(sides, stored=stored, obstacles=obstacles, progress=check_time)


def _obstacles(pair: Sequence[Weighted]) -> Iterator[str]:
    for one in pair:
        config = one.updates.config
        for variant in config.variants.values():
            if variant.merging == "never":
                yield f"`{shown(one.label)}` {variant.what}"
        if one.updates.others or config.lora_bias:
            yield f"`{shown(one.label)}` holds tensors beside its factors, which only `adapt compare` counts"
        if one.updates.unclear:
            yield f"`{shown(one.label)}` holds pairs whose meaning its files leave open"
    for key in (key for key, variant in VARIANTS.items() if variant.merging == "alike"):
        first, second = (getattr(one.updates.config, key) or () for one in pair)
        if first != second:
            yield f"they differ in `{key}`"
    first, second = (one.updates.modules for one in pair)
    for module in sorted(first.keys() & second.keys()):
        if first[module].layout != second[module].layout:
            yield f"`{shown(module)}` has another shape in each"
            return


def _units(pair: Sequence[Weighted]) -> tuple[tuple[str, ...], ...]:
    """The modules that a merge stores at one rank: the pairs that PEFT nests on one module of the base."""
    units: dict[str, list[str]] = {}
    for module in sorted({module for one in pair for module in one.updates.modules}):
        units.setdefault(owner(module), []).append(module)
    return tuple(tuple(modules) for modules in units.values())
