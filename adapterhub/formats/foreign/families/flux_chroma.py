"""Chroma, which has FLUX.1's blocks without modulations, and one guidance layer that makes them all."""

from __future__ import annotations

from typing import Final

from adapterhub.formats.foreign.families import Family, alone, same
from adapterhub.formats.foreign.families.flux import RATIOS, joint_blocks

_GUIDANCE: Final = "distilled_guidance_layer"

FAMILY: Final = Family(
    key="chroma",
    title="Chroma",
    classes=("ChromaTransformer2DModel",),
    marks=("chroma",),
    modules=alone({"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"})
    | joint_blocks()
    | same(f"{_GUIDANCE}.in_proj", f"{_GUIDANCE}.out_proj")
    | alone(
        {
            f"{_GUIDANCE}.layers.N.in_layer": f"{_GUIDANCE}.layers.N.linear_1",
            f"{_GUIDANCE}.layers.N.out_layer": f"{_GUIDANCE}.layers.N.linear_2",
        }
    ),
    ratios=RATIOS,
    depths={"transformer_blocks": 19, "single_transformer_blocks": 38},
    widths=(3072,),
    says_down=True,
)
