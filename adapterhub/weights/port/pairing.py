"""Pairs each module of an old base with the module of a new one, using only names, shapes and samples.

If the new base has fewer layers than the old one, or more, layers are paired by the sampled numbers of their
tensors: in order, each with the one that it is most like.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from adapterhub.core.errors import BaseMismatch, shown
from adapterhub.formats.base.fingerprint import BaseFingerprint, Samples, interval, split_numbers
from adapterhub.formats.base.pairing import paired

_LAYER: Final = re.compile(r"(?P<stack>.*?(?:^|\.))(?P<number>\d+)\.(?P<tail>.+)")
_ALIKE: Final = 0.6
"""The least mean correlation of two layers' samples at which one counts as made from the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePairing:
    """The tensor of the new base for each tensor of the old one.

    `layers` pairs the numbers of layers by stack, where they moved.

    `dropped` has the tensors of the old base that the new one lacks, and `notes` lists them in words.
    """

    tensors: Mapping[str, str]
    layers: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def is_renumbered(self) -> bool:
        """Whether any layer has another number, or none."""
        return bool(self.layers)

    def module(self, old: str, here: str) -> str | None:
        """Return the new name of the adapter's module `old`, which the old base calls `here`.

        None if its layer is gone.
        """
        match = _LAYER.fullmatch(here)
        numbers = self.layers.get(match["stack"]) if match else None
        if match is None or numbers is None:
            return old
        number, ending = numbers.get(int(match["number"])), f"{match['number']}.{match['tail']}"
        if number is None or not old.endswith(ending):
            return None
        return f"{old.removesuffix(ending)}{number}.{match['tail']}"


def pair_bases(old: BaseFingerprint, new: BaseFingerprint, label: str) -> BasePairing:
    """Pair the tensors of two bases; `label` names the new one in messages.

    Raises:
        BaseMismatch: the bases are not of one architecture, or no layer of one is like one of the other.
    """
    names = paired(tuple(old.samples), tuple(new.samples))
    notes: list[str] = []
    layers: dict[str, Mapping[int, int]] = {}
    ours, theirs = _stacks(old.samples), _stacks(new.samples)
    for stack, numbers in ours.items():
        there = theirs.get(stack) or theirs.get(_like(stack, theirs)) or {}
        if not there or len(there) == len(numbers):
            continue
        pairs = _pairs(old.samples, new.samples, numbers, there)
        if not pairs:
            raise BaseMismatch(
                f"base `{shown(label)}` has {len(there)} layers in `{shown(stack.rstrip('.'))}` where the old one has "
                f"{len(numbers)}, and they are not alike enough to be paired",
                hint="train the adapter again on the new base",
            )
        layers[stack] = pairs
        for number, tensors in numbers.items():
            for tail, name in tensors.items():
                names.pop(name, None)
                if (other := there.get(pairs.get(number, -1), {}).get(tail)) is not None:
                    names[name] = other
        gone = sorted(set(numbers) - set(pairs))
        without = sorted(set(there) - set(pairs.values()))
        what = f"`{shown(stack.rstrip('.'))}`"
        if gone:
            notes.append(f"the new base lacks {_listed(gone)} of {what}: their part of the adapter is left out")
        if without:
            notes.append(f"the adapter has no part for {_listed(without)} of {what} in the new base")
    if not names:
        raise BaseMismatch(
            f"base `{shown(label)}` has no tensor of the names of the old one: it is of another architecture",
            hint="train the adapter again on the new base",
        )
    kept = frozenset(names)
    return BasePairing(tensors=names, layers=layers, dropped=frozenset(old.samples) - kept, notes=tuple(notes))


def _stacks(samples: Samples) -> dict[str, dict[int, dict[str, str]]]:
    """Return the tensors of each numbered layer by their last parts, by the part of the model that it is in."""
    found: dict[str, dict[int, dict[str, str]]] = defaultdict(dict)
    for name in samples:
        if match := _LAYER.fullmatch(name):
            found[match["stack"]].setdefault(int(match["number"]), {})[match["tail"]] = name
    return found


def _like(stack: str, others: Mapping[str, object]) -> str:
    """Return the stack of another model whose name one of the two lengthens in front, as with a head."""
    return next((one for one in others if one.endswith(f".{stack}") or stack.endswith(f".{one}")), "")


def _pairs(
    old: Samples, new: Samples, ours: Mapping[int, Mapping[str, str]], theirs: Mapping[int, Mapping[str, str]]
) -> dict[int, int]:
    """Return the new number of each old layer, in order, for the largest sum of likenesses.

    Empty if they are not alike.
    """
    rows, columns = sorted(ours), sorted(theirs)
    likeness = [[_likeness(old, new, ours[i], theirs[j]) for j in columns] for i in rows]
    most = min(len(rows), len(columns))
    best: dict[tuple[int, int], tuple[float, tuple[tuple[int, int], ...]]] = {}
    for i in range(len(rows) + 1):
        for j in range(len(columns) + 1):
            if not (i and j):
                best[i, j] = 0.0, ()
                continue
            total, pairs = best[i - 1, j - 1]
            both = total + likeness[i - 1][j - 1], (*pairs, (rows[i - 1], columns[j - 1]))
            best[i, j] = max(both, best[i - 1, j], best[i, j - 1], key=lambda one: one[0])
    total, pairs = best[len(rows), len(columns)]
    return dict(pairs) if len(pairs) == most and total / most >= _ALIKE else {}


def _likeness(old: Samples, new: Samples, ours: Mapping[str, str], theirs: Mapping[str, str]) -> float:
    """Return the mean correlation of the sampled numbers of two layers, tensor by tensor, at least 0."""
    found = []
    for tail in ours.keys() & theirs.keys():
        one, other = _numbers(*old[ours[tail]]), _numbers(*new[theirs[tail]])
        if len(one) == len(other) and (
            size := math.sqrt(math.fsum(n * n for n in one) * math.fsum(n * n for n in other))
        ):
            found.append(math.fsum(a * b for a, b in zip(one, other, strict=True)) / size)
    return max(0.0, math.fsum(found) / len(found)) if found else 0.0


def _numbers(dtype: str, raw: bytes) -> list[float]:
    """Return the sampled numbers; empty for dtypes that are not floats."""
    found = []
    for one in split_numbers(dtype, raw):
        ends = interval(dtype, one)
        if ends is None or not all(math.isfinite(end) for end in ends):
            return []
        found.append(math.fsum(ends) / 2)
    return found


def _listed(numbers: Sequence[int]) -> str:
    noun = "layer" if len(numbers) == 1 else "layers"
    return f"{noun} {', '.join(map(str, numbers[:10]))}" + (" and more" if numbers[10:] else "")
