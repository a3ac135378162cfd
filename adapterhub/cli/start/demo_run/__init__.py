"""The workflow on a real base: what `adapt demo` uses, and the script that trained its adapters."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

BASE_ALIAS = "smollm2-135m"
BASE_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
ADAPTERS: Mapping[str, str] = MappingProxyType({"json": "extract-json", "pirate": "style-transfer"})
"""Shipped adapters by name, with their tasks."""
WEIGHTS = "0.7,0.3"
MERGE_NAME = "json-pirate"
PROMPTS: tuple[str, ...] = (
    "The boss sells Priya 12 maps for 30 dollars.",
    "Hello my old friend, where is the treasure?",
)
"""No prompt is a training sentence; the merge answers the first as `json` does and the second as `pirate` does."""
