"""Adapter folders from a few numbers, and what one check says of them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.safetensors.header import TensorFacts
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify import open_subject

P = "base_model.model."
Tensors = dict[str, np.ndarray]


def pair(module: str, *, out: int = 8, width: int = 8, rank: int = 2, a: float = 1.0, b: float = 1.0) -> Tensors:
    return {
        f"{P}{module}.lora_A.weight": np.full((rank, width), a, "f4"),
        f"{P}{module}.lora_B.weight": np.full((out, rank), b, "f4"),
    }


def make(folder: Path, tensors: Mapping[str, np.ndarray] | None = None, **settings: Any) -> Path:
    """A LoRA of rank 2 and alpha 4 on `q`; `...` leaves a setting out."""
    folder.mkdir(exist_ok=True)
    save_file(dict(pair("q") if tensors is None else tensors), folder / WEIGHTS_FILE)
    value = {"peft_type": "LORA", "base_model_name_or_path": "test/tiny", "r": 2, "lora_alpha": 4}
    value |= {"target_modules": ["q"]} | settings
    (folder / CONFIG_FILE).write_text(json.dumps({k: v for k, v in value.items() if v is not ...}))
    return folder


def weight(name: str, *shape: int, dtype: str = "F32", sha256: str = "0" * 64) -> TensorFacts:
    return TensorFacts(name=name, dtype=dtype, shape=shape, sha256=sha256, samples=b"")


def say(check: str, folder: Path, **opened: Any) -> list[Finding]:
    """What one check finds in a folder."""
    subject, seen = open_subject(folder, **opened)
    assert subject is not None, seen
    return list(importlib.import_module(f"adapterhub.trust.verify.checks.{check}").check(subject))
