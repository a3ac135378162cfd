"""The names that the plug-in goes by in vLLM and in its log."""

from __future__ import annotations

NAME = "adapterhub"
"""What vLLM calls us: the entry point, for VLLM_PLUGINS, and the resolver."""


LOGGER = "vllm.adapterhub"
"""Below vLLM's own logger, whose handlers and level then hold for us."""
