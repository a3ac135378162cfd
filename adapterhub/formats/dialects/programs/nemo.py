"""NeMo Automodel's grouped experts, in the layout of its memory: both factors of a layer in one tensor each, turned.

`experts.lora_gate_and_up_A` is [experts, in, r] and `_B` [experts, r, out], gate and up as one layer as in the base;
`lora_down_A` and `_B` are the way down (`components/_peft/lora_experts.py`, `components/moe/state_dict_mixin.py`,
2026-08). Its later files are PEFT's: one pair for each expert, or PEFT 0.18's `target_parameters`.
"""

from __future__ import annotations

import re
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.dialects.form import Form
from adapterhub.formats.dialects.programs._stacks import STACKED_NDIM, Parameter, fused, refuse
from adapterhub.formats.safetensors.header import FACTOR_DTYPES, TensorSpec

TITLE: Final = "NeMo Automodel"
_FACTOR: Final = re.compile(
    r"(?:base_model\.model\.)?(?P<holder>.+\.experts)\.lora_(?P<layer>gate_and_up|down)_(?P<side>[AB])", re.ASCII
)
_LAYERS: Final = {"gate_and_up": "gate_up_proj", "down": "down_proj"}


def recognise(form: Form) -> bool:
    """Return whether the file has its names."""
    return any(_FACTOR.fullmatch(spec.name) for spec in form.weights.tensors)


def read(form: Form) -> Form:
    """One pair for each parameter of the experts.

    Raises:
        MalformedTensorFile: E_PAIR, E_SHAPE or E_DTYPE; factors do not fit.
    """
    found: dict[tuple[str, str], dict[str, TensorSpec]] = {}
    for spec in form.weights.tensors:
        if match := _FACTOR.fullmatch(spec.name):
            found.setdefault((match["holder"], match["layer"]), {})[match["side"]] = spec
    return fused(form, [_parameter(holder, layer, sides) for (holder, layer), sides in found.items()])


def _parameter(holder: str, layer: str, sides: dict[str, TensorSpec]) -> Parameter:
    label = shown(f"{holder}.lora_{layer}")
    if len(sides) < len("AB"):
        refuse(f"`{label}_A` and `{label}_B`: one of them is missing", code="E_PAIR")
    a, b = sides["A"], sides["B"]
    is_whole = len(a.shape) == len(b.shape) == STACKED_NDIM and all((*a.shape, *b.shape))
    if not is_whole or (a.shape[0], a.shape[2]) != b.shape[:2]:
        shapes = f"{list(a.shape)} and {list(b.shape)}"
        refuse(
            f"`{label}` has factors of shapes {shapes}, expected [experts, in, r] and [experts, r, out]", code="E_SHAPE"
        )
    if a.dtype not in FACTOR_DTYPES or b.dtype not in FACTOR_DTYPES:
        refuse(f"`{label}` is {a.dtype} and {b.dtype}, expected {', '.join(FACTOR_DTYPES)}", code="E_DTYPE")
    return Parameter(
        holder=holder, leaf=_LAYERS[layer], experts=a.shape[0], rank=a.shape[2], a=(a,), b=(b,), is_turned=True
    )
