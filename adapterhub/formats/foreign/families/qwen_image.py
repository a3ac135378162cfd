"""Qwen-Image and its editing models, whose checkpoints have the names of diffusers."""

from __future__ import annotations

from typing import Final

from adapterhub.formats.foreign.families import Family, same

_STREAM: Final = ("mod.1", "mlp.net.0.proj", "mlp.net.2")
_ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

FAMILY: Final = Family(
    key="qwenimage",
    title="Qwen-Image",
    classes=("QwenImageTransformer2DModel",),
    marks=("qwen-image", "qwen_image", "qwenimage"),
    modules=same(
        "img_in",
        "txt_in",
        "proj_out",
        "norm_out.linear",
        *(f"time_text_embed.timestep_embedder.linear_{n}" for n in (1, 2)),
        *(f"transformer_blocks.N.attn.{name}" for name in _ATTENTION),
        *(f"transformer_blocks.N.{stream}_{name}" for stream in ("img", "txt") for name in _STREAM),
    ),
    depths={"transformer_blocks": 60},
    widths=(3072,),
    keeps_names=True,
)
