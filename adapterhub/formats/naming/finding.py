"""Finds the modules of an adapter in a base, whatever release or class of models the adapter's names are of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from types import MappingProxyType
from typing import Final, NamedTuple

from adapterhub.core.errors import shown
from adapterhub.formats.base.fingerprint import OUTPUT_HEADS, is_embedding
from adapterhub.formats.naming.experts import ExpertPart
from adapterhub.formats.naming.renames import JOIN, TURN, WEAVE, Renamed, Renames

Shape = tuple[int, ...]

_TEXT_PARTS: Final = ("language_model", "text_model", "llm")
"""What multimodal models call the text model inside them."""
_MOST_DROPPED: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRule:
    """Turns an adapter's module name into the base's: removes `dropped` in front and puts `added` there."""

    dropped: str = ""
    added: str = ""

    def apply(self, name: str) -> str:
        """Return the base's name for an adapter's; a name without the dropped part stays unchanged."""
        if self.dropped and not name.startswith(self.dropped):
            return name
        return self.added + name[len(self.dropped) :]

    def undo(self, name: str) -> str:
        """Return the adapter's name for a base's."""
        if self.added and not name.startswith(self.added):
            return name
        return self.dropped + name[len(self.added) :]


class Own(NamedTuple):
    """The base's own name of a module or stacked parameter in memory.

    With a `slot`, the base has it cut otherwise: it is that slot of `module`, or `module` is one of several in it.
    """

    module: str
    slot: int | None = None


class Place(NamedTuple):
    """The place of a module of an adapter: a module of the base (see `Own`), or `part` of one of its parameters."""

    module: str
    slot: int | None = None
    part: ExpertPart | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is one module of the base."""
        return self.slot is None and self.part is None


class NamedBase:
    """A base by the names of its modules: the files of one, or a model in memory.

    `tensors` gives its tensors with their shapes, by its own names. `renames` lead from names of files to those in
    memory, which are the base's own if it `is_in_memory` of transformers 5. `experts` says of a parameter in memory
    whether it is transposed, and whether it holds gate and up projection in turns. Asks for none of them before
    an adapter has other names than the base.
    """

    def __init__(
        self,
        *,
        modules: Collection[str],
        tensors: Callable[[], Mapping[str, Shape]],
        renames: Callable[[], Renames] = Renames,
        is_in_memory: bool = False,
        experts: Callable[[str], tuple[bool, bool]] = lambda _: (False, False),
    ) -> None:
        self.modules = modules
        self.is_in_memory = is_in_memory
        self.experts = experts
        self._tensors, self._renames = tensors, renames

    @cached_property
    def tensors(self) -> Mapping[str, Shape]:
        """Shapes by the base's own names."""
        return self._tensors()

    @cached_property
    def renames(self) -> Renames:
        """From names of files to names in memory."""
        return self._renames()

    @cached_property
    def canonical(self) -> Mapping[str, Own]:
        """The base's own name for each module, or stacked parameter, by its name in memory."""
        if self.is_in_memory:
            return {name: Own(name) for name in (*map(_module_of, self.tensors), *self.modules)}
        found: dict[str, Own] = {}
        for name, renamed in self.renames.of(self.tensors).items():
            targets = renamed.by.targets if renamed.by else ("",)
            is_joined = renamed.by is not None and (len(renamed.by.sources) > 1 or len(targets) > 1)
            is_cut = is_joined or renamed.expert is not None
            for slot, target in enumerate(targets):
                there = renamed.name.replace(targets[0], target) if slot else renamed.name
                found.setdefault(_module_of(there), Own(_module_of(name), slot if is_cut else None))
        return found

    @cached_property
    def in_files(self) -> Mapping[str, Own]:
        """The base's own name for each of its modules by its name in files; a model in memory may have two of these."""
        own = {name: Own(name) for name in self.modules}
        if not self.is_in_memory:
            return own
        found: dict[str, Own] = {}
        for with_prefixes in (False, True):
            before = self.renames.back(self.tensors, with_prefixes=with_prefixes)
            for name, other in before.items():
                found.setdefault(_module_of(other), Own(_module_of(name)))
        return found

    def space(self, *, is_canonical: bool) -> Mapping[str, Own]:
        """Return the names in memory, or those in files, with the base's own."""
        return self.canonical if is_canonical else self.in_files

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """The shape of each module's weight, or parameter, by the base's own name."""
        return {_module_of(name): shape for name, shape in self.tensors.items() if not name.endswith(".bias")}

    @cached_property
    def lacks_head(self) -> bool:
        """Whether it has no output head of its own, which then is its input embedding."""
        modules = set(self.canonical)
        has_head = any(name.rpartition(".")[2] in OUTPUT_HEADS for name in modules)
        return not has_head and not self.is_in_memory and any(map(is_embedding, modules))


