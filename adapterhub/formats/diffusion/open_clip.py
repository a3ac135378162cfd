"""OpenCLIP's text encoder, as single-file checkpoints hold it, in the names of transformers 4.

Source: `convert_open_clip_checkpoint` of diffusers 0.42, and OpenCLIP's `TextTransformer`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.diffusion.components import TensorView, rows, transposed
from adapterhub.formats.safetensors.header import TensorSpec

_FIXED: Final = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_INSIDE: Final = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_LAYER: Final = re.compile(r"transformer\.resblocks\.([0-9]{1,4})\.(.+)")
_FUSED: Final = {"attn.in_proj_weight": "weight", "attn.in_proj_bias": "bias"}


def open_clip_views(specs: Sequence[TensorSpec], *, is_cut: bool) -> list[TensorView]:
    """Return the tensors of the encoder.

    `is_cut` leaves out the last layer and the projection, as Stable Diffusion 2 does.

    Raises:
        ValueError: a tensor has no place.
    """
    layers = [int(match[1]) for spec in specs if (match := _LAYER.fullmatch(spec.name))]
    last = max(layers, default=-1) if is_cut else -1
    views: list[TensorView] = []
    for spec in specs:
        layer = _LAYER.fullmatch(spec.name)
        if spec.name in _FIXED:
            views.append(TensorView.of(spec, _FIXED[spec.name]))
        elif layer is not None:
            views += _layer(spec, int(layer[1]), layer[2]) if int(layer[1]) != last else []
        elif spec.name == "text_projection":
            views += [] if is_cut else [transposed(spec, "text_projection.weight")]
        elif spec.name != "logit_scale":
            raise ValueError(f"`{shown(spec.name)}` is not a tensor of OpenCLIP's text encoder")
    return views


def _layer(spec: TensorSpec, number: int, rest: str) -> list[TensorView]:
    place = f"text_model.encoder.layers.{number}"
    if rest in _FUSED:
        third = (spec.shape[0] if spec.shape else 0) // 3
        return rows(spec, [(f"{place}.self_attn.{which}_proj.{_FUSED[rest]}", third) for which in "qkv"])
    module, _, last = rest.rpartition(".")
    if module not in _INSIDE:
        raise ValueError(f"`{shown(spec.name)}` is not a tensor of OpenCLIP's text encoder")
    return [replace(TensorView.of(spec), name=f"{place}.{_INSIDE[module]}.{last}")]
