"""diffusers: `unet.<module>.lora_A.weight`, its older spellings, and the names of processors before 0.22.

The scale is that of `lora_adapter_metadata` in the header, or `.alpha` beside the pair, or 1, as diffusers has it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import MalformedConfig, shown
from adapterhub.core.limits import limits
from adapterhub.formats.foreign.conversion import config_of
from adapterhub.formats.foreign.places import clip_name
from adapterhub.formats.foreign.reading import (
    CARRIED,
    HEADER,
    MAX_ALPHA,
    PARTS,
    FactorSource,
    Module,
    Reading,
    lora_module,
    scalar,
)
from adapterhub.formats.foreign.writing import ForeignOutput, Program, Read, alpha_output, plain_alpha
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.header import TensorSpec

_NAME: Final = re.compile(
    rf"(?:(?P<part>{'|'.join(PARTS)})\.)?(?P<module>[\w.-]+?)\."
    r"(?P<slot>lora_[AB](?:\.default)?\.weight|lora_B\.bias|lora\.(?:down|up)\.weight|lora_linear_layer\.(?:down|up)\.weight|"
    r"lora_magnitude_vector(?:\.weight)?|alpha|dora_scale)",
    re.ASCII,
)
_OLD: Final = re.compile(
    rf"(?:(?P<part>{'|'.join(PARTS)})\.)?(?P<module>[\w.]+)\.processor\.to_(?P<to>q|k|v|out)_lora\.(?P<half>down|up)\.weight",
    re.ASCII,
)
SLOTS: Final[Mapping[str, str]] = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_A.default.weight": "down",
    "lora_B.default.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora_B.bias": "bias",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "dora_scale": "magnitude",
    "alpha": "alpha",
}
_CLIP: Final = ("text_encoder", "text_encoder_2")
_PEFT_WORDS: Final = frozenset({"base_layer", "lora_A", "lora_B", "modules_to_save", "default", "base_model"})
_WRAPPER: Final = "text_model."
"""Some classes of CLIP in transformers have it and others do not; a name in the header without it fits both."""

_UNET: Final = ("down_blocks", "up_blocks", "mid_block", "conv_in", "conv_out", "time_embedding", "add_embedding")


def read(source: FactorSource) -> Reading:
    """Return the file's modules.

    Raises:
        MalformedTensorFile: a pair is not whole, one module comes in two spellings, or the header describes another
            adapter.
    """
    groups: dict[tuple[str, str], dict[str, TensorSpec]] = {}
    spelt: dict[tuple[str, str], dict[str, str]] = {}
    has_part = set()
    for spec in source.file.tensors:
        part, module, slot, end = _parsed(source, spec.name)
        has_part.add(part is not None)
        key = (part or ("unet" if module.startswith(_UNET) else "transformer"), module)
        if slot in groups.setdefault(key, {}):
            text = f"`{shown(spec.name)}` and `{shown(groups[key][slot].name)}` are one tensor"
            source.refuse("E_CONFLICT", text, "the file has it in two spellings")
        groups[key][slot] = spec
        spelt.setdefault(key, {})[slot] = end
    if len(has_part) > 1:
        source.refuse("E_SCHEME", "some names begin with a component such as `unet.` and others do not")
    configs = _headers(source, {part for part, _ in groups})
    modules: list[Module] = []
    for (part, name), found in groups.items():
        beside = scalar(source, found.pop("alpha")) if "alpha" in found else None
        config = configs.get(part)
        own = lora_module(source, part, name, found, alpha=beside)
        modules.append(own if config is None else _as_stated(source, own, config, beside))
    stated = {config.use_rslora for config in configs.values()}
    if len(stated) > 1 or (configs and {module.part for module in modules} - configs.keys()):
        source.refuse("E_CONFIG", f"`{HEADER}` states rank and alpha of some components and not of others")
    is_old = any(".processor.to_" in spec.name for spec in source.file.tensors)
    has_alpha = configs or any(module.alpha is not None for module in modules)
    plain = "the file states no alpha, so the scale is 1, as diffusers takes it; a trainer may have used another"
    return Reading(
        scheme="diffusers-old" if is_old else "diffusers",
        modules=tuple(modules),
        use_rslora=stated == {True},
        spelling=_spelling(spelt, is_prefixed=True in has_part, has_header=bool(configs)),
        notes=() if has_alpha else (plain,),
    )


def _parsed(source: FactorSource, name: str) -> tuple[str | None, str, str, str]:
    """Component, module, slot, and how the slot is spelt."""
    found = _OLD.fullmatch(name)
    if found is not None:
        to = "to_out.0" if found["to"] == "out" else f"to_{found['to']}"
        part, module = found["part"], f"{found['module']}.{to}"
        slot, end = found["half"], "processor"
    else:
        found = _NAME.fullmatch(name)
        if found is None:
            source.refuse("E_NAME", f"`{shown(name)}` is no name of diffusers'")
        part, module, end = found["part"], found["module"], found["slot"]
        slot = SLOTS[end]
    words = _PEFT_WORDS.intersection(module.split("."))
    if words:
        source.refuse("E_NAME", f"`{shown(name)}` has PEFT's own word `{min(words)}` in a module's name")
    return part, module, slot, end


def _spelling(
    spelt: Mapping[tuple[str, str], Mapping[str, str]], *, is_prefixed: bool, has_header: bool
) -> dict[str, Any]:
    """Return each slot's usual spelling by component, and whether names have a component and a header the scale."""
    ends: dict[str, Counter[tuple[str, str]]] = {}
    for (part, _), slots in spelt.items():
        ends.setdefault(part, Counter()).update(slots.items())
    usual = {part: dict(pair for pair, _ in reversed(counts.most_common())) for part, counts in ends.items()}
    return {"ends": usual, "prefixed": is_prefixed, "header": has_header}