def _module_of(tensor: str) -> str:
    """Return the module of a tensor, if it is the weight or bias of one.

    A parameter with a name of its own unchanged.
    """
    return tensor.removesuffix(".weight").removesuffix(".bias")


class _Reading(NamedTuple):
    """One way to read an adapter's names: as names of a file (`is_renamed`) or unchanged, then by `rules`.

    `is_canonical`: the result is a name in memory, not one in files. `is_own`: the base's own names, unchanged.
    """

    is_renamed: bool = False
    is_canonical: bool = False
    rules: tuple[NameRule, ...] = ()
    is_own: bool = False


_OWN: Final = _Reading(is_own=True)


class BaseNames:
    """Maps module names of an adapter to a base and back.

    `readings` are the possible readings as texts where several remain; then nothing is mapped. `is_complete`: the base
    has all modules of the adapter.
    """

    def __init__(
        self,
        base: NamedBase,
        reading: _Reading,
        modules: Mapping[str, Shape | None],
        readings: tuple[str, ...] = (),
    ) -> None:
        self._base, self._reading = base, reading
        self.readings = readings
        self._places = {} if readings else _placed(base, reading, modules)
        self.is_complete = not readings and len(self._places) == len(modules)
        self.parts: Mapping[str, ExpertPart] = MappingProxyType(
            {name: place.part for name, place in self._places.items() if place.part is not None}
        )
        self._there = {place.module: name for name, place in self._places.items() if place.is_whole}

    @property
    def is_own(self) -> bool:
        """Whether the adapter's names are the base's own."""
        return self._reading.is_own

    @property
    def rules(self) -> tuple[NameRule, ...]:
        """What was changed in front of names."""
        return self._reading.rules

    def here(self, module: str) -> str:
        """Return the base's name for a module of the adapter; itself if the base has none."""
        if self.is_own:
            return module
        found = self._places.get(module)
        if found is None:
            found = self._others.get(module)
            if found is None:
                placed = _placed(self._base, self._reading, {module: None})
                found = self._others[module] = placed.get(module, Place(module))
        return found.module if found.is_whole else module

    def is_cut_otherwise(self, module: str) -> bool:
        """Return whether the base has this module of the adapter, but not as one of its own modules."""
        place = self._places.get(module)
        return place is not None and not place.is_whole

    @cached_property
    def _others(self) -> dict[str, Place]:
        return {}

    def there(self, module: str) -> str:
        """Return the adapter's name for a module of the base."""
        if self.is_own:
            return module
        return self._there.get(module) or self._all_there.get(module, module)

    def reaches(self, module: str) -> bool:
        """Return whether the adapter's own class may have this module of the base.

        It has no layers of other parts, such as those of a vision tower beside the text model that it was made for.
        """
        added = tuple(rule.added for rule in self.rules)
        name = self._spaced.get(module, module) if added else module
        return not added or name.startswith(added) or not _is_numbered(name) or module in self._there

    @cached_property
    def _spaced(self) -> Mapping[str, str]:
        """The name of each module of the base to which the rules lead."""
        space = self._base.space(is_canonical=self._reading.is_canonical)
        found: dict[str, str] = {}
        for name, own in space.items():
            if own.slot is None and (own.module not in found or name == own.module):
                found[own.module] = name
        return found

    @cached_property
    def _all_there(self) -> Mapping[str, str]:
        """The adapter's names for all modules of the base."""
        base, reading = self._base, self._reading
        found = {name: _undone(self._spaced.get(name, name), reading.rules) for name in base.modules}
        if not reading.is_renamed:
            return found
        named = list(map(_as_tensor, found.values()))
        variants = [base.renames.back(named, with_prefixes=with_them) for with_them in (False, True)]
        before = [{name: _module_of(v[_as_tensor(c)]) for name, c in found.items()} for v in variants]
        return max(before, key=lambda named: sum(named.get(here) == there for here, there in self._there.items()))

    def tensor(self, name: str) -> str:
        """Return the base's name for a tensor of the adapter."""
        module, _, last = name.rpartition(".")
        return f"{self.here(module)}.{last}"

    def mapped(self, modules: Iterable[str] = ()) -> str:
        """Return how names of `modules` were changed, as a text after "its"; empty when none was."""
        changed = next((m for m in sorted(modules) if self.here(m) != m), None)
        if self.is_own or changed is None:
            return ""
        example = f"`{shown(changed)}` is `{shown(self.here(changed))}`"
        if self.rules:
            return f"module names are those of another class of models: {example} in this base"
        older, newer = ("transformers 4", "transformers 5")[:: 1 if self._reading.is_renamed else -1]
        return f"module names are those of {older} and were mapped to those of {newer}, which this base has: {example}"


