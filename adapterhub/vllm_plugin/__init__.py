"""The vLLM plug-in: loads the adapters that requests name from the library, checked before vLLM reads a byte.

`register` is the entry point of the group `vllm.general_plugins`, vLLM's only interface for such plug-ins. vLLM calls
it in each of its processes (API server, engine core, workers), and the process ends if it raises. So it imports nothing
heavy, may be called repeatedly, and never raises.
"""

from __future__ import annotations

import logging
import os

from adapterhub.vllm_plugin.names import LOGGER


def register() -> None:
    """Register the resolver and fix vLLM's CPU operations; logs a failure, and vLLM goes on without adapterhub."""
    logger = logging.getLogger(LOGGER)
    try:
        from adapterhub.vllm_plugin.cpu_rows import mend_base_rows
        from adapterhub.vllm_plugin.resolver import register_resolver

        if mend_base_rows():
            logger.info("replaced operations that gave rows without an adapter a wrong one (CPU, vLLM before 0.33)")
        register_resolver(os.environ)
    except Exception:
        logger.exception("adapterhub is not used: its plug-in could not be set up")
