"""ComfyUI, ai-toolkit and Black Forest Labs: the model's own names, behind `diffusion_model.` or behind nothing.

`text_encoders.clip_l.transformer.` and `clip_g` are the text encoders. `.alpha` beside a pair is its alpha, without one
the scale is 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.foreign.conversion import method_of, module_of, settings_of
from adapterhub.formats.foreign.families import Target
from adapterhub.formats.foreign.places import (
    NO_DENOISER,
    NamedModule,
    clip_name,
    denoiser,
    family_of,
    named,
    placed,
    says_down,
)
from adapterhub.formats.foreign.reading import FactorSource, Module, Reading, scalar
from adapterhub.formats.foreign.tables import clip_modules
from adapterhub.formats.foreign.writing import ForeignOutput, Program, Read, alpha_output, plain_alpha
from adapterhub.formats.safetensors.header import TensorSpec

PREFIX: Final = "diffusion_model."
PREFIXES: Final = (PREFIX, "transformer.")
"""What files have in front of the original names, if anything; the first is ComfyUI's own."""

ENCODERS: Final = MappingProxyType(
    {
        "text_encoders.clip_l.transformer.": "text_encoder",
        "text_encoders.clip_g.transformer.": "text_encoder_2",
    }
)
_NAME: Final = re.compile(
    r"(?P<module>[\w.-]+?)\.(?P<slot>lora_[AB](?:\.default)?\.weight|lora_(?:down|up|mid)\.weight|lora\.(?:down|up)\.weight|lora_B\.bias|"
    r"alpha|dora_scale|hada_\w+|lokr_\w+)",
    re.ASCII,
)
_SLOTS: Final = MappingProxyType(
    {
        "lora_A.weight": "down",
        "lora_B.weight": "up",
        "lora_A.default.weight": "down",
        "lora_B.default.weight": "up",
        "lora_down.weight": "down",
        "lora_up.weight": "up",
        "lora.down.weight": "down",
        "lora.up.weight": "up",
        "lora_mid.weight": "mid",
        "lora_B.bias": "bias",
        "dora_scale": "magnitude",
        "alpha": "alpha",
    }
)


def read(source: FactorSource) -> Reading:
    """Return the file's modules.

    Raises:
        MalformedTensorFile: a name is unknown, a pair is not whole, or an alpha is not a scale.
    """
    groups: dict[tuple[str, str], dict[str, TensorSpec]] = {}
    ends: dict[str, str] = {}
    prefixes: set[str] = set()
    for spec in source.file.tensors:
        found = _NAME.fullmatch(spec.name)
        if found is None:
            source.refuse("E_NAME", f"`{shown(spec.name)}` is no name of ComfyUI's")
        module, slot = found["module"], _SLOTS.get(found["slot"], found["slot"])
        prefix = next((p for p in (*ENCODERS, *PREFIXES) if module.startswith(p)), "")
        if not prefix and module.startswith("text_encoders."):
            source.refuse("E_NAME", f"`{shown(module)}` is of a text encoder that has no table here")
        group = groups.setdefault((prefix, module[len(prefix) :]), {})
        if slot in group:
            source.refuse("E_CONFLICT", f"`{shown(spec.name)}` and `{shown(group[slot].name)}` are one tensor")
        group[slot] = spec
        ends[slot] = found["slot"]
        prefixes.add(prefix)
    if len(fronts := sorted(prefixes - ENCODERS.keys())) > 1:
        source.refuse("E_SCHEME", f"some names begin with `{fronts[-1]}` and others do not")
    method = method_of(source, {prefix + name: slots for (prefix, name), slots in groups.items()})
    own_names = {name: specs for (prefix, name), specs in groups.items() if prefix not in ENCODERS}
    spelt = denoiser(source, own_names, is_flat=False) if own_names else NO_DENOISER
    modules: list[Module] = []
    taken: dict[tuple[str, str], str] = {}
    for (prefix, name), found_specs in groups.items():
        is_clip = prefix in ENCODERS and name in clip_modules()
        targets = (Target(name=name),) if is_clip else spelt.table.get(name)
        if targets is None:
            source.refuse("E_NAME", f"`{shown(prefix + name)}` leads to no module of a CLIP text encoder")
        alpha = scalar(source, found_specs.pop("alpha")) if "alpha" in found_specs else None
        component = ENCODERS.get(prefix, spelt.part)
        label = prefix + name
        own = module_of(source, component, targets[0].name, found_specs, method=method, alpha=alpha, label=label)
        for module in placed(source, own, targets, prefix + name):
            earlier = taken.setdefault((module.part, module.name), name)
            if earlier != name:
                source.refuse("E_CONFLICT", f"`{shown(name)}` and `{shown(earlier)}` are one module, `{module.name}`")
            modules.append(module)
    return Reading(
        scheme="comfyui",
        modules=tuple(modules),
        method=method,
        families=spelt.families,
        settings={} if method == "LORA" else settings_of(source, method, modules),
        spelling={"family": spelt.key, "ends": ends, "prefix": fronts[0] if fronts else ""},
    )


# ---------------------------------------------------------------- out
_ORIGINAL: Final = MappingProxyType({"sd1": "sd1-ldm", "sdxl": "sdxl-ldm"})


def write(reading: Reading, spelling: Mapping[str, Any], read: Read) -> Program:
    """ComfyUI's file: the model's own names behind `diffusion_model.`, with an alpha beside each pair where one counts.

    Raises:
        UnsupportedAdapter: a module has no name there, or parts cannot be joined.
    """
    plain = [replace(module, alpha=plain_alpha(module, use_rslora=reading.use_rslora)) for module in reading.modules]
    denoisers = [module for module in plain if module.part not in ENCODERS.values()]
    family = family_of(reading, denoisers, spelling.get("family"), is_flat=False)
    prefix = spelling["prefix"] if spelling.get("prefix") in ("", *PREFIXES) else PREFIX
    stated = spelling.get("ends")
    ends = {slot: end for slot, end in stated.items() if _SLOTS.get(end) == slot} if isinstance(stated, dict) else {}
    if not ends and says_down(family):
        ends = {"down": "lora_down.weight", "up": "lora_up.weight"}
    has_alpha = "alpha" in ends or any(module.alpha != module.rank for module in plain)
    outputs: list[ForeignOutput] = []
    clip = {part: start for start, part in ENCODERS.items()}
    pairs = [(f"{prefix}{one.name}", one) for one in named(denoisers, _ORIGINAL.get(family, family), read)]
    for module in plain:
        if module.part in clip:
            name = clip_name(module.name)
            pairs.append((f"{clip[module.part]}{name}", NamedModule.alone(name, module)))
    for key, one in pairs:
        for slot, output in one.tensors.items():
            if slot == "lora_B.bias":
                raise UnsupportedAdapter(f"`{shown(one.module.name)}` has a bias of B, which ComfyUI has no place for")
            if slot == "lora_magnitude_vector":
                down, up = one.tensors["lora_A.weight"], one.tensors["lora_B.weight"]
                shape = (up.shape[0], *((1,) * (len(down.shape) - 1)))
                outputs.append(replace(output, name=f"{key}.dora_scale", shape=shape))
            else:
                outputs.append(replace(output, name=f"{key}.{ends.get(_SLOTS.get(slot, slot), slot)}"))
        if has_alpha:
            value = float(one.module.rank if one.module.alpha is None else one.module.alpha)
            outputs.append(alpha_output(f"{key}.alpha", value, spelling.get("alpha"), one.dtype))
    return Program(outputs=tuple(outputs), metadata={"format": "pt"})
