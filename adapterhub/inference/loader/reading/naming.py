"""The names by which an adapter finds the modules of a model: the model's own, or those of another release."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from adapterhub.formats.modules.key_maps import OtherNames, names_with_all, other_names
from adapterhub.inference.loader.base.model import BaseModel, model_types

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleNames:
    """One set of names for the modules of a base.

    `here` maps each name to the base's own. `other` is None if both are the same; `nearest` then holds the names that
    match more of the adapter's modules than the base's own do, if any.
    """

    here: Mapping[str, str]
    other: OtherNames | None = None
    nearest: OtherNames | None = None
    there: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def adapters_name(self, module: str) -> str:
        """The adapter's name for a module of the base."""
        return self.there.get(module, module)

    def has(self, modules: Iterable[str]) -> bool:
        """Whether the base has all `modules` of an adapter under these names."""
        return all(module in self.here for module in modules)


def names_for(modules: Iterable[str], base: BaseModel, component: str = "") -> ModuleNames:
    """The names of `base` with which an adapter for `modules` was made; the base's own if no set has all of them.

    With `component`, they are the names inside that component of a pipeline, and lead to it alone.
    """
    needed, own = set(modules), _inside(base.modules, component)
    others = other_names(own, _inside(model_types(base), component)) if not needed <= own.keys() else ()
    other = names_with_all(needed, own, others)
    front = f"{component}." if component else ""
    if other is not None:
        here = {named: front + name for named, name in other.here.items()}
        return ModuleNames(here=here, other=other, there={name: named for named, name in here.items()})
    most = max(others, key=lambda o: len(needed & o.here.keys()), default=None)
    if most is not None and len(needed & most.here.keys()) <= len(needed & own.keys()):
        most = None
    here = {name: front + name for name in own}
    there = {name: named for named, name in here.items()} if component else {}
    return ModuleNames(here=here, nearest=most, there=there)


def _inside(names: Mapping[str, _T], component: str) -> dict[str, _T]:
    """What `names` gives for a component and the modules inside it, by their names there."""
    if not component:
        return dict(names)
    inside = {name[len(component) + 1 :]: value for name, value in names.items() if name.startswith(f"{component}.")}
    return inside | ({"": names[component]} if component in names else {})
