"""Apple's MLX: `<module>.lora_a` [in, r] and `lora_b` [r, out] in `adapters.safetensors`, both PEFT's transposed.

The config beside it states the scale itself, not an alpha: `lora_parameters.scale` multiplies B·A whatever the rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from adapterhub.core.errors import shown
from adapterhub.formats.foreign.reading import MATRIX, MAX_ALPHA, Cut, Module, Reading, Source
from adapterhub.formats.peft.names import base_is_path
from adapterhub.formats.safetensors.dtypes import FACTOR_DTYPES
from adapterhub.formats.safetensors.header import TensorSpec

_SLOTS: Final = {"lora_a": "a", "lora_b": "b", "m": "m"}


def read(source: Source) -> Reading:
    """The file's modules.

    Raises:
        MalformedTensorFile: the config is missing or states no scale, a pair is not whole, or a module is one that MLX
            and PEFT treat differently.
    """
    scale, model, stated = _config(source)
    groups: dict[str, dict[str, TensorSpec]] = {}
    for spec in source.file.tensors:
        module, _, slot = spec.name.rpartition(".")
        groups.setdefault(module, {})[_SLOTS[slot]] = spec
    modules = [_module(source, name, found, scale) for name, found in groups.items()]
    ranks = {module.rank for module in modules}
    note = f"its config says rank {stated}, its tensors {', '.join(map(str, sorted(ranks)))}"
    settings: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if model is not None:
        settings["base_model_name_or_path"] = model
    return Reading(
        scheme="mlx",
        modules=tuple(modules),
        settings=settings,
        notes=(note,) if ranks != {stated} else (),
        spelling={"scale": scale},
    )


def _config(source: Source) -> tuple[float, str | None, object]:
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
    is_name = isinstance(model, str) and len(model) < 256 and model.isprintable() and not base_is_path(model)  # noqa: PLR2004
    return float(scale), model if is_name else None, parameters.get("rank") if isinstance(parameters, dict) else None


def _module(source: Source, name: str, found: dict[str, TensorSpec], scale: float) -> Module:
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
