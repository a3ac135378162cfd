"""FLUX.2 of Black Forest Labs, dev and klein: one modulation for all blocks, and gated feed-forwards."""

from __future__ import annotations

from typing import Final

from adapterhub.formats.foreign.families import Family, Target, alone, swapped, thirds

_OURS, _THEIRS = "transformer_blocks.N", "double_blocks.N"
_TIME: Final = "time_guidance_embed"

FAMILY: Final = Family(
    key="flux2",
    title="FLUX.2",
    classes=("Flux2Transformer2DModel",),
    marks=("flux-2", "flux2", "flux.2"),
    modules=alone(
        {
            "img_in": "x_embedder",
            "txt_in": "context_embedder",
            "time_in.in_layer": f"{_TIME}.timestep_embedder.linear_1",
            "time_in.out_layer": f"{_TIME}.timestep_embedder.linear_2",
            "guidance_in.in_layer": f"{_TIME}.guidance_embedder.linear_1",
            "guidance_in.out_layer": f"{_TIME}.guidance_embedder.linear_2",
            "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
            "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
            "single_stream_modulation.lin": "single_stream_modulation.linear",
            "final_layer.linear": "proj_out",
            f"{_THEIRS}.img_attn.proj": f"{_OURS}.attn.to_out.0",
            f"{_THEIRS}.txt_attn.proj": f"{_OURS}.attn.to_add_out",
            f"{_THEIRS}.img_mlp.0": f"{_OURS}.ff.linear_in",
            f"{_THEIRS}.img_mlp.2": f"{_OURS}.ff.linear_out",
            f"{_THEIRS}.txt_mlp.0": f"{_OURS}.ff_context.linear_in",
            f"{_THEIRS}.txt_mlp.2": f"{_OURS}.ff_context.linear_out",
            "single_blocks.N.linear1": f"single_{_OURS}.attn.to_qkv_mlp_proj",
            "single_blocks.N.linear2": f"single_{_OURS}.attn.to_out",
        }
    )
    | {
        "final_layer.adaLN_modulation.1": (Target(name="norm_out.linear", rows=swapped),),
        f"{_THEIRS}.img_attn.qkv": thirds(*(f"{_OURS}.attn.to_{x}" for x in "qkv")),
        f"{_THEIRS}.txt_attn.qkv": thirds(*(f"{_OURS}.attn.add_{x}_proj" for x in "qkv")),
    },
    ratios={
        f"{_THEIRS}.img_mlp.0": 6,
        f"{_THEIRS}.img_mlp.2": 1 / 3,
        f"{_THEIRS}.txt_mlp.0": 6,
        f"{_THEIRS}.txt_mlp.2": 1 / 3,
        "single_blocks.N.linear1": 9,
        "single_blocks.N.linear2": 1 / 4,
    },
    depths={"transformer_blocks": 8, "single_transformer_blocks": 48},
    widths=(3072, 4096, 6144),
)
