"""How the classes of transformers keep the experts of a layer, where their shapes do not tell."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

TRANSPOSED: Final = frozenset({"gpt_oss", "openai_privacy_filter", "aria", "aria_text"})
"""The model types whose stacked experts are [experts, in, out], as their classes in transformers 5.24 say."""

WOVEN: Final = frozenset({"gpt_oss", "openai_privacy_filter"})
"""Those in which the outputs of gate and up take turns."""

LEAVES: Final[Mapping[str, str]] = MappingProxyType(
    {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "down_proj": "down", "up_proj": "up"}
)
"""What the layers of an expert are, by their names in Mixtral's files and in all other files."""
