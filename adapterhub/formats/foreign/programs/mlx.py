"""Apple's MLX: `<module>.lora_a` [in, r] and `lora_b` [r, out] in `adapters.safetensors`, both PEFT's transposed.

The layers of experts (`switch_mlp.gate_proj`) are one each for all experts of a layer, [experts, r, in] and
[experts, out, r], not transposed; before mlx-lm 0.28.3, `lora_a` was [experts * r, in] (`LoRASwitchLinear`).
The config beside it states the scale itself, not an alpha: `lora_parameters.scale` multiplies B·A whatever the rank.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.foreign.reading import MATRIX, MAX_ALPHA, Cut, FactorSource, Module, Reading
from adapterhub.formats.foreign.writing import ForeignOutput, Program, Read, plain_alpha
from adapterhub.formats.peft.fields import base_is_path
from adapterhub.formats.safetensors.header import FACTOR_DTYPES, TensorSpec

_SLOTS: Final = {"lora_a": "a", "lora_b": "b", "m": "m"}
_LAYER: Final = re.compile(r"(?:^|\.)layers\.\d+\.")
_SWITCH: Final = re.compile(r"(?P<holder>.+\.(?:switch_mlp|experts))\.(?P<leaf>gate_proj|up_proj|down_proj)", re.ASCII)
_EXPERT: Final = re.compile(r"(?P<holder>.+\.experts)\.(?P<expert>\d+)\.(?P<leaf>\w+)", re.ASCII)
_STACKED: Final = 3
_MIXTRAL: Final = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
"""What mlx-lm makes of the layers of Mixtral and its like, in `block_sparse_moe`."""


def _in_base(holder: str, leaf: str) -> tuple[str, str]:
    """Return the base's names for the experts and a layer, from MLX's."""
    inside, _, called = holder.rpartition(".")
    if called == "switch_mlp" and inside.endswith(".block_sparse_moe"):
        leaf = _MIXTRAL[leaf]
    return f"{inside}.experts", leaf


def _in_mlx(holder: str, leaf: str, called: str) -> str:
    """MLX's name for a layer of all experts, from the base's; `called` is the module of experts there."""
    inside = holder.removesuffix(".experts")
    return f"{inside}.{called}.{next((own for own, theirs in _MIXTRAL.items() if theirs == leaf), leaf)}"


def _pattern(names: Iterable[str]) -> str:
    """Return a pattern of the names, each for all experts."""
    kinds = sorted({re.sub(r"\\\.experts\\\.\d+", r"\\.experts\\.\\d+", re.escape(name)) for name in names})
    return f"^(?:{'|'.join(kinds)})$"


def read(source: FactorSource) -> Reading:
    """Return the file's modules.

    Raises:
        MalformedTensorFile: the config is missing or states no scale, a pair is not whole, or a module is one that MLX
            and PEFT treat differently.
    """
    scale, model, stated = _config(source)
    groups: dict[str, dict[str, TensorSpec]] = {}
    for spec in source.file.tensors:
        module, _, slot = spec.name.rpartition(".")
        groups.setdefault(module, {})[_SLOTS[slot]] = spec
    modules = [module for name, found in groups.items() for module in _modules(source, name, found, scale)]
    ranks = {module.rank for module in modules}
    note = f"its config says rank {stated}, its tensors {', '.join(map(str, sorted(ranks)))}"
    settings: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if model is not None:
        settings["base_model_name_or_path"] = model
    if any(_EXPERT.fullmatch(module.name) for module in modules):  # a list of names would be as large as the weights
        settings["target_modules"] = _pattern(module.name for module in modules)
    return Reading(
        scheme="mlx",
        modules=tuple(modules),
        settings=settings,
        notes=(note,) if ranks != {stated} else (),
        spelling={"scale": scale, **({"experts": "experts"} if any(".experts." in name for name in groups) else {})},
    )


def _config(source: FactorSource) -> tuple[float, str | None, object]:
    config = source.config
    if config is None:
        hint = "the scale is in the config alone; give the folder that holds both"
        source.refuse("E_CONFIG", "is a LoRA of Apple's MLX without the `adapter_config.json` that mlx-lm writes", hint)
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        source.refuse("E_UNSUPPORTED", f"its `fine_tune_type` is {shown(kind, 40)}, expected lora or dora")
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    if type(scale) not in (int, float):
        hint = "MLX's default changed between releases, so it is never guessed; the trainer knows it"
        source.refuse("E_ALPHA", "`lora_parameters.scale` is missing from its config", hint)
    assert isinstance(scale, int | float)
    if not 0 < scale <= MAX_ALPHA:
        source.refuse("E_ALPHA", f"`lora_parameters.scale` is {scale:g}, expected above 0 and at most {MAX_ALPHA}")
    model = config.get("model")
    is_name = isinstance(model, str) and len(model) < 256 and model.isprintable() and not base_is_path(model)
    return float(scale), model if is_name else None, parameters.get("rank") if isinstance(parameters, dict) else None


def _modules(source: FactorSource, name: str, found: dict[str, TensorSpec], scale: float) -> list[Module]:
    """Return the module, or one for each expert."""
    a, b, place = found.get("a"), found.get("b"), _SWITCH.fullmatch(name)
    if a is None or b is None or place is None or len(b.shape) != _STACKED:
        return [_module(source, name, found, scale)]
    experts, out, rank = b.shape
    shape = a.shape if len(a.shape) == _STACKED else (experts, a.shape[0] // max(experts, 1), *a.shape[1:])
    if "m" in found or shape[:2] != (experts, rank) or len(shape) != _STACKED or not all((*a.shape, *b.shape)):
        shapes = f"{list(a.shape)} and {list(b.shape)}"
        expected = "[experts, r, in] and [experts, out, r]"
        source.refuse("E_SHAPE", f"`{shown(name)}` has experts of shapes {shapes}, expected {expected}")
    if a.shape[0] not in (experts, experts * rank):
        source.refuse("E_SHAPE", f"`{shown(name)}` has {a.shape[0]} rows, expected {experts * rank}")
    holder, leaf = _in_base(place["holder"], place["leaf"])
    rows = rank if len(a.shape) == MATRIX else 1
    return [
        Module(
            part="",
            name=f"{holder}.{expert}.{leaf}",
            slots={
                "lora_A.weight": Cut(source=a, shape=(rank, shape[2]), rows=((expert * rows, (expert + 1) * rows),)),
                "lora_B.weight": Cut(source=b, shape=(out, rank), rows=((expert, expert + 1),)),
            },
            rank=rank,
            alpha=scale * rank,
        )
        for expert in range(experts)
    ]


def _module(source: FactorSource, name: str, found: dict[str, TensorSpec], scale: float) -> Module:
    label = shown(name)
    if "a" not in found or "b" not in found:
        there = ", ".join(f"`{slot}`" for slot in sorted(found))
        source.refuse("E_PAIR", f"`{label}` has {there} of a pair of `a` and `b`")
    for spec in found.values():
        if spec.dtype not in FACTOR_DTYPES:
            source.refuse("E_DTYPE", f"`{shown(spec.name)}` is {spec.dtype}, expected {', '.join(FACTOR_DTYPES)}")
    a, b = found["a"], found["b"]
    if name.rpartition(".")[2] == "embed_tokens":
        why = "MLX adds it to the output as well where the base ties both, and PEFT does not"
        source.refuse("E_UNSUPPORTED", f"`{label}` is an embedding", why)
    if len(a.shape) != MATRIX or len(b.shape) != MATRIX or not all((*a.shape, *b.shape)):
        what = "experts" if len(a.shape) == MATRIX + 1 else "factors"
        shapes = f"{list(a.shape)} and {list(b.shape)}"
        source.refuse("E_SHAPE", f"`{label}` has {what} of shapes {shapes}, expected [in, r] and [r, out]")
    if a.shape[1] != b.shape[0]:
        source.refuse("E_RANK", f"`{label}` has factors of ranks {a.shape[1]} and {b.shape[0]}")
    rank, out = b.shape
    if rank > max(out, a.shape[0]):
        source.refuse("E_RANK", f"`{label}` has rank {rank}, more than both sides of its {out} x {a.shape[0]} matrix")
    slots = {
        "lora_A.weight": Cut(source=a, shape=(rank, a.shape[0]), is_transposed=True),
        "lora_B.weight": Cut(source=b, shape=(out, rank), is_transposed=True),
    }
    if "m" in found:
        if found["m"].shape != (out,):
            source.refuse("E_SHAPE", f"`{shown(found['m'].name)}` has shape {list(found['m'].shape)}, expected [{out}]")
        slots["lora_magnitude_vector"] = Cut(source=found["m"], shape=(out,))
    return replace(Module(part="", name=name, slots=slots, rank=rank), alpha=scale * rank)


# ---------------------------------------------------------------- out
def write(reading: Reading, spelling: Mapping[str, Any], _read: Read) -> Program:
    """MLX's files: both factors transposed, and one rank and one scale for all modules.

    Modules of a lower rank are filled with zeros, and a different scale goes into their B; notes list them.

    Raises:
        UnsupportedAdapter: convolutions or biases, modules outside of layers, or DoRA with different ranks or scales.
    """
    reasons = [reason for module in reading.modules if (reason := _obstacle(module))]
    scales = Counter(plain_alpha(m, use_rslora=reading.use_rslora) / m.rank for m in reading.modules)
    stated = spelling.get("scale")
    scale = float(stated) if isinstance(stated, int | float) and stated in scales else scales.most_common(1)[0][0]
    rank = max(module.rank for module in reading.modules)
    uneven = sum(module.rank != rank for module in reading.modules)
    has_magnitudes = any("lora_magnitude_vector" in module.slots for module in reading.modules)
    if has_magnitudes and (uneven or len(scales) > 1):
        reasons.append("MLX has one rank and one scale for all modules, and padding would change DoRA's")
    if reasons:
        raise UnsupportedAdapter("it has no form in MLX; nothing was written", reasons[:20])
    outputs: list[ForeignOutput] = []
    folded = 0
    plain, switches = _switches(reading.modules, "experts" if spelling.get("experts") == "experts" else "switch_mlp")
    for name, experts in switches.items():
        outputs += _stacked(
            name, experts, rank, scale if _scales(experts, use_rslora=reading.use_rslora) == {scale} else 0
        )
    for module in plain:
        a, b = module.slots["lora_A.weight"], module.slots["lora_B.weight"]
        factor = plain_alpha(module, use_rslora=reading.use_rslora) / module.rank / scale
        folded += factor != 1
        outputs += [_half(f"{module.name}.lora_a", a, rank, 1.0), _half(f"{module.name}.lora_b", b, rank, factor)]
        if "lora_magnitude_vector" in module.slots:
            outputs.append(ForeignOutput.of(f"{module.name}.m", module.slots["lora_magnitude_vector"]))
    notes = [f"filled {uneven} of {len(reading.modules)} modules up to rank {rank} with zeros"] if uneven else []
    notes += [f"multiplied the B of {folded} modules, because MLX has one scale for all"] if folded else []
    keys = sorted({_in_layer(name) for name in (*(module.name for module in plain), *switches)})
    config = {
        "fine_tune_type": "dora" if has_magnitudes else "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys},
    }
    return Program(outputs=tuple(outputs), metadata={"format": "mlx"}, notes=tuple(notes), config=config)


def _switches(modules: Iterable[Module], called: str) -> tuple[list[Module], dict[str, dict[int, Module]]]:
    """Return the modules of no experts, and those of experts by MLX's name for all."""
    plain: list[Module] = []
    switches: dict[str, dict[int, Module]] = {}
    for module in modules:
        match = _EXPERT.fullmatch(module.name)
        if match is None:
            plain.append(module)
        else:
            switches.setdefault(_in_mlx(match["holder"], match["leaf"], called), {})[int(match["expert"])] = module
    return plain, switches


