"""Z-Image. Its checkpoints fuse q, k and v; trainers write them apart, in diffusers' names."""

from __future__ import annotations

from typing import Final

from adapterhub.formats.foreign.families import Family, Targets, alone, same, thirds

_STACKS: Final = ("layers.N", "noise_refiner.N", "context_refiner.N")
_PLAIN: Final = (
    *(f"attention.to_{x}" for x in "qkv"),
    "attention.to_out.0",
    *(f"feed_forward.w{n}" for n in (1, 2, 3)),
)
_FUSED: Final[dict[str, Targets]] = {
    f"{stack}.attention.qkv": thirds(*(f"{stack}.attention.to_{x}" for x in "qkv")) for stack in _STACKS
}

FAMILY: Final = Family(
    key="zimage",
    title="Z-Image",
    classes=("ZImageTransformer2DModel",),
    marks=("z-image", "z_image", "zimage"),
    modules=alone(
        {
            "x_embedder": "all_x_embedder.2-1",
            "final_layer.linear": "all_final_layer.2-1.linear",
            "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
            **{f"{stack}.attention.out": f"{stack}.attention.to_out.0" for stack in _STACKS},
        }
    )
    | _FUSED
    | same("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.1")
    | same("layers.N.adaLN_modulation.0", "noise_refiner.N.adaLN_modulation.0")
    | same(*(f"{stack}.{name}" for stack in _STACKS for name in _PLAIN)),
    depths={"layers": 30, "noise_refiner": 2, "context_refiner": 2},
    widths=(3840,),
    keeps_names=True,
)
