"""Wan 2.1 and 2.2, with the image branch of image-to-video models and the blocks of VACE."""

from __future__ import annotations

from typing import Final

from adapterhub.formats.foreign.families import Family, alone

_CONDITION: Final = "condition_embedder"
_ATTENTION: Final = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
_INSIDE: Final = {
    **{f"self_attn.{a}": f"attn1.{b}" for a, b in _ATTENTION.items()},
    **{f"cross_attn.{a}": f"attn2.{b}" for a, b in _ATTENTION.items()},
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}

FAMILY: Final = Family(
    key="wan",
    title="Wan",
    classes=("WanTransformer3DModel", "WanVACETransformer3DModel", "SkyReelsV2Transformer3DModel"),
    marks=("wan2", "wan-2", "wan_2", "wan"),
    modules=alone(
        {
            "patch_embedding": "patch_embedding",
            "vace_patch_embedding": "vace_patch_embedding",
            "head.head": "proj_out",
            "time_projection.1": f"{_CONDITION}.time_proj",
            "time_embedding.0": f"{_CONDITION}.time_embedder.linear_1",
            "time_embedding.2": f"{_CONDITION}.time_embedder.linear_2",
            "text_embedding.0": f"{_CONDITION}.text_embedder.linear_1",
            "text_embedding.2": f"{_CONDITION}.text_embedder.linear_2",
            "img_emb.proj.1": f"{_CONDITION}.image_embedder.ff.net.0.proj",
            "img_emb.proj.3": f"{_CONDITION}.image_embedder.ff.net.2",
            "vace_blocks.N.before_proj": "vace_blocks.N.proj_in",
            "vace_blocks.N.after_proj": "vace_blocks.N.proj_out",
            **{f"{block}.N.{a}": f"{block}.N.{b}" for block in ("blocks", "vace_blocks") for a, b in _INSIDE.items()},
        }
    ),
    depths={"blocks": 40},
    widths=(1536, 3072, 5120),
)
