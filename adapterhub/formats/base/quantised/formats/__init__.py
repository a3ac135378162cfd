"""One file for each family of formats. Its function `weights(Tensors)` gives the quantised weights that it explains."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from adapterhub.formats.base.quantised.smoothed import smoothed
from adapterhub.formats.base.quantised.weight import Tensors, Weight


def explained(model: Tensors) -> Mapping[str, Weight]:
    """Return the quantised weights of a model, by the names of the source's tensors.

    Raises:
        Malformed: two formats explain one weight, or a tensor is not as its format needs.
    """
    found: dict[str, Weight] = {}
    for module in sorted(each.name for each in pkgutil.iter_modules(__path__)):
        for name, weight in import_module(f"{__name__}.{module}").weights(model).items():
            if name in found:
                raise model.refuse(name, f"reads as {found[name].form} and as {weight.form}")
            found[name] = smoothed(model, weight)
    return found