def ambiguous_names(readings: tuple[str, ...]) -> str:
    """Return that an adapter's names can be read in several ways, in words."""
    return f"its module names can be read in {len(readings)} ways: {'; or '.join(readings)}"


AMBIGUOUS_HINT: Final = (
    "its file does not say which part of the base it is for: give its modules the names of that part"
)


def _as_tensor(module: str) -> str:
    return f"{module}.weight"


def find_names(modules: Mapping[str, Shape | None], base: NamedBase) -> BaseNames:
    """Return the names in `base` for the modules of an adapter, which come with the shape of their update if known.

    Names of files and names in memory are known; after them come the relatives of the class that the adapter was made
    for (with or without a head, the text model inside a multimodal one); then whatever stands in front of the layers.
    Shapes rule readings out. Of two readings that lead to different modules, none is taken.
    """
    if all(module in base.modules for module in modules):
        return BaseNames(base, _OWN, modules)
    for readings in (_known(), _relatives(base, modules), _fronts(base, modules)):
        complete = [(r, p) for r in readings if len(p := _placed(base, r, modules)) == len(modules)]
        fitting = [(r, p) for r, p in complete if _fit(base, p, modules)] or complete
        distinct: list[tuple[_Reading, Mapping[str, Place]]] = []
        for reading, places in fitting:
            if all(places != other for _, other in distinct):
                distinct.append((reading, places))
        if len(distinct) > 1:
            return BaseNames(base, _OWN, modules, tuple(_text(places) for _, places in distinct))
        if distinct:
            return BaseNames(base, distinct[0][0], modules)
    every = [_OWN, *_known(), *_relatives(base, modules), *_fronts(base, modules)]
    most = max(every, key=lambda reading: len(_placed(base, reading, modules)))
    return BaseNames(base, most, modules)


def _text(places: Mapping[str, Place]) -> str:
    name = min(name for name, place in places.items() if place.module != name)
    return f"`{shown(name)}` is `{shown(places[name].module)}`"


def _known() -> list[_Reading]:
    return [_Reading(is_canonical=True), _Reading(is_renamed=True, is_canonical=True)]


