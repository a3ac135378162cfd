"""The names that transformers gives in memory to the tensors of a file: a pure reading of its own table of renames.

`transformers.conversion_mapping` publishes, for each model type or class, how the names in files of any age become
those in memory, and which tensors are stacked, joined or cut on the way. Its own names lead to themselves, so a file
with old names, one with new names and an adapter of either release meet under the names in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Final, NamedTuple

_COUNTED: Final = re.compile(r"(?<![^.])(layers?|blocks?|h|experts|resblocks)\.(\d{1,6})(?![^.])")
"""Numbers of things that are alike, unless a rename speaks of one of them (`_SPEAKS_OF_ONE`)."""
_SPEAKS_OF_ONE: Final = re.compile(r"(?<!\w)(layers?|blocks?|h|experts|resblocks)\\?\.\(?\d")
_STAND_IN: Final = 7_000_000
_STOOD_IN: Final = re.compile(r"70000\d\d")
_EXPERT: Final = re.compile(r"(?<![^.])(\d{1,9})(?![^.])")


class Operation(NamedTuple):
    """What happens to the numbers of a tensor on its way into memory: `kind` is the name of transformers' class."""

    kind: str
    dim: int = 0
    other_dim: int = 0
    is_sure: bool = True
    """Whether it happens to every file: a `Transpose` may be left out for files that are turned already."""


STACK: Final = "MergeModulelist"
JOIN: Final = "Concatenate"
CUT: Final = "Chunk"
CUT_BY_SIZE: Final = "Split"
TURN: Final = "Transpose"
WEAVE: Final = "Interleave"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename:
    """One transform of transformers, as its `WeightTransform` has it.

    `targets` replace what one of the patterns `sources` finds. With `operations`, numbers change too: several sources
    are joined, or one source is cut into several targets. `scope` is
    the part of the model (by its name in memory) inside which it applies, None for all of it; `prefix` is what a model
    with a head has in front of that; all of it stands at `place`. With a guard, sources and targets are pairs, and all
    of them wait for the first.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operations: tuple[Operation, ...] = ()
    scope: str | None = None
    prefix: str = ""
    place: str = ""
    has_guard: bool = False
    is_prefix: bool = False
    """Whether it adds or removes a part in front, so that names with and without it may stand in a file."""
    offset: int = 0

    def apply(self, name: str) -> tuple[str, int] | None:
        """Return the next name and the number of the source that was found; None if there is none in `name`."""
        front = f"{self.place}." if self.place else ""
        if self.scope is not None:
            scope, prefix = (f"{part}." if part else "" for part in (self.scope, self.prefix))
            front += prefix + scope if name.startswith(front + prefix + scope) else scope
        if not name.startswith(front):
            return None
        rest = name[len(front) :]
        regex = _compiled(self.sources)
        found = regex.search(rest)
        if found is None:
            return None
        group = next(key for key, value in found.groupdict().items() if value is not None)
        source = int(group[1:])
        target = self.targets[source if self.has_guard else 0]
        first = regex.groupindex[group] + 1
        if self.offset:
            target = target.replace(r"\1", str(int(found.group(first)) + self.offset))
        elif "\\" in target:
            target = _BACKWARD.sub(lambda m: found.group(first + int(m[1]) - 1), target)
        return front + rest.replace(found[0], target, 1), source

    def inside(self, part: str, prefix: str) -> Rename:
        """Return the same for the part `part` of a model, in which `prefix` is the model without head."""
        return replace(self, scope=part.removeprefix(prefix).removeprefix("."), prefix=prefix) if part else self


_BACKWARD: Final = re.compile(r"\\(\d)")


@cache
def _compiled(sources: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern that finds one of `sources`, the longest first, in a group `g0`, `g1`, … of its own.

    `*.` stands for anything up to a dot. What ends in a letter or digit ends there: `weight` is not in `weight_scale`.
    """
    branches = []
    for number, source in sorted(enumerate(sources), key=lambda item: -len(item[1])):
        pattern = source.replace("*.", r".*\.")
        branches.append(f"(?P<g{number}>{pattern}{_END if _ENDS_IN_WORD.search(pattern) else ''})")
    return re.compile("|".join(branches))


