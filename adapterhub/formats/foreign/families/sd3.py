"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import Final

from adapterhub.formats.foreign.families import Family, Target, alone, swapped, swapped_pair, thirds

_OURS: Final = "transformer_blocks.N"
_IMAGE, _TEXT = "joint_blocks.N.x_block", "joint_blocks.N.context_block"
_TIME: Final = "time_text_embed"

FAMILY: Final = Family(
    key="sd3",
    title="Stable Diffusion 3",
    classes=("SD3Transformer2DModel",),
    marks=("stable-diffusion-3", "stable-diffusion-v3", "sd3", "sd_3"),
    modules=alone(
        {
            "x_embedder.proj": "pos_embed.proj",
            "context_embedder": "context_embedder",
            "t_embedder.mlp.0": f"{_TIME}.timestep_embedder.linear_1",
            "t_embedder.mlp.2": f"{_TIME}.timestep_embedder.linear_2",
            "y_embedder.mlp.0": f"{_TIME}.text_embedder.linear_1",
            "y_embedder.mlp.2": f"{_TIME}.text_embedder.linear_2",
            "final_layer.linear": "proj_out",
            f"{_IMAGE}.attn.proj": f"{_OURS}.attn.to_out.0",
            f"{_IMAGE}.attn2.proj": f"{_OURS}.attn2.to_out.0",
            f"{_IMAGE}.mlp.fc1": f"{_OURS}.ff.net.0.proj",
            f"{_IMAGE}.mlp.fc2": f"{_OURS}.ff.net.2",
            f"{_IMAGE}.adaLN_modulation.1": f"{_OURS}.norm1.linear",
            f"{_TEXT}.attn.proj": f"{_OURS}.attn.to_add_out",
            f"{_TEXT}.mlp.fc1": f"{_OURS}.ff_context.net.0.proj",
            f"{_TEXT}.mlp.fc2": f"{_OURS}.ff_context.net.2",
        }
    )
    | {
        "final_layer.adaLN_modulation.1": (Target(name="norm_out.linear", rows=swapped),),
        f"{_IMAGE}.attn.qkv": thirds(*(f"{_OURS}.attn.to_{x}" for x in "qkv")),
        f"{_IMAGE}.attn2.qkv": thirds(*(f"{_OURS}.attn2.to_{x}" for x in "qkv")),
        f"{_TEXT}.attn.qkv": thirds(*(f"{_OURS}.attn.add_{x}_proj" for x in "qkv")),
        # the last block ends the text's stream: its one shift and scale are exchanged, too
        f"{_TEXT}.adaLN_modulation.1": (Target(name=f"{_OURS}.norm1_context.linear", rows=swapped_pair),),
    },
    depths={"transformer_blocks": 38},
    widths=(1536, 2432),
)
