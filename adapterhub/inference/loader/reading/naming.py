"""Under which names an adapter finds the modules of a model: the model's own, or those of another release."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from adapterhub.formats.modules.key_maps import OtherNames, names_with_all, other_names
from adapterhub.inference.loader.base.model import BaseModel, model_types


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleNames:
    """One way to name the modules of a base.

    `here` leads from each name to the base's own, for every module. `other` is None when both are the same; `nearest`
    is then what would have named most of the adapter's modules, if anything names more of them than the base does.
    """

    here: Mapping[str, str]
    other: OtherNames | None = None
    nearest: OtherNames | None = None
    there: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def adapters_name(self, module: str) -> str:
        """What the adapter calls a module of the base."""
        return self.there.get(module, module)


def names_for(modules: Iterable[str], base: BaseModel) -> ModuleNames:
    """The names of `base` that an adapter for `modules` was made with; the base's own when none has all of them."""
    asked, own = set(modules), base.modules
    others = other_names(own, model_types(base)) if not asked <= own.keys() else ()
    other = names_with_all(asked, own, others)
    if other is not None:
        return ModuleNames(here=other.here, other=other, there={name: named for named, name in other.here.items()})
    most = max(others, key=lambda o: len(asked & o.here.keys()), default=None)
    if most is not None and len(asked & most.here.keys()) <= len(asked & own.keys()):
        most = None
    return ModuleNames(here={name: name for name in own}, nearest=most)
