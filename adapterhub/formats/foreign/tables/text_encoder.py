"""The CLIP text encoders of image pipelines: the names of their layers, as LoRA files have them.

Files keep the names of transformers 4, `text_model.encoder.layers.0…`; a key map finds them in transformers 5.
"""

from __future__ import annotations

from functools import cache
from typing import Final

_LAYERS: Final = 32
_INSIDE: Final = (*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")


@cache
def clip_modules() -> frozenset[str]:
    """Every Linear of a CLIP text encoder of up to 32 layers."""
    layers = (f"text_model.encoder.layers.{n}.{name}" for n in range(_LAYERS) for name in _INSIDE)
    return frozenset((*layers, "text_projection"))