def _headers(source: FactorSource, parts: set[str]) -> dict[str, AdapterConfig]:
    """Return the LoRA config of each component in the header, checked as any config of PEFT.

    Raises:
        MalformedTensorFile: E_CONFIG and the codes of configs, for a config that is malformed or changes the function.
    """
    text = source.file.metadata.get(HEADER)
    if text is None:
        return {}
    try:
        value = strict_json(text.encode(), limit_bytes=limits().config_bytes)
    except ValueError as error:
        source.refuse("E_CONFIG", f"`{HEADER}` in its header: {shown(str(error))}")
    if not isinstance(value, dict):
        source.refuse("E_CONFIG", f"`{HEADER}` in its header holds {shown(value, 40)}, expected an object")
    found: dict[str, dict[str, Any]] = {}
    for key, item in value.items():
        part, dot, setting = key.partition(".")
        if not dot:  # one component, without a prefix
            part, setting = next(iter(parts)) if len(parts) == 1 else "", key
        if part not in parts:
            source.refuse("E_CONFIG", f"`{HEADER}` has `{shown(key)}`, and the file has no tensors of that component")
        found.setdefault(part, {})[setting] = item
    return {part: _config(source, part, settings) for part, settings in found.items()}


def _config(source: FactorSource, part: str, settings: Mapping[str, Any]) -> AdapterConfig:
    value = {"peft_type": "LORA", **settings}
    where = f"`{HEADER}` of {part}"
    try:
        config = AdapterConfig.parse(json.dumps(value).encode(), where)
    except MalformedConfig as error:
        source.refuse(error.code, f"{where}: {error.reason}")
    if value.get("r") is None or value.get("lora_alpha") is None:
        source.refuse("E_CONFIG", f"{where} states no `r` or no `lora_alpha`")
    odd = [f"`{key}`" for key in config.variants if key not in CARRIED]
    odd += [f"`{shown(key, 40)}`" for key in config.unknown_keys]
    odd += ["`peft_type`"] if not config.is_lora else []
    odd += ["`modules_to_save`"] if config.modules_to_save else []
    odd += ["`bias`"] if config.bias != "none" else []
    odd += ["`auto_mapping`"] if value.get("auto_mapping") else []
    odd += ["`init_lora_weights`"] if config.obstacles else []
    odd += [
        f"`{key}`" for key in ("trainable_token_indices", "layer_replication", "target_parameters") if value.get(key)
    ]
    if odd:
        text = f"{where} sets {', '.join(dict.fromkeys(odd))}, which a LoRA's tensors alone do not carry"
        source.refuse("E_CONFIG", text)
    return config


