"""Every class of transformers' AutoModelFor… mappings, made tiny, with inputs for a batch whose sizes can be confused."""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto import modeling_auto

WIDTH, HEADS, VOCABULARY, SIDE = 32, 4, 99, 32
SPECIAL = ("image_token", "video_token", "vision_start_token", "vision_end_token")
"""Their ids are the last ones of the vocabulary, in this order."""

_SIZES: tuple[tuple[str, int], ...] = (
    (r"^(num_)?(key_value|kv)_heads$|num_key_value_heads", HEADS),
    (r"heads|^n_head$", HEADS),
    (r"head_dim$|^d_kv$|_head_size$|^kv_channels$", WIDTH // HEADS),
    (r"layers$|^n_layer$|^depth$|_depth$|num_blocks$", 2),
    (r"intermediate|ffn_dim|^d_ff$|_inner$|dim_feedforward", 48),
    (r"num_(local_|routed_)?experts$|^n_routed_experts$", 4),
    (r"experts_per_tok$|^top_k$|^moe_topk$", 2),
    (r"vocab_size", VOCABULARY),
    (r"max_.*position|^n_positions$|max_seq|context_length|^n_ctx$", 64),
    (r"^image_size$|^input_size$", SIDE),
    (r"patch_size$", 8),
    (r"^num_mel_bins$|^num_mel_filters$|^input_dim$|^feature_size$", 8),
    (r"_rank$", 8),
    (r"^attention_window$", 4),
    (r"hidden_size$|^d_model$|^n_embd$|^embed_dim$|^dim$|hidden_dim$|^embedding_size$|projection_dim$|^conv_dim$", WIDTH),
)  # fmt: skip


@cache
def classes() -> tuple[tuple[str, str], ...]:
    """The model type and the name of each class, in the order of their names."""
    found = set()
    for name in dir(modeling_auto):
        if name.endswith("_MAPPING_NAMES"):
            for kind, names in getattr(modeling_auto, name).items():
                found |= {(made, kind) for made in ((names,) if isinstance(names, str) else names)}
    return tuple((kind, made) for made, kind in sorted(dict(sorted(found)).items()) if not made.endswith("Config"))


def shrunk(config: PretrainedConfig) -> dict[str, Any]:
    """Small sizes for the config's own settings; those of its parts are configs themselves."""
    made: dict[str, Any] = {}
    for key, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            made[key] = {"model_type": value.model_type, **shrunk(value)}
        elif key == "rope_parameters" and value and "vl" in config.model_type:
            made[key] = value | {"mrope_section": [2, 1, 1]}  # half of a head
        elif type(value) is int:
            size = next((size for pattern, size in _SIZES if re.search(pattern, key)), None)
            if size is not None:
                made[key] = min(size, value) if value > 0 else value
    return made


def _special(key: str) -> int:
    """The id of a special token, by the name of its setting."""
    return next((VOCABULARY - 1 - place for place, name in enumerate(SPECIAL) if key.startswith(name)), 1)


def built(kind: str, name: str) -> nn.Module:
    """A tiny model of the class; fails as transformers does where its config has no small sizes under these names."""
    torch.manual_seed(0)
    small = CONFIG_MAPPING[kind](**shrunk(CONFIG_MAPPING[kind]()))
    for config in (small, *(part for part in vars(small).values() if isinstance(part, PretrainedConfig))):
        for key, value in vars(config).items():
            if key.endswith(("_token_id", "_token_index")) and type(value) is int and value >= VOCABULARY:
                setattr(config, key, _special(key))
    small.pad_token_id = 0
    with torch.device("meta"):  # one that stayed large must not fill the memory
        size = sum(parameter.numel() for parameter in getattr(transformers, name)(small).parameters())
    if size > 5_000_000:
        raise ValueError(f"{size} parameters")
    model: nn.Module = getattr(transformers, name)(small).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # many begin with zeros, through which nothing is seen
            if parameter.is_floating_point() and not parameter.any():
                parameter.normal_(std=0.05)
    return model


def inputs_of(model: nn.Module, rows: int, tokens: int) -> dict[str, Tensor]:
    """A batch for the model: its main input, and whatever else of text it must have."""
    generator = torch.Generator().manual_seed(rows * 100 + tokens)
    taken = inspect.signature(model.forward).parameters
    ids = torch.randint(3, VOCABULARY - 1 - len(SPECIAL), (rows, tokens), generator=generator)
    pixels = torch.randn(rows, 3, SIDE, SIDE, generator=generator)
    known: dict[str, Tensor] = {
        "input_ids": ids,
        "decoder_input_ids": ids.flip(1),
        "pixel_values": pixels,
        "input_features": torch.randn(
            rows, 8, 2 * getattr(model.config, "max_source_positions", 20), generator=generator
        ),
        "input_values": torch.randn(rows, 800, generator=generator),
    }
    main = getattr(model, "main_input_name", "input_ids")
    given = {main: known[main]}
    for name in ("input_ids", "decoder_input_ids"):
        if name in taken and (name == "input_ids" or getattr(model.config, "is_encoder_decoder", False)):
            given[name] = known[name]
    return given


def first_output(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The first tensor of the model's answer that has one entry per row."""
    with torch.no_grad():
        out = model(**inputs)
    values = out.values() if hasattr(out, "values") else out
    rows = len(next(iter(inputs.values())))
    return next(v for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.ndim > 1 and len(v) == rows)