def _relatives(base: NamedBase, modules: Iterable[str]) -> list[_Reading]:
    """Return the text model inside a larger one, and the reverse: `model.layers` is `model.language_model.layers`."""
    found = []
    before = _text_fronts(modules)
    for is_canonical in (True, False):
        after = _text_fronts(base.space(is_canonical=is_canonical))
        pairs = product(("model.", *before), ("model.", *after, *([""] if before else [])))
        rules = [NameRule(dropped=old, added=new) for old, new in pairs if old != new]
        found += [_Reading(renamed, is_canonical, (rule, *_HEADS)) for renamed in (True, False) for rule in rules]
    return found


def _text_fronts(names: Iterable[str]) -> tuple[str, ...]:
    """Return the prefixes of the layers of text models among these names."""
    parts = dict.fromkeys(part for name in names for part in _text_parts(name))
    return tuple(f"{part}.{more}" for part in parts for more in ("model.", ""))


_HEADS: Final = tuple(NameRule(dropped=f"{part}.lm_head", added="lm_head") for part in _TEXT_PARTS)


def _text_parts(name: str) -> Iterator[str]:
    """Yield the text models that hold a module, by their names."""
    parts = name.split(".")[:_MOST_DROPPED]
    for at, part in enumerate(parts):
        if part in _TEXT_PARTS:
            yield ".".join(parts[: at + 1])


def _fronts(base: NamedBase, modules: Mapping[str, Shape | None]) -> list[_Reading]:
    """Return readings that change the prefix of the layers, per kind of layers of the adapter."""
    found: list[_Reading] = []
    for canonical in (True, False):
        names = base.space(is_canonical=canonical)
        for renamed in (False, True) if base.renames else (False,):
            stepped = _stepped(base, modules) if renamed else {m: m for m in modules}
            found += [_Reading(renamed, canonical, rules) for rules in _rules(stepped, names)]
    return found


def _stepped(base: NamedBase, modules: Iterable[str]) -> dict[str, str]:
    renamed = base.renames.of(map(_as_tensor, modules))
    return {module: _module_of(renamed[_as_tensor(module)].name) for module in modules}


_MOST_READINGS: Final = 16


def _rules(modules: Mapping[str, str], names: Collection[str]) -> list[tuple[NameRule, ...]]:
    """Set of rules under which each kind of layers is found as a whole, or, if there are none, the largest part.

    No rule leads to where other modules of the adapter are by their own names.
    """
    groups: dict[str, list[str]] = {}
    for module in modules.values():
        if module not in names:
            groups.setdefault(_front(module), []).append(module)
    taken = {_front(module) for module in modules.values() if module in names}
    sets: list[tuple[NameRule, ...]] = [()]
    for front, members in sorted(groups.items()):
        rules = [rule for rule in _candidates(front, members, names) if _front(rule.apply(members[0])) not in taken]
        counted = [(rule, sum(rule.apply(m) in names for m in members)) for rule in rules]
        most = max((count for _, count in counted), default=0)
        best = [rule for rule, count in counted if count == most and count]
        if best:
            sets = [(*before, rule) for before in sets for rule in best][:_MOST_READINGS]
    return [rules for rules in sets if rules]


def _front(module: str) -> str:
    """Return the prefix of the layer's number, with the dot; the whole name if there is no number."""
    parts = module.split(".")
    start = 1 if parts[0].isdecimal() and any(p.isdecimal() for p in parts[1:]) else 0
    at = next((i for i, part in enumerate(parts) if i >= start and part.isdecimal()), None)
    return module if at is None else ".".join([*parts[:at], ""])


