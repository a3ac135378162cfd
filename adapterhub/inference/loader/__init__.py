"""Attaching adapters to a frozen base in memory, with PEFT's layers as the engine.

    with attach(model, {"legal-qa": 0.7, "plain": 0.3}) as attached:
        attached.model.generate(...)

`attach` compares the model with the base of each adapter before it wraps anything, and assigns only an adapter's own
tensors. The base stays unchanged, bit for bit; `Attached.base_digest` proves it.
"""

from __future__ import annotations

from adapterhub.inference.loader.attachment import Attached, AttachedAdapter, ScaleGroup, attach
from adapterhub.inference.loader.base import base_digest
from adapterhub.library.store.catalog import AdapterLike

__all__ = ["AdapterLike", "Attached", "AttachedAdapter", "ScaleGroup", "attach", "base_digest"]
