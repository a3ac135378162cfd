"""kohya's sd-scripts, and LyCORIS and OneTrainer in its names: `lora_unet_<module with _ for .>.lora_down.weight`.

`.alpha` beside a pair is its alpha, without one the scale is 1. Names are looked up flattened, because `_` for `.`
cannot be undone by rule.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.foreign.conversion import method_of, module_of, settings_of
from adapterhub.formats.foreign.places import (
    NO_DENOISER,
    NamedModule,
    clip_name,
    denoiser,
    family_of,
    flat,
    flat_clip,
    is_fused,
    named,
    own_spelling,
    placed,
)
from adapterhub.formats.foreign.reading import FactorSource, Module, Reading, scalar
from adapterhub.formats.foreign.writing import ForeignOutput, Program, Read, alpha_output, plain_alpha
from adapterhub.formats.safetensors.header import TensorSpec

_NAME: Final = re.compile(
    r"(lora_unet|lora_te[123]?|lora_transformer|lycoris|Hunyuan_video_I2V_lora)_([\w-]+)\.([\w.]+)", re.ASCII
)
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


def read(source: FactorSource) -> Reading:
    """Return the file's modules.

    Raises:
        MalformedTensorFile: a name is unknown, a pair is not whole, or an alpha is not a scale.
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
    method = method_of(source, {f"{prefix}_{name}": slots for (prefix, name), slots in groups.items()})
    own_names = {name: specs for (prefix, name), specs in groups.items() if prefix not in TEXT_ENCODERS}
    spelt = denoiser(source, own_names, is_flat=True) if own_names else NO_DENOISER
    modules: list[Module] = []
    taken: dict[tuple[str, str], str] = {}
    for (prefix, name), specs in groups.items():
        label = f"{prefix}_{name}"
        component = TEXT_ENCODERS.get(prefix, spelt.part)
        targets = flat_clip().get(name) if prefix in TEXT_ENCODERS else spelt.table[name]
        if targets is None:
            source.refuse("E_NAME", f"`{shown(label)}` leads to no module of a CLIP text encoder")
        alpha = scalar(source, specs.pop("alpha")) if "alpha" in specs else None
        own = module_of(source, component, targets[0].name, specs, method=method, alpha=alpha, label=label)
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
        families=spelt.families,
        settings={} if method == "LORA" else settings_of(source, method, modules),
        spelling={"family": spelt.key, "prefixes": prefixes} if spelt.key else {"prefixes": prefixes},
    )


# ---------------------------------------------------------------- out
_VERSIONS: Final = MappingProxyType({"sd1": "sd_v1-5", "sdxl": "sdxl_base_v1-0", "flux": "flux1"})
_GREW: Final = "joined {} modules whose factors differ; their ranks add up, and zeros fill the rest"


def write(reading: Reading, spelling: Mapping[str, Any], read: Read) -> Program:
    """Write the file of kohya: flattened names, SDXL in those of its original checkpoint, an alpha beside each pair.

    Raises:
        UnsupportedAdapter: a module has no name there, parts cannot be joined, or two names flatten to one.
    """
    denoisers = [module for module in reading.modules if module.part not in _ENCODERS]
    plain = [replace(module, alpha=plain_alpha(module, use_rslora=reading.use_rslora)) for module in denoisers]
    family = family_of(reading, plain, spelling.get("family"), is_flat=True)
    is_product = reading.method != "LORA"
    is_apart = is_product and is_fused(plain, family)
    family = own_spelling(family) if is_apart else family  # LyCORIS' names, because only plain LoRA can be joined
    has_alpha = "alpha" in spelling or not spelling or any(module.alpha != module.rank for module in reading.modules)
    stated = spelling.get("prefixes")
    prefixes = [p for p in stated if isinstance(p, str)] if isinstance(stated, list) else []
    usual = "lycoris" if is_apart else "lora_unet"
    own = next((p for p in prefixes if p not in TEXT_ENCODERS), usual)
    first = "lora_te" if "lora_te" in prefixes or (not prefixes and family == "sd1") else "lora_te1"
    outputs: list[ForeignOutput] = []
    ranks: Counter[int] = Counter()
    grew = 0
    for one in named(plain, family, read):
        outputs += _outputs(f"{own}_{flat(one.name)}", one, spelling.get("alpha"), has_alpha=has_alpha)
        ranks[one.module.rank] += 1
        grew += one.grew
    for module in reading.modules:
        if module.part in _ENCODERS:
            prefix = "lora_te2" if module.part == "text_encoder_2" else first
            name = clip_name(module.name)
            alone = NamedModule.alone(name, replace(module, alpha=plain_alpha(module, use_rslora=reading.use_rslora)))
            outputs += _outputs(f"{prefix}_{flat(name)}", alone, spelling.get("alpha"), has_alpha=has_alpha)
            ranks[module.rank] += 1
    _ensure_distinct(outputs)
    rank = ranks.most_common(1)[0][0]
    metadata = {
        "ss_network_module": "lycoris.kohya" if is_product else "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank if reading.modules[0].alpha is None else reading.modules[0].alpha)),
    }
    metadata |= {"ss_network_args": json.dumps({"algo": reading.method.lower()})} if is_product else {}
    version = _VERSIONS.get(family.partition("-")[0])
    metadata |= {"ss_base_model_version": version} if version else {}
    notes = (_GREW.format(grew),) if grew else ()
    return Program(outputs=tuple(outputs), metadata=metadata, notes=notes, hash_key="sshs_model_hash")


_ENDS: Final = MappingProxyType({"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"})
_ENCODERS: Final = ("text_encoder", "text_encoder_2")


def _outputs(key: str, one: NamedModule, kind: Any, *, has_alpha: bool) -> Iterator[ForeignOutput]:
    module = one.module
    for slot, output in one.tensors.items():
        if slot == "lora_B.bias":
            raise UnsupportedAdapter(f"`{shown(module.name)}` has a bias of B, which kohya's files have no place for")
        if slot == "lora_magnitude_vector":
            down, up = one.tensors["lora_A.weight"], one.tensors["lora_B.weight"]
            yield replace(output, name=f"{key}.dora_scale", shape=(up.shape[0], *((1,) * (len(down.shape) - 1))))
        else:
            yield replace(output, name=f"{key}.{_ENDS.get(slot, slot)}")
    if has_alpha:
        value = module.rank if module.alpha is None else module.alpha
        yield alpha_output(f"{key}.alpha", float(value), kind, one.dtype)


def _ensure_distinct(outputs: list[ForeignOutput]) -> None:
    counts = Counter(output.name for output in outputs)
    name, most = counts.most_common(1)[0]
    if most > 1:
        raise UnsupportedAdapter(f"`{shown(name)}` would be the name of {most} modules; nothing was written")
