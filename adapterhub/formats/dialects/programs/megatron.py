"""Megatron-Bridge's experts, also shared-outer ones, under the names of Hugging Face's layers.

`experts.gate_proj` and its like, also `gate_up_proj` where the base has that, are A [experts, r, in] and
B [experts, out, r]. With `experts_shared_outer_loras`, A of gate and up and B of down are [1, …], for all experts,
beside one matrix for each expert on the other side (`models/conversion/peft_bridge.py`,
`_stream_shared_outer_adapter_weights`, 2026-08; SGLang reads the same, its PR 21466).
"""

from __future__ import annotations

from typing import Final

from adapterhub.formats.dialects.form import Form
from adapterhub.formats.dialects.programs._stacks import fused, refuse, spread, stacks_in

TITLE: Final = "Megatron-Bridge"
_LAYERS: Final = {name: name for name in ("gate_proj", "up_proj", "down_proj")}
_FUSED: Final = ("gate_up_proj",)


def recognise(form: Form) -> bool:
    """Return whether the file has its names."""
    return bool(stacks_in(form, (*_LAYERS, *_FUSED)))


def read(form: Form) -> Form:
    """One pair for each expert, or one for all where gate and up are one parameter of the base.

    Raises:
        MalformedTensorFile: factors do not fit.
    """
    stacks = stacks_in(form, (*_LAYERS, *_FUSED))
    if not any(leaf in _FUSED for _, leaf in stacks):
        return spread(form, stacks.values(), _LAYERS)
    if odd := next((one for one in stacks.values() if one.leaf in ("gate_proj", "up_proj")), None):
        refuse(f"`{odd.label}` is beside a fused `gate_up_proj`, and no base has both")
    return fused(form, [stack.parameter() for stack in stacks.values()])
