"""Small adapters and bases for the checks, and what a report says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from adapterhub.formats.safetensors.header import TensorFacts
from adapterhub.trust.verify import Report

HID, KV, RANK = 8, 4, 2
P = "base_model.model."
ATTENTION = "model.layers.{}.self_attn.{}"

Tensors = dict[str, np.ndarray]


def pair(module: str, out: int = HID, width: int = HID, rank: int = RANK, seed: int = 0) -> Tensors:
    random = np.random.default_rng(seed)
    return {
        f"{P}{module}.lora_A.weight": random.normal(0, 0.1, (rank, width)).astype("f4"),
        f"{P}{module}.lora_B.weight": random.normal(0, 0.1, (out, rank)).astype("f4"),
    }


def attention(layers: int = 2) -> Tensors:
    found: Tensors = {}
    for i in range(layers):
        found |= pair(ATTENTION.format(i, "q_proj"), seed=i) | pair(ATTENTION.format(i, "v_proj"), out=KV, seed=i + 9)
    return found


def facts(name: str, *shape: int, dtype: str = "F32", data: bytes | None = None) -> TensorFacts:
    raw = data if data is not None else name.encode()
    return TensorFacts(name=name, dtype=dtype, shape=shape, sha256=hashlib.sha256(raw).hexdigest(), samples=b"")


def llama(layers: int = 2) -> list[TensorFacts]:
    found = [facts("model.embed_tokens.weight", 32, HID), facts("model.norm.weight", HID)]
    for i in range(layers):
        sizes = (("q_proj", HID), ("k_proj", KV), ("v_proj", KV), ("o_proj", HID))
        found += [facts(f"{ATTENTION.format(i, m)}.weight", out, HID) for m, out in sizes]
    return found


Make = Callable[..., Path]


def codes(report: Report, *severities: str) -> list[str]:
    """Codes of all findings but notes; that no base was given to compare goes without saying here."""
    wanted = severities or ("error", "warning", "unknown")
    return [f.code for f in report.findings if f.severity in wanted and (f.code, f.where) != ("U_BASE", "")]


def messages(report: Report) -> str:
    return "\n".join(str(f) for f in report.findings)
