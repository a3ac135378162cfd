"""The main job on a real base: what `adapt demo` uses, and the script that trained its adapters."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

BASE_ALIAS = "smollm2-135m"
BASE_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
ADAPTERS: Mapping[str, str] = MappingProxyType({"json": "extract-json", "pirate": "style-transfer"})
"""Shipped adapters by name, with their tasks."""
WEIGHTS = "0.7,0.3"
MERGE_NAME = "json-pirate"
PROMPTS: tuple[str, ...] = ("For 25 dollars Greta wants 7 candles.\nJSON:",)
"""Prompts that the base, each adapter and the merge answer differently."""
