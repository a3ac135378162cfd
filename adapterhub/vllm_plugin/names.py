"""The names of the plug-in in vLLM and in its log."""

from __future__ import annotations

NAME = "adapterhub"
"""The name in vLLM: of the entry point, for VLLM_PLUGINS, and of the resolver."""


LOGGER = "vllm.adapterhub"
"""A child of vLLM's own logger, so that its handlers and level apply."""
