"""The vLLM plugin: requests that name an adapter are answered from the library, checked before vLLM reads a byte.

`register` is the entry point of the group `vllm.general_plugins`. vLLM calls it in each of its processes (API server,
engine core, workers), takes the whole process down when it raises, and has no other plugin interface for adapters. It
therefore imports nothing heavy, does the same thing however often it is called, and never raises.
"""

from __future__ import annotations

import logging
import os

from adapterhub.vllm_plugin.names import LOGGER


def register() -> None:
    """Register the resolver and mend what needs mending; a failure is logged, and vLLM runs on without us."""
    logger = logging.getLogger(LOGGER)
    try:
        from adapterhub.vllm_plugin.cpu_rows import mend_base_rows
        from adapterhub.vllm_plugin.resolver import register_resolver

        if mend_base_rows():
            logger.info("rows without an adapter are kept apart from those with one (CPU, vLLM before 0.33)")
        register_resolver(os.environ)
    except Exception:
        logger.exception("adapterhub is not used: its plugin could not be set up")