def _scales(experts: Mapping[int, Module], *, use_rslora: bool) -> set[float]:
    return {plain_alpha(module, use_rslora=use_rslora) / module.rank for module in experts.values()}


def _stacked(name: str, experts: Mapping[int, Module], rank: int, scale: float) -> Iterable[ForeignOutput]:
    """One tensor of all experts for each factor.

    Raises:
        UnsupportedAdapter: experts are missing, or have another rank or scale than the adapter, or several shapes.
    """
    shapes = {tuple((slot, cut.shape, cut.dtype) for slot, cut in module.slots.items()) for module in experts.values()}
    is_whole = sorted(experts) == list(range(len(experts)))
    if not is_whole or not scale or len(shapes) > 1 or {module.rank for module in experts.values()} != {rank}:
        reason = f"the experts of `{shown(name)}` are not all there at rank {rank} and at one scale"
        raise UnsupportedAdapter("it has no form in MLX; nothing was written", [reason])
    for end, slot in (("a", "lora_A.weight"), ("b", "lora_B.weight")):
        cuts = [experts[expert].slots[slot] for expert in range(len(experts))]
        shape = (len(cuts), *cuts[0].shape)
        yield ForeignOutput(name=f"{name}.lora_{end}", dtype=cuts[0].dtype, shape=shape, parts=tuple(cuts))