def _as_stated(source: FactorSource, module: Module, config: AdapterConfig, beside: float | None) -> Module:
    """Return the module with the alpha of the header, after a comparison of what both say."""
    label = f"`{shown(module.name)}`"
    try:
        rank, alpha, is_target = config.rank_of(module.name), config.alpha_of(module.name), config.targets(module.name)
    except MalformedConfig as error:
        source.refuse(error.code, f"`{HEADER}`: {error.reason}")
    if rank != module.rank:
        source.refuse("E_CONFIG", f"`{HEADER}` says rank {rank} for {label}, whose tensors have {module.rank}")
    if not is_target:
        source.refuse("E_CONFIG", f"`{HEADER}` does not target {label}, which has tensors")
    if not 0 < alpha <= MAX_ALPHA:
        source.refuse(
            "E_ALPHA", f"`{HEADER}` says alpha {alpha:g} for {label}, expected above 0 and at most {MAX_ALPHA}"
        )
    if beside is not None and beside != alpha:
        source.refuse("E_CONFLICT", f"{label} has alpha {beside:g} beside it and {alpha:g} in `{HEADER}`")
    has_magnitude = "lora_magnitude_vector" in module.slots
    if config.use_dora != has_magnitude:
        says = "DoRA" if config.use_dora else "no DoRA"
        source.refuse("E_CONFIG", f"`{HEADER}` says {says} for {label}, and its tensors say otherwise")
    return Module(part=module.part, name=module.name, slots=module.slots, rank=module.rank, alpha=float(alpha))


def write(reading: Reading, spelling: Mapping[str, Any], _read: Read) -> Program:
    """Return the file that diffusers loads: names with their component, and rank and alpha of each module in a header.

    If alphas differ, diffusers 0.42 takes the right ones from that header only. A file that had none and needs none
    gets none.
    """
    outputs: list[ForeignOutput] = []
    stated = spelling.get("ends")
    ends: dict[str, Any] = stated if isinstance(stated, dict) else {}
    if not spelling:
        spelt = [replace(m, name=clip_name(m.name)) if m.part in _CLIP else m for m in reading.modules]
        reading = replace(reading, modules=tuple(spelt))
    is_prefixed = spelling.get("prefixed") is not False or len(reading.parts) > 1
    header: dict[str, Any] = {}
    for part in reading.parts:
        modules = tuple(module for module in reading.modules if module.part == part)
        component = part or "transformer"
        usual = ends.get(component)
        own: dict[str, str] = usual if isinstance(usual, dict) else {}
        for module in modules:
            outputs += _outputs(module, component if is_prefixed else "", own, reading, spelling.get("alpha"))
        if spelling.get("header") or reading.use_rslora or any(module.alpha != module.rank for module in modules):
            named = tuple(replace(module, name=module.name.removeprefix(_WRAPPER)) for module in modules)
            config = config_of(Reading(scheme="peft", modules=named, use_rslora=reading.use_rslora))
            header |= {f"{component}.{key}": value for key, value in config.items()}
    metadata = {"format": "pt"}
    if header:
        metadata[HEADER] = json.dumps(header, sort_keys=True)
    return Program(outputs=tuple(outputs), metadata=metadata)


def _outputs(
    module: Module,
    component: str,
    ends: Mapping[str, str],
    reading: Reading,
    kind: Any,
) -> list[ForeignOutput]:
    name = f"{component}.{module.name}" if component else module.name
    found = []
    for slot, cut in module.slots.items():
        usual = ends.get(SLOTS[slot], slot)
        if usual == "processor":
            half = "down" if slot == "lora_A.weight" else "up"
            block, _, to = name.removesuffix(".0").rpartition(".")
            found.append(ForeignOutput.of(f"{block}.processor.{to}_lora.{half}.weight", cut))
            continue
        end = usual if SLOTS.get(usual) == SLOTS[slot] else slot
        out = cut.shape[-1] if len(cut.shape) == 1 else cut.shape[1]
        shape = (out, 1) if end == "dora_scale" else None
        found.append(ForeignOutput.of(f"{name}.{end}", cut, shape))
    if "alpha" in ends:
        alpha = plain_alpha(module, use_rslora=reading.use_rslora)
        found.append(alpha_output(f"{name}.alpha", alpha, kind, module.slots["lora_B.weight"].dtype))
    return found
