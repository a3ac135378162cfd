"""Mapping of an adapter's module names to those of its base.

The beginnings of the names may differ, by one rule for the whole adapter: `BertModel` has `encoder.layer.0…` where an
adapter for classification has `bert.encoder.layer.0…`. A rule drops up to three leading parts from the adapter's names
and puts one prefix before the rest; it never maps one layer to another. The rule that finds the most modules wins, and
among equals the one that changes least. If no rule finds all modules, the names that the base has in
another release of transformers are tried: weight files of ViT keep the names of transformers 4, which adapters made
with transformers 5 lack. Those names count only if they cover every module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from adapterhub.formats.modules.key_maps import OtherNames, other_names

_MAX_DROPPED: Final = 3
_SAMPLED: Final = 12
_JUDGED: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Turns an adapter's module name into the base's: removes `dropped` in front and puts `added` there."""

    dropped: str = ""
    added: str = ""

    def apply(self, name: str) -> str:
        """The base's name for an adapter's; a name without the dropped part stays unchanged."""
        if self.dropped and not name.startswith(self.dropped):
            return name
        return self.added + name[len(self.dropped) :]

    def undo(self, name: str) -> str:
        """The adapter's name for a base's."""
        if self.added and not name.startswith(self.added):
            return name
        return self.dropped + name[len(self.added) :]


def find_rule(modules: list[str], base: frozenset[str]) -> Rule:
    """The rule that maps the most of `modules` to names in `base`."""
    best, most = Rule(), sum(m in base for m in modules)
    if most == len(modules):
        return best
    step = max(1, len(modules) // _SAMPLED)
    candidates: Counter[tuple[str, str]] = Counter()
    for module in modules[::step][:_SAMPLED]:
        parts = module.split(".")
        for drop in range(min(_MAX_DROPPED, len(parts) - 1) + 1):
            head, rest = ".".join([*parts[:drop], ""]) if drop else "", ".".join(parts[drop:])
            if rest in base:
                candidates[head, ""] += 1
            candidates.update((head, name[: -len(rest)]) for name in base if name.endswith(f".{rest}"))
    likely = [candidate for candidate, _ in candidates.most_common(_JUDGED)]
    changes_least = sorted(likely, key=lambda c: (c[0].count(".") + c[1].count("."), c))
    for dropped, added in changes_least:
        rule = Rule(dropped=dropped, added=added)
        if not _is_fair(rule, modules):
            continue
        found = len({name for m in modules if (name := rule.apply(m)) in base})
        if found > most:
            best, most = rule, found
    return best


class BaseNames:
    """Maps module names of an adapter to the base and back: by `rule`, then by `other`, names of another release."""

    def __init__(self, rule: Rule, other: OtherNames | None = None) -> None:
        self.rule, self.other = rule, other
        self._here = other.here if other else MappingProxyType({})
        self._there = {name: named for named, name in self._here.items()}

    def here(self, module: str) -> str:
        """The base's name for a module of the adapter."""
        name = self.rule.apply(module)
        return self._here.get(name, name)

    def there(self, module: str) -> str:
        """The adapter's name for a module of the base."""
        return self.rule.undo(self._there.get(module, module))

    def mapped(self, modules: Iterable[str]) -> str:
        """How a key map changed the names of `modules`, as a text after "its"; empty when none was needed."""
        return self.other.note(map(self.rule.apply, modules)) if self.other else ""

    def tensor(self, name: str) -> str:
        """The base's name for a tensor of the adapter."""
        module, _, last = name.rpartition(".")
        return f"{self.here(module)}.{last}"


def find_names(modules: list[str], base: frozenset[str]) -> BaseNames:
    """The rule for the base's own names, or the first one that finds all modules among the names of another release."""
    rule = find_rule(modules, base)
    if all(rule.apply(m) in base for m in modules):
        return BaseNames(rule)
    for other in other_names(base):
        renamed = find_rule(modules, frozenset(other.here))
        if all(renamed.apply(m) in other.here for m in modules):
            return BaseNames(renamed, other)
    return BaseNames(rule)


def _is_fair(rule: Rule, modules: list[str]) -> bool:
    """Whether a rule renames only what holds the layers and never maps one layer to another.

    A number may be dropped only if it is not a layer: it stands before every module, and more numbers follow. A rule is
    unfair when a module with another name already has the target name's prefix.
    """
    if _is_numbered(rule.added):
        return False
    if rule.added and any(m.startswith(rule.added) and not m.startswith(rule.dropped) for m in modules):
        return False
    behind = [m[len(rule.dropped) :] for m in modules if m.startswith(rule.dropped)]
    return not _is_numbered(rule.dropped) or (len(behind) == len(modules) and any(map(_is_numbered, behind)))


def _is_numbered(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))
