"""kohya's sd-scripts, and LyCORIS and OneTrainer in its names: `lora_unet_<module with _ for .>.lora_down.weight`.

`.alpha` beside a pair is its alpha, without one the scale is 1. Names are looked up flattened, because `_` for `.`
cannot be undone by rule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.foreign.places import denoiser, flat_clip, placed
from adapterhub.formats.foreign.products import product_module
from adapterhub.formats.foreign.reading import Method, Module, Reading, Source, lora_module, scalar
from adapterhub.formats.safetensors.header import TensorSpec

_NAME: Final = re.compile(r"(lora_unet|lora_te[123]?|lora_transformer|lycoris)_(\w+)\.([\w.]+)", re.ASCII)
_SLOTS: Final = MappingProxyType(
    {
        "lora_down.weight": "down",
        "lora_up.weight": "up",
        "lora_mid.weight": "mid",
        "dora_scale": "magnitude",
        "alpha": "alpha",
    }
)
TEXT_ENCODERS: Final = MappingProxyType(
    {"lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
)

Groups = dict[tuple[str, str], dict[str, TensorSpec]]


def read(source: Source) -> Reading:
    """The file's modules.

    Raises:
        MalformedTensorFile: a name leads nowhere, a pair is not whole, or an alpha is no scale.
    """
    groups: Groups = {}
    for spec in source.file.tensors:
        found = _NAME.fullmatch(spec.name)
        if found is None:
            source.refuse("E_NAME", f"`{shown(spec.name)}` is no name of kohya's")
        prefix, name, slot = found.groups()
        if prefix == "lora_te3":
            source.refuse("E_UNSUPPORTED", f"`{shown(spec.name)}` is of a T5 text encoder, which has no table here")
        groups.setdefault((prefix, name), {})[_SLOTS.get(slot, slot)] = spec
    method = _method(source, groups)
    names = [name for prefix, name in groups if prefix not in TEXT_ENCODERS]
    family, part, table = denoiser(source, names, is_flat=True) if names else ("", "", {})
    modules: list[Module] = []
    taken: dict[tuple[str, str], str] = {}
    for (prefix, name), found in groups.items():
        label = f"{prefix}_{name}"
        component = TEXT_ENCODERS.get(prefix, part)
        targets = flat_clip().get(name) if prefix in TEXT_ENCODERS else table[name]
        if targets is None:
            source.refuse("E_NAME", f"`{shown(label)}` leads to no module of a CLIP text encoder")
        alpha_spec = found.pop("alpha", None)
        alpha = scalar(source, alpha_spec) if alpha_spec is not None else None
        if method == "LORA":
            own = lora_module(source, component, targets[0].name, found, alpha=alpha, label=label)
        else:
            own = product_module(source, component, targets[0].name, found, method=method, alpha=alpha, label=label)
        for module in placed(source, own, targets, label):
            earlier = taken.setdefault((module.part, module.name), label)
            if earlier != label:
                text = f"`{shown(label)}` and `{shown(earlier)}` are one module, `{module.name}`"
                source.refuse(
                    "E_CONFLICT", text, "the file has two updates for it; only its trainer knows which counts"
                )
            modules.append(module)
    prefixes = sorted({prefix for prefix, _ in groups})
    return Reading(
        scheme="kohya",
        modules=tuple(modules),
        method=method,
        spelling={"family": family, "prefixes": prefixes} if family else {"prefixes": prefixes},
    )


def _method(source: Source, groups: Mapping[tuple[str, str], Mapping[str, TensorSpec]]) -> Method:
    """The one method of all modules.

    Raises:
        MalformedTensorFile: E_UNSUPPORTED for a mixture.
    """
    kinds: dict[Method, str] = {}
    for (prefix, name), found in groups.items():
        slots = "".join(found)
        here: list[Method] = []
        here += ["LOHA"] if "hada_" in slots else []
        here += ["LOKR"] if "lokr_" in slots else []
        here += ["LORA"] if not here or {"down", "up", "mid"} & found.keys() else []
        for kind in here:
            kinds.setdefault(kind, f"{prefix}_{name}")
    if len(kinds) > 1:
        which = ", ".join(f"{kind} on `{shown(name)}`" for kind, name in kinds.items())
        source.refuse("E_UNSUPPORTED", f"mixes methods: {which}", "a PEFT adapter has one method")
    return next(iter(kinds))