def _candidates(front: str, members: list[str], names: Collection[str]) -> list[NameRule]:
    """Rules for the modules with one front, which never change the number of a layer."""
    first, parts = members[0], front.rstrip(".").split(".")
    is_numbered = front.endswith(".")
    found: dict[NameRule, None] = {}
    for drop in range(min(_MOST_DROPPED, len(parts) - (not is_numbered)) + 1):
        dropped = ".".join([*parts[:drop], ""]) if drop else ""
        rest = first[len(dropped) :]
        if rest in names:
            found[NameRule(dropped=dropped)] = None
        added = (name[: -len(rest)] for name in names if name.endswith(f".{rest}"))
        found.update({NameRule(dropped=dropped, added=front): None for front in added if not _is_numbered(front)})
    found = {rule: None for rule in found if not (rule.dropped and rule.added) or _is_neutral(rule.dropped)}
    # `a.b.` to `x.b.` is `a.` to `x.`: of rules that do the same, the first drops least
    kept: dict[str, NameRule] = {}
    for rule in found:
        kept.setdefault(rule.apply(first), rule)
    return list(kept.values())


_NEUTRAL: Final = frozenset({"model", "base_model", "transformer", "module", "_orig_mod"})
"""What holds the layers of a whole model. Any other name says which part of it they are of, and is not changed."""


def _is_neutral(front: str) -> bool:
    return all(part in _NEUTRAL for part in front.rstrip(".").split("."))


def _is_numbered(name: str) -> bool:
    return any(part.isdecimal() for part in name.split("."))


def _undone(name: str, rules: tuple[NameRule, ...]) -> str:
    for rule in sorted(rules, key=lambda r: -len(r.added)):
        if rule.added and name.startswith(rule.added):
            return rule.undo(name)
    for rule in rules:
        if not rule.added and rule.dropped and not rule.dropped.endswith(".lm_head"):
            return rule.undo(name)
    return name


def _placed(base: NamedBase, reading: _Reading, modules: Iterable[str]) -> dict[str, Place]:
    """Return the places of those modules that the base has under this reading; none at all if two have one place."""
    listed = list(modules)
    renamed: Mapping[str, Renamed] = base.renames.of(map(_as_tensor, listed)) if reading.is_renamed else {}
    space = base.space(is_canonical=reading.is_canonical) if not reading.is_own else {}
    names: Collection[str] = base.modules if reading.is_own else space
    found: dict[str, Place] = {}
    for module in listed:
        step = renamed.get(_as_tensor(module)) or Renamed(_as_tensor(module))
        name = _module_of(step.name)
        called = name if name in names else _ruled(name, reading.rules, names)
        if called is None:
            if base.lacks_head and name.rpartition(".")[2] in OUTPUT_HEADS:
                found[module] = Place(module)
            continue
        own = space.get(called) or Own(called)
        if step.by is None:
            found[module] = Place(*own)
        elif (part := _part(base, own.module, step)) is not None:
            found[module] = Place(own.module, own.slot, part)
    return found if len(set(found.values())) == len(found) else {}


def _ruled(name: str, rules: tuple[NameRule, ...], names: Collection[str]) -> str | None:
    for rule in rules:
        if name.startswith(rule.dropped) and (changed := rule.apply(name)) in names:
            return changed
    return None


def _part(base: NamedBase, parameter: str, step: Renamed) -> ExpertPart | None:
    """Return the part of a stacked parameter that a module of single experts is; None if it is not one."""
    assert step.by is not None
    if step.expert is None:
        return None
    kinds = [operation.kind for operation in step.by.operations]
    parts = len(step.by.sources) if JOIN in kinds else 1
    is_transposed, is_interleaved = base.experts(parameter)
    return ExpertPart(
        parameter=parameter,
        expert=step.expert,
        part=step.source if parts > 1 else 0,
        parts=parts,
        is_transposed=is_transposed or TURN in kinds,
        is_interleaved=(is_interleaved or WEAVE in kinds) and parts > 1,
    )


def _fit(base: NamedBase, places: Mapping[str, Place], modules: Mapping[str, Shape | None]) -> bool:
    """Return whether each update has the shape of its weight, either way round, where both are known."""
    for name, place in places.items():
        update, weight = modules[name], base.shapes.get(place.module)
        if update is None or weight is None or not place.is_whole:
            continue
        if len(update) == len(weight) == 2 and sorted(update) != sorted(weight):
            return False
    return True
