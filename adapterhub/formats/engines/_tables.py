"""What the source of an engine says of each class of models: tables that `docs/engine_tables` writes.

The tables hold a list of facts, and for each release the number of the fact of each architecture, as `architectures`
in a base's `config.json` names it. A name of a module in them has `*` for each number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

_NUMBER: Final = re.compile(r"(?<![^.])\d{1,9}(?![^.])")
_EXPERT: Final = re.compile(r"(?P<holder>(?:.*\.)?experts)\.(?P<number>\d{1,9})\.(?P<leaf>[^.]+)")
_STACKED: Final = (".experts", ".experts.base_layer")
_TENSOR: Final = ".lora_A.weight"


@dataclass(frozen=True)
class Models:
    """One class of models of an engine. `values` are its facts in the table; `inner` is the class inside, if known."""

    values: Mapping[str, Any]
    inner: Models | None = None

    @property
    def has_lora(self) -> bool:
        """Whether the engine adapts it at all."""
        return bool(self.values.get("lora", True))

    @property
    def is_backend(self) -> bool:
        """Whether transformers' own class of a text model runs, whose linear layers the engine adapts."""
        return bool(self.values.get("backend"))

    @property
    def is_unread(self) -> bool:
        """Whether a class runs, or is inside, whose modules the table does not have."""
        is_inside = bool(self.values.get("inner")) and (self.inner is None or self.inner.is_backend)
        return bool(self.values.get("unread")) or is_inside

    @property
    def language(self) -> str:
        """The name of the language model inside; empty if there is none."""
        return str(self.values.get("language", ""))

    @property
    def stacks_experts(self) -> bool:
        """Whether all experts of a layer have one pair (3-D), not each its own (2-D)."""
        return bool(self.values.get("three")) or (self.inner is not None and self.inner.stacks_experts)

    @cached_property
    def bound(self) -> frozenset[str]:
        """The modules that a pair may be for, by the engine's names."""
        found = _names(self.values.get("bound", {}))
        if self.inner is not None:
            found |= {f"{place}.{name}" for place in self.values["inner"] for name in self.inner.bound}
        return frozenset(found)

    @cached_property
    def towers(self) -> frozenset[str]:
        """The same for the parts that see or hear."""
        return frozenset(_names(self.values.get("towers", {})))

    @cached_property
    def known(self) -> frozenset[str]:
        """The last parts of names that the engine accepts; it refuses an adapter with another."""
        own = {_last(name) for name in self.bound | self.towers} | set(self.values.get("known", ()))
        return frozenset(own | (self.inner.known if self.inner is not None else frozenset()))

    def skips(self, module: str) -> bool:
        """Return whether the engine passes over the module by a prefix."""
        return any(f".{p}" in module or module.startswith(p) for p in self.values.get("skip", ()))

    def renamed(self, module: str) -> str:
        """Return the engine's name for a module of the adapter."""
        name = module + _TENSOR
        for kind, source, target in self.values.get("rename", ()):
            if kind == "regex":
                name = re.sub(source, target, name)
            elif kind == "substr":
                name = name.replace(source, target, 1)
            elif kind == "prefix" and name.startswith(source):
                name = target + name[len(source) :]
            elif kind == "suffix" and name.endswith(source):
                name = name[: -len(source)] + target
        return name.removesuffix(_TENSOR)


def _names(found: Mapping[str, str]) -> set[str]:
    return {f"{parent}.{name}" if parent else name for parent, names in found.items() for name in names.split()}


def _last(name: str) -> str:
    at = f".{name}".find(".experts")
    return name[at:].lstrip(".") if at >= 0 else name.rpartition(".")[2]


@dataclass(frozen=True)
class Release:
    """One release of an engine; `limits` hold for all its classes."""

    version: str
    limits: Mapping[str, Any]
    classes: Mapping[str, int]
    facts: Sequence[Mapping[str, Any]] = field(repr=False)

    def models(self, architecture: str, inner: str = "") -> Models | None:
        """Return the class of an architecture, whose language model is of another; None if the release has none."""
        for name in (architecture, architecture.replace("ForSequenceClassification", "ForCausalLM")):
            if name in self.classes:
                values = self.facts[self.classes[name]]
                inside = self.models(inner) if values.get("inner") and inner and inner != name else None
                return Models(values, inside)
        return None

    @cached_property
    def every_leaf(self) -> frozenset[str]:
        """The last parts of the names that some class adapts."""
        used = [self.facts[number].get("bound", {}) for number in set(self.classes.values())]
        return frozenset(_last(name) for bound in used for name in _names(bound))


