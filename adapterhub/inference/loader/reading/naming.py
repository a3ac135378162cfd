"""The names by which an adapter finds the modules of a model: the model's own, or those of another release."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from adapterhub.formats.modules.key_maps import OtherNames, names_with_all, other_names
from adapterhub.inference.loader.base.model import BaseModel, model_types


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


def names_for(modules: Iterable[str], base: BaseModel) -> ModuleNames:
    """The names of `base` with which an adapter for `modules` was made; the base's own if no set has all of them."""
    needed, own = set(modules), base.modules
    others = other_names(own, model_types(base)) if not needed <= own.keys() else ()
    other = names_with_all(needed, own, others)
    if other is not None:
        return ModuleNames(here=other.here, other=other, there={name: named for named, name in other.here.items()})
    most = max(others, key=lambda o: len(needed & o.here.keys()), default=None)
    if most is not None and len(needed & most.here.keys()) <= len(needed & own.keys()):
        most = None
    return ModuleNames(here={name: name for name in own}, nearest=most)
