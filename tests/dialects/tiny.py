"""Tiny models of any class of transformers: its own config, with every size made small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 96
SMALL: dict[str, Any] = dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "embedding_size"), 32)
SMALL |= dict.fromkeys(
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth", "layers",
     "num_decoder_layers", "num_encoder_layers", "encoder_num_hidden_layers", "decoder_num_hidden_layers"), 2
)  # fmt: skip
SMALL |= dict.fromkeys(
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
     "encoder_num_attention_heads", "decoder_num_attention_heads", "attention_heads"), 4
)  # fmt: skip
SMALL |= dict.fromkeys(
    ("num_key_value_heads", "num_kv_heads", "encoder_num_key_value_heads", "decoder_num_key_value_heads",
     "num_global_key_value_heads", "swa_num_key_value_heads"), 2
)  # fmt: skip
SMALL |= dict.fromkeys(("head_dim", "d_kv", "global_head_dim", "attention_head_dim", "swa_head_dim", "kv_channels"), 8)
SMALL |= dict.fromkeys(
    ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size",
     "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size", "intermediate_dim",
     "moe_shared_expert_intermediate_size", "intermediate_size_mlp", "hidden_dim", "expert_ffn_hidden_size",
     "dense_intermediate_size", "mlp_hidden_size", "block_ff_dim", "ffn_intermediate_size"), 48
)  # fmt: skip
SMALL |= dict.fromkeys(
    ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts", "zero_expert_num"), 4
)
SMALL |= dict.fromkeys(
    ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "moe_top_k"), 2
)
SMALL |= dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "num_shared_experts"), 1)
SMALL |= dict.fromkeys(("q_lora_rank", "kv_lora_rank", "projection_dim", "out_hidden_size", "output_dim"), 32)
SMALL |= dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim", "rotary_dim"), 8)
SMALL |= {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "attn_layer_period": 2}
SMALL |= {"attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
SMALL |= {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64}
SMALL |= {"image_size": 16, "patch_size": 8, "num_channels": 3, "num_labels": 3, "sliding_window": 32}
SMALL |= dict.fromkeys(("mamba_d_state", "state_size", "mamba_n_heads", "linear_num_key_heads"), 4)
SMALL |= dict.fromkeys(("linear_num_value_heads", "linear_conv_kernel_dim"), 4)
SMALL |= dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_head"), 8)
"""A small number for each size that a config may have."""


def small_values(config: Any) -> dict[str, Any]:
    """The arguments of a config of the same class with small sizes, and of its parts."""
    own = config.to_dict()
    values: dict[str, Any] = {key: SMALL[key] for key in own if key in SMALL and own[key] is not None}
    layers = next((values[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in values), 2)
    for key, value in own.items():
        if key in ("layer_types", "mlp_layer_types", "layers_block_type") and isinstance(value, list) and value:
            values[key] = _kinds(value, layers)
        if key.endswith(("_token_id", "_token_index")) and isinstance(value, int) and value >= VOCABULARY:
            values[key] = VOCABULARY - 1 - len([k for k in values if k.endswith(("_token_id", "_token_index"))]) % 16
        if key.endswith("_token_id") and isinstance(value, list):
            values[key] = VOCABULARY - 1
    if "qk_rope_head_dim" in own:
        values |= {"num_key_value_heads": SMALL["num_attention_heads"]}
        values.pop("head_dim", None)
    for key in config.sub_configs or {}:
        part = getattr(config, key, None)
        if part is not None:
            values[key] = small_values(part) | {"model_type": part.model_type}
    return values


def _kinds(kinds: list[str], layers: int) -> list[str]:
    """A list of that length with each kind, as far as it goes."""
    distinct = list(dict.fromkeys(kinds))
    return (distinct * layers)[:layers] if len(distinct) <= layers else distinct[:layers]


_SECTIONS = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
TEXTS: dict[str, dict[str, Any]] = dict.fromkeys(
    ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "Glm4vForConditionalGeneration",
     "Glm46VForConditionalGeneration", "GlmOcrForConditionalGeneration", "Glm4vMoeForConditionalGeneration"), _SECTIONS
)  # fmt: skip
"""What the text models of some classes need besides small sizes."""


def build(name: str) -> nn.Module:
    """A tiny model of that class with random weights, the same on each call."""
    made = getattr(transformers, name)
    torch.manual_seed(0)
    values = small_values(made.config_class())
    if name in TEXTS:
        values["text_config"] |= TEXTS[name]
    model: nn.Module = made(made.config_class(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return model


def inputs_of(model: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    """Inputs to try, one of which fits."""
    ids = torch.arange(3, 19)[None]
    yield {"input_ids": ids}
    yield {"input_ids": ids, "decoder_input_ids": ids[:, :6]}
    size = getattr(model.config, "image_size", 16)
    size = size if isinstance(size, int) else size[0]
    yield {"pixel_values": torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size)}
    yield {"input_ids": ids, "pixel_values": torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size)}


def answer(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the model says: logits, or its last states."""
    with torch.no_grad():
        out = model(**inputs)
    for key in ("logits", "logits_per_image", "last_hidden_state", "prediction_logits"):
        if out.get(key) is not None:
            found: Tensor = out[key]
            return found.double()
    raise ValueError(f"no numbers in {list(out)}")
