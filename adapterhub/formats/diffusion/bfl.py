"""The transformer of Flux, from the names of its original checkpoints to those of diffusers.

Source: `convert_flux_transformer_checkpoint_to_diffusers` of diffusers 0.42. Row counts come from the tensors.
"""

from __future__ import annotations

import re
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.diffusion.components import TensorView, rows, swapped_halves
from adapterhub.formats.safetensors.header import TensorSpec

_EMBEDDERS: Final = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}
FIXED: Final = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"} | {
    f"{old}.{there}": f"time_text_embed.{new}.{here}"
    for old, new in _EMBEDDERS.items()
    for there, here in (("in_layer", "linear_1"), ("out_layer", "linear_2"))
}
SWAPPED: Final = {"final_layer.adaLN_modulation.1": "norm_out.linear"}
DOUBLE: Final = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
DOUBLE_FUSED: Final = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
SINGLE: Final = {"modulation.lin": "norm.linear", "linear2": "proj_out"}
"""The names inside a block, as `DOUBLE`, and those that are fused there, in the order of their rows."""

SINGLE_FUSED: Final = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
_NORMS: Final = {
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
}
_BLOCK: Final = re.compile(r"(double|single)_blocks\.([0-9]{1,4})\.(.+)")
_PLACES: Final = {"double": "transformer_blocks", "single": "single_transformer_blocks"}


def flux_views(spec: TensorSpec, width: int) -> list[TensorView]:
    """Return the tensors of diffusers' `FluxTransformer2DModel` that `spec` holds.

    `width` is that of the model's stream.

    Raises:
        ValueError: it is not a tensor of Flux, or its rows are not those of the model.
    """
    module, _, last = spec.name.rpartition(".")
    if module in FIXED:
        return [TensorView.of(spec, f"{FIXED[module]}.{last}")]
    if module in SWAPPED:
        return [swapped_halves(spec, f"{SWAPPED[module]}.{last}")]
    block = _BLOCK.fullmatch(spec.name)
    if block is None:
        raise ValueError(f"`{shown(spec.name)}` is not a tensor of Flux")
    place, inside = f"{_PLACES[block[1]]}.{block[2]}", block[3]
    if inside in _NORMS:
        return [TensorView.of(spec, f"{place}.{_NORMS[inside]}")]
    kind = inside.rpartition(".")[0]
    plain = DOUBLE if block[1] == "double" else SINGLE
    if kind in plain:
        return [TensorView.of(spec, f"{place}.{plain[kind]}.{last}")]
    if block[1] == "double" and kind in DOUBLE_FUSED:
        return rows(spec, [(f"{place}.{name}.{last}", width) for name in DOUBLE_FUSED[kind]])
    if block[1] == "single" and kind == "linear1":
        counts = (width, width, width, (spec.shape[0] if spec.shape else 0) - 3 * width)
        return rows(spec, [(f"{place}.{n}.{last}", c) for n, c in zip(SINGLE_FUSED, counts, strict=True)])
    raise ValueError(f"`{shown(spec.name)}` is not a tensor of Flux")