def _half(name: str, cut: Cut, rank: int, factor: float) -> ForeignOutput:
    """One factor transposed; `lora_a` is [in, r] and `lora_b` [r, out]."""
    columns, rows = cut.shape
    is_a = name.endswith("_a")
    shape = (rows, rank) if is_a else (rank, columns)
    if shape == (rows, columns) and factor == 1:
        return ForeignOutput(name=name, dtype=cut.dtype, shape=shape, parts=(replace(cut, is_transposed=True),))
    return ForeignOutput(name=name, dtype=cut.dtype, shape=shape, parts=(cut,), rank=rank, factor=factor)


def _obstacle(module: Module) -> str:
    """Return why a module has no form in MLX; "" if it has one."""
    if module.part:
        return f"`{shown(module.name)}` is of a component of an image pipeline"
    if "lora_B.bias" in module.slots:
        return f"`{shown(module.name)}` has a bias of B"
    if len(module.slots["lora_A.weight"].shape) != MATRIX:
        return f"`{shown(module.name)}` is a convolution"
    return (
        "" if _in_layer(module.name) else f"`{shown(module.name)}` is in no layer, and mlx-lm puts adapters on layers"
    )


def _in_layer(name: str) -> str:
    """Return the module's name inside its layer, as `lora_parameters.keys` has it."""
    found = _LAYER.search(name)
    return name[found.end() :] if found else ""
