"""Families of image and video transformers: the names of their original checkpoints, and what diffusers has for each.

One file a family, found by its place; it has a `FAMILY`. In every name `N` stands for the number of a block. Source:
the converters of diffusers 0.42 in `loaders/single_file_utils.py` and `loaders/lora_conversion_utils.py`.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import import_module
from typing import Final

from adapterhub.formats.foreign.reading import Rows

_HALVES: Final = 2
_PARTS: Final = 3
_NUMBER: Final = "(0|[1-9][0-9]{0,3})"


@dataclass(frozen=True, slots=True)
class Third:
    """The rows of one of three equal parts."""

    part: int

    def __call__(self, out: int, _width: int) -> Rows | None:
        """Return the part's rows of `out`; () where there are no thirds."""
        return ((self.part * out // 3, (self.part + 1) * out // 3),) if out % _PARTS == 0 else ()


@dataclass(frozen=True, slots=True)
class OfLinear1:
    """The rows of q, k and v, as many each as the module has inputs, and behind them those of the feed-forward."""

    part: int

    def __call__(self, out: int, width: int) -> Rows | None:
        """Return the part's rows of `out`; () where none are left for the feed-forward."""
        if out <= _PARTS * width:
            return ()
        return ((self.part * width, (self.part + 1) * width if self.part < _PARTS else out),)


def swapped(out: int, _width: int) -> Rows | None:
    """Return the second half of the rows first: checkpoints have shift and scale, diffusers scale and shift."""
    half = out // _HALVES
    return ((half, out), (0, half)) if out % _HALVES == 0 else ()


def swapped_pair(out: int, width: int) -> Rows | None:
    """Return `swapped` where the rows are one shift and one scale; unchanged rows where there are more."""
    return swapped(out, width) if out == _HALVES * width else None


def all_rows(_out: int, _width: int) -> Rows | None:
    """Every row, in order."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A module of diffusers that has rows of an original one. `rows(out, width)` are they; None: all, in order."""

    name: str
    rows: Callable[[int, int], Rows | None] = all_rows


Targets = tuple[Target, ...]


def alone(names: Mapping[str, str]) -> dict[str, Targets]:
    """Modules that differ by their names only."""
    return {theirs: (Target(name=ours),) for theirs, ours in names.items()}


def thirds(*names: str) -> Targets:
    """Three modules that are one of equal parts in the checkpoint."""
    return tuple(Target(name=name, rows=Third(part)) for part, name in enumerate(names))


def same(*names: str) -> dict[str, Targets]:
    """Modules that have one name in both."""
    return alone({name: name for name in names})


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family. `modules` has the targets by each original name.

    `classes` are diffusers' classes of the transformer; `marks`, how what headers state about the model begins.
    `ratios` has outputs for each input of original modules that another family has in another size. `depths` are the
    most blocks of a list and `widths` the sizes of streams in published models, both by diffusers' names.
    `keeps_names`: files of other programs also have diffusers' names. `says_down`: those of ComfyUI say `lora_down` for
    `lora_A`, because diffusers reads no others.
    """

    key: str
    title: str
    classes: tuple[str, ...]
    modules: Mapping[str, Targets]
    marks: tuple[str, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    depths: Mapping[str, int] = field(default_factory=dict)
    widths: tuple[int, ...] = ()
    keeps_names: bool = False
    says_down: bool = False

    @cached_property
    def own(self) -> Mapping[str, Targets]:
        """The modules under the names of diffusers."""
        return same(*(target.name for targets in self.modules.values() for target in targets))

    @cached_property
    def _originals(self) -> Mapping[str, str]:
        return {target.name: theirs for theirs, targets in self.modules.items() for target in targets}

    def original(self, name: str) -> str | None:
        """Return the original module that holds a module of diffusers; None if the family has no such module."""
        pattern, number = _pattern_of(name, tuple(self._originals))
        found = self._originals.get(pattern)
        return found if found is None else _numbered(found, number)

    def targets(self, original: str) -> Targets:
        """Return the modules of diffusers that an original one holds; () where the family has none of that name."""
        return _found(original, self.modules)

    def table(self, names: Iterable[str], *, is_own: bool, is_flat: bool) -> dict[str, Targets]:
        """Return the targets of each of `names` that has any; `is_flat`: they have `_` for every dot."""
        known = self.own if is_own else self.modules
        if is_flat:
            known = {name.replace(".", "_"): targets for name, targets in known.items()}
        return {name: targets for name in names if (targets := _found(name, known))}

    def written(self, name: str) -> str | None:
        """Return the name that files of other programs have for a module of diffusers.

        None if the family has none.
        """
        return (name if _found(name, self.own) else None) if self.keeps_names else self.original(name)

    def has_all(self, names: Iterable[str]) -> bool:
        """Return whether its transformer has modules of these names in diffusers."""
        return all(_found(name, self.own) for name in names)

    def fits(self, original: str, out: int, width: int, *, is_flat: bool) -> bool:
        """Return whether an original module has so many outputs and inputs, as far as families differ in that."""
        ratios = {name.replace(".", "_"): ratio for name, ratio in self.ratios.items()} if is_flat else self.ratios
        ratio = ratios.get(_pattern_of(original, tuple(ratios))[0])
        return ratio is None or out == ratio * width

    def has_depths(self, depths: Mapping[str, int], *, exactly: bool = False) -> bool:
        """Return whether published models have so many blocks in each list, or exactly so many in some and no fewer."""
        pairs = [(count, self.depths[stack]) for stack, count in depths.items() if stack in self.depths]
        return all(count == most if exactly else count <= most for count, most in pairs) and bool(pairs or not exactly)


def _found(name: str, known: Mapping[str, Targets]) -> Targets:
    pattern, number = _pattern_of(name, tuple(known))
    return tuple(replace(target, name=_numbered(target.name, number)) for target in known.get(pattern, ()))


def _numbered(pattern: str, number: str) -> str:
    return pattern.replace(".N.", f".{number}.")


@cache
def _stacks(patterns: tuple[str, ...]) -> re.Pattern[str] | None:
    """Return the pattern that finds the number of a block in a name; None if no pattern has one."""
    roots = {found[1] for pattern in patterns if (found := re.fullmatch(r"(.+?)[._]N[._].+", pattern))}
    longest = sorted(map(re.escape, roots), key=len, reverse=True)
    return re.compile(rf"({'|'.join(longest)})([._]){_NUMBER}([._].+)", re.ASCII) if longest else None


def _pattern_of(name: str, patterns: tuple[str, ...]) -> tuple[str, str]:
    """Return the name with `N` for its block's number, and that number; "" for a module outside of blocks."""
    stacks = _stacks(patterns)
    found = stacks.fullmatch(name) if stacks else None
    return (f"{found[1]}{found[2]}N{found[4]}", found[3]) if found else (name, "")


@cache
def all_families() -> tuple[Family, ...]:
    """Every family, in the order of the files' names."""
    return tuple(import_module(f"{__name__}.{module.name}").FAMILY for module in pkgutil.iter_modules(__path__))


def family_named(key: str) -> Family | None:
    """Return the family with that key; None if it has no file here."""
    return next((family for family in all_families() if family.key == key), None)


def family_of_class(name: str) -> Family | None:
    """Return the family of a class of diffusers; None if it has no file here."""
    return next((family for family in all_families() if name in family.classes), None)


def having(names: Iterable[str]) -> list[Family]:
    """Return the families whose transformers have modules of all these names in diffusers."""
    wanted = list(names)
    return [family for family in all_families() if family.has_all(wanted)]


def likeliest(families: Sequence[Family], names: Iterable[str], widths: Iterable[int], mark: str = "") -> list[Family]:
    """Those of `families` that a header's word, the numbers of blocks and the widths speak for; never none of several.

    `names` are diffusers'. What fits no family, such as the width of a tiny model, decides nothing.
    """
    depths, widths, mark = _depths(names), set(widths), mark.lower()
    left = [family for family in families if mark.startswith(family.marks)] or list(families)
    left = [family for family in left if family.has_depths(depths)] or left
    left = [family for family in left if not widths.isdisjoint(family.widths)] or left
    return [family for family in left if family.has_depths(depths, exactly=True)] or left


def _depths(names: Iterable[str]) -> dict[str, int]:
    """One more than the highest number of a block in each list."""
    found: dict[str, int] = {}
    for name in names:
        stack, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        if number.isdigit():
            found[stack] = max(found.get(stack, 0), int(number) + 1)
    return found


def titles(families: Sequence[Family]) -> str:
    """Their names in a row, for people."""
    words = [family.title for family in families]
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""