@cache
def releases(engine: str) -> Mapping[str, Release]:
    """Return the releases that were read, the newest first, by version."""
    value = json.loads((Path(__file__).parent / f"{engine}.json").read_text("utf-8"))
    return {
        version: Release(version, {k: v for k, v in said.items() if k != "classes"}, said["classes"], value["facts"])
        for version, said in value["releases"].items()
    }


def release_of(engine: str, version: str | None) -> Release:
    """Return the release of a version, such as `0.32`; the newest if none was read of it."""
    known = releases(engine)
    for name, release in known.items():
        if version is not None and _minor(name) == _minor(version):
            return release
    return next(iter(known.values()))


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


class Binding(NamedTuple):
    """What a class of models does with each pair of an adapter, by the adapter's own names.

    `dropped` are loaded and have no effect; `refused` keep the adapter from loading. `towers` are dropped unless the
    server adapts the parts that see or hear. `stacked` and `single` are experts in the layout of the other kind of
    class, which refuses them; `skipped` are stacked ones that it does not even find. Of `partial` a part is missing.
    """

    bound: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    towers: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    single: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def bind(
    models: Models, modules: Iterable[str], *, has_text_names: bool = False, experts: int | None = None
) -> Binding:
    """Judge pairs on `modules` for the class; `experts` is the number of them in a layer of the base.

    `has_text_names`: the release also looks for the names that the language model has without its wrapper.
    """
    found: dict[str, list[str]] = {name: [] for name in Binding._fields}
    asked = list(modules)
    there = {models.renamed(module) for module in asked}
    for module in asked:
        found[_place(models, module, there, has_text_names=has_text_names, experts=experts)].append(module)
    return Binding(**{name: tuple(listed) for name, listed in found.items()})


def _place(models: Models, module: str, there: set[str], *, has_text_names: bool, experts: int | None) -> str:
    if models.skips(module):
        return "dropped"
    if models.is_unread:
        return "unknown"
    name = models.renamed(module)
    single = _EXPERT.fullmatch(name)
    if models.is_backend:
        is_expert = single is not None or f".{name}".endswith(_STACKED)
        return "unknown" if is_expert else "refused" if _last(name) == "lm_head" else "bound"
    if f".{name}".endswith(_STACKED):
        return _of_stacked(models, name, there, has_text_names=has_text_names)
    if single and models.stacks_experts:
        return "single"
    pattern = _NUMBER.sub("*", name)
    if ".base_layer" not in f".{name}" and _last(pattern) not in models.known:
        return "refused"
    if models.bound.isdisjoint(_readings(models, pattern, has_text_names=has_text_names)):
        return "towers" if pattern in models.towers else "dropped"
    return "bound" if single is None or _is_whole(single, there, models, experts) else "partial"


def _readings(models: Models, pattern: str, *, has_text_names: bool) -> list[str]:
    """Return the names in the engine that a pair of that name may be for."""
    if not has_text_names or not models.language:
        return [pattern]
    short = [pattern[len("model.") :]] if pattern.startswith("model.") else []
    return [pattern, *(f"{models.language}.{name}" for name in (pattern, *short))]


def _of_stacked(models: Models, name: str, there: set[str], *, has_text_names: bool) -> str:
    """Return the place of a pair on all experts of a layer: gate and up if its name ends in `base_layer`, or down."""
    holder = name.removesuffix(".base_layer")
    readings = _readings(models, _NUMBER.sub("*", holder), has_text_names=has_text_names)
    if models.stacks_experts:
        if models.bound.isdisjoint(readings):
            return "dropped"
        return "bound" if {holder, f"{holder}.base_layer"} <= there else "partial"
    is_there = any(bound.startswith(f"{reading}.*.") for bound in models.bound for reading in readings)
    return "stacked" if is_there else "skipped" if "experts" in models.known else "refused"


def _is_whole(one: re.Match[str], there: set[str], models: Models, experts: int | None) -> bool:
    """Return whether each expert of the layer has each of its pairs."""
    holder = one["holder"]
    place = f"{_NUMBER.sub('*', holder)}.*."
    leaves = {name.rpartition(".")[2] for name in models.bound if place in name}
    numbers = {m["number"] for m in map(_EXPERT.fullmatch, there) if m is not None and m["holder"] == holder}
    count = experts if experts is not None else max(map(int, numbers)) + 1
    return all(f"{holder}.{number}.{leaf}" in there for number in range(count) for leaf in leaves)
