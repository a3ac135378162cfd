"""Pairs on bare parameters of the base (PEFT's `target_parameters`), such as the stacked experts of a mixture model.

PEFT wraps a module once for each of its parameters that is a target, and names the pairs by depth: `experts` is the
outermost wrapper, `experts.base_layer` the next. It wraps in the order of the module's parameters, so the last one is
outermost. A file written for another order has other shapes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.reading.naming import ModuleNames

_WRAPPED: Final = ".base_layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """`names`: the base's parameter by the module (and depth) under which the file has its pair.

    `missing` and `unclear` describe for people which pairs the file lacks, and which targets are ambiguous.
    """

    names: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)


def holder_of(module: str) -> str:
    """The module that a wrapper of parameters wraps: `experts` for `experts.base_layer`."""
    while module.endswith(_WRAPPED):
        module = module.removesuffix(_WRAPPED)
    return module


def parameters_in(factors: Collection[str], config: AdapterConfig, base: BaseModel, names: ModuleNames) -> Parameters:
    """The parameter of the base for each of the adapter's pairs on parameters."""
    found = Parameters()
    seen: set[int] = set()
    for name, module in base.modules.items() if config.target_parameters else ():
        called = names.adapters_name(name)
        targets = set(config.parameters_of(called))
        own = [key for key, _ in module.named_parameters(recurse=False) if f"{called}.{key}" in targets]
        if not own or id(module) in seen:
            continue
        seen.add(id(module))
        if config.targets(called):
            found.unclear.append(f"`{shown(name)}` is a target itself, and so is its parameter `{own[0]}`")
        for depth, key in enumerate(reversed(own)):
            place = name + ".base_layer" * depth
            found.names[place] = f"{name}.{key}"
            if place not in factors:
                found.missing.append(
                    f"`{shown(name)}`: the config targets its parameter `{shown(key)}`, but the file has no factors"
                    " for it"
                )
    return found