_ENDS_IN_WORD: Final = re.compile(r"[a-zA-Z0-9]$")
_END: Final = r"(?!\w)"


class Renamed(NamedTuple):
    """A tensor's name in memory. `by` is the transform that changes its numbers too, if one does, from `source`.

    `expert` is the number of the stacked tensor that `name` then has one more dimension for.
    """

    name: str
    by: Rename | None = None
    source: int = 0
    expert: int | None = None


@dataclass(frozen=True)
class Renames:
    """All transforms of one model, in transformers' order: those of the whole before those of its parts."""

    transforms: tuple[Rename, ...] = ()
    reverse: tuple[Rename, ...] = ()
    """The renames among them the other way round, in the order in which they apply."""

    def __bool__(self) -> bool:
        return bool(self.transforms)

    def __add__(self, other: Renames) -> Renames:
        """Return the renames of two models beside each other."""
        return Renames(self.transforms + other.transforms, other.reverse + self.reverse)

    def at(self, place: str) -> Renames:
        """Return the renames of a component of something larger."""
        return Renames(*(tuple(replace(t, place=place) for t in own) for own in (self.transforms, self.reverse)))

    @cached_property
    def _names(self) -> tuple[Rename, ...]:
        return tuple(t for t in self.transforms if not t.operations)

    @cached_property
    def _numbers(self) -> tuple[Rename, ...]:
        return tuple(t for t in self.transforms if t.operations)

    def of(self, names: Iterable[str]) -> dict[str, Renamed]:
        """Return the name in memory of each tensor of one file."""
        listed = list(names)
        idle = frozenset(t for t in self._names if t.has_guard and not any(_is_guarded(t, name) for name in listed))
        known: dict[str, Renamed] = {}
        return {name: self._one(name, idle) if self._counts else self._alike(name, idle, known) for name in listed}

    @cached_property
    def _counts(self) -> bool:
        return any(t.offset or any(map(_SPEAKS_OF_ONE.search, t.sources)) for t in self.transforms)

    def _alike(self, name: str, idle: frozenset[Rename], known: dict[str, Renamed]) -> Renamed:
        """As `_one`, asked once for all layers and experts."""
        numbers: list[str] = []

        def stand_in(found: re.Match[str]) -> str:
            numbers.append(found[2])
            return f"{found[1]}.{_STAND_IN + len(numbers) - 1}"

        kind = _COUNTED.sub(stand_in, name)
        if kind not in known:
            known[kind] = self._one(kind, idle)
        found = known[kind]
        if not numbers:
            return found
        expert = found.expert
        if expert is not None and expert >= _STAND_IN:
            expert = int(numbers[expert - _STAND_IN])
        return found._replace(name=_STOOD_IN.sub(lambda m: numbers[int(m[0]) - _STAND_IN], found.name), expert=expert)

    def _one(self, name: str, idle: frozenset[Rename]) -> Renamed:
        for transform in self._names:
            if transform not in idle and (changed := transform.apply(name)) is not None:
                name = changed[0]
        for transform in self._numbers:
            if (changed := transform.apply(name)) is not None:
                stacks = any(operation.kind == STACK for operation in transform.operations)
                expert = _lost_number(name, changed[0]) if stacks else None
                return Renamed(changed[0], transform, changed[1], expert)
        return Renamed(name)

    def back(self, names: Iterable[str], *, with_prefixes: bool) -> dict[str, str]:
        """Return a name that leads to each of these names in memory; itself where the table has no other."""
        listed = list(names)
        before = {}
        for name in listed:
            other = name
            for rename in self.reverse:
                if (with_prefixes or not rename.is_prefix) and (changed := rename.apply(other)) is not None:
                    other = changed[0]
            before[name] = other
        again = self.of(before.values())
        return {name: other if again[other].name == name else name for name, other in before.items()}


def _is_guarded(transform: Rename, name: str) -> bool:
    found = transform.apply(name)
    return found is not None and found[1] == 0


def _lost_number(before: str, after: str) -> int | None:
    """Return the number that only the first name has, as a part of its own."""
    numbers = _EXPERT.findall(before)
    kept = _EXPERT.findall(after)
    at = next((i for i, n in enumerate(numbers) if i >= len(kept) or kept[i] != n), None)
    return None if at is None else int(numbers[at])
