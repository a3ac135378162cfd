"""Attaching adapters to a frozen base in memory, with PEFT's layers as the engine.

    with attach(model, {"legal-qa": 0.7, "plain": 0.3}) as attached:
        attached.model.generate(...)

The base is compared with what each adapter was made for before anything is wrapped; only an adapter's own tensors find
a place; and the base comes out as it went in, bit for bit, which `Attached.base_digest` proves.
"""

from __future__ import annotations

from adapterhub.distribution.finding import AdapterLike
from adapterhub.inference.loader.attachment import Attached, attach
from adapterhub.inference.loader.base.model import base_digest
from adapterhub.inference.loader.facts import AttachedAdapter, ScaleGroup

__all__ = ["AdapterLike", "Attached", "AttachedAdapter", "ScaleGroup", "attach", "base_digest"]
