"""XLabs' LoRA of Flux: one update for the fused q, k and v of each stream, one for its output. The scale is 1."""

from __future__ import annotations

from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.foreign.places import placed
from adapterhub.formats.foreign.reading import FactorSource, Module, Reading, lora_module
from adapterhub.formats.foreign.tables import xlabs_modules
from adapterhub.formats.safetensors.header import TensorSpec

_PREFIX: Final = "diffusion_model."
_HALVES: Final = {"down.weight": "down", "up.weight": "up"}


def read(source: FactorSource) -> Reading:
    """Return the file's modules.

    Raises:
        MalformedTensorFile: a name leads nowhere, or a pair is not whole.
    """
    groups: dict[str, dict[str, TensorSpec]] = {}
    prefixed = set()
    for spec in source.file.tensors:
        module, _, half = spec.name.removesuffix(".weight").rpartition(".")
        prefixed.add(module.startswith(_PREFIX))
        groups.setdefault(module.removeprefix(_PREFIX), {})[_HALVES[f"{half}.weight"]] = spec
    if len(prefixed) > 1:
        source.refuse("E_SCHEME", f"some names begin with `{_PREFIX}` and others do not")
    modules: list[Module] = []
    for name, found in groups.items():
        targets = xlabs_modules().get(name)
        if targets is None:
            source.refuse("E_NAME", f"`{shown(name)}` leads to no module of Flux")
        own = lora_module(source, "transformer", targets[0].name, found, alpha=None, label=name)
        modules += placed(source, own, targets, name)
    return Reading(scheme="xlabs", modules=tuple(modules), spelling={"prefixed": True in prefixed})
