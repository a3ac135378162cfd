"""FLUX.1 of Black Forest Labs."""

from __future__ import annotations

from typing import Final

from adapterhub.formats.diffusion import bfl
from adapterhub.formats.foreign.families import Family, OfLinear1, Target, Targets, alone, swapped, thirds

_OURS, _THEIRS = "transformer_blocks.N", "double_blocks.N"


def joint_blocks() -> dict[str, Targets]:
    """Return the blocks without their modulations; Chroma has the same ones."""
    found = alone({f"{_THEIRS}.{a}": f"{_OURS}.{b}" for a, b in bfl.DOUBLE.items() if "_mod." not in a})
    found |= {f"{_THEIRS}.{a}": thirds(*(f"{_OURS}.{b}" for b in parts)) for a, parts in bfl.DOUBLE_FUSED.items()}
    parts = enumerate(f"single_{_OURS}.{name}" for name in bfl.SINGLE_FUSED)
    found["single_blocks.N.linear1"] = tuple(Target(name=name, rows=OfLinear1(part)) for part, name in parts)
    return found | alone({"single_blocks.N.linear2": f"single_{_OURS}.proj_out"})


RATIOS: Final = {
    "double_blocks.N.img_mlp.0": 4,
    "double_blocks.N.img_mlp.2": 1 / 4,
    "double_blocks.N.txt_mlp.0": 4,
    "double_blocks.N.txt_mlp.2": 1 / 4,
    "single_blocks.N.linear1": 7,
    "single_blocks.N.linear2": 1 / 5,
}

FAMILY: Final = Family(
    key="flux",
    title="FLUX.1",
    classes=("FluxTransformer2DModel",),
    marks=("flux-1", "flux1", "flux.1"),
    modules=alone(bfl.FIXED)
    | {theirs: (Target(name=ours, rows=swapped),) for theirs, ours in bfl.SWAPPED.items()}
    | joint_blocks()
    | alone({f"{_THEIRS}.{a}": f"{_OURS}.{b}" for a, b in bfl.DOUBLE.items() if "_mod." in a})
    | alone({"single_blocks.N.modulation.lin": f"single_{_OURS}.norm.linear"}),
    ratios=RATIOS,
    depths={"transformer_blocks": 19, "single_transformer_blocks": 38},
    widths=(3072,),
    says_down=True,
)
