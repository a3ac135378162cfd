"""The same update in other numbers, and what only looks alike: for tests and benchmarks of likeness."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterhub.formats.derived.likeness import Sketch, sketch_of
from adapterhub.formats.derived.reading import AdapterUpdates
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import read_header

Disguise = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""A [r, in] and B [out, r] of a module become others."""


def _refactored(a: Tensor, b: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    mixed = torch.randn(len(a), len(a), generator=chance, dtype=torch.float64) + 3 * torch.eye(len(a))
    return (mixed @ a.double()).float(), (b.double() @ torch.linalg.inv(mixed)).float()


def _permuted(a: Tensor, b: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(a), generator=chance)
    signs = torch.randint(0, 2, (len(a), 1), generator=chance) * 2 - 1
    return signs * a[order], b[:, order] * signs.T


def _padded(a: Tensor, b: Tensor, _chance: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.cat([a, a]), torch.cat([b, torch.zeros_like(b)], 1)


def _noisy(share: float) -> Disguise:
    def change(a: Tensor, b: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(b.shape, generator=chance)
        return a, b + share * b.norm() / noise.norm() * noise

    return change


def _rounded(a: Tensor, b: Tensor, _chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """int8, one step for each row."""
    rows = []
    for one in (a, b):
        step = one.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        rows.append((one / step).round() * step)
    return rows[0], rows[1]


SAME: Mapping[str, Disguise] = {
    "bfloat16": lambda a, b, _: (a.bfloat16(), b.bfloat16()),
    "float16": lambda a, b, _: (a.half(), b.half()),
    "int8": _rounded,
    "scaled": lambda a, b, _: (a / 4, b * 10),
    "refactored": _refactored,
    "permuted": _permuted,
    "padded": _padded,
}
"""Disguises of one update, up to its scale."""
NEGATED: Mapping[str, Disguise] = {"negated": lambda a, b, _: (a, -b)}
OTHER: Mapping[str, Disguise] = {"noise 10 %": _noisy(0.1), "noise 20 %": _noisy(0.2), "noise 60 %": _noisy(0.6)}
"""Adapters that are near the update, and not it."""


def disguise(source: Path, target: Path, change: Disguise, seed: int = 0) -> Path:
    """A copy of the PEFT folder `source`, whose pairs `change` has changed; the scale of each module stays."""
    shutil.copytree(source, target)
    chance, tensors = torch.Generator().manual_seed(seed), load_file(source / "adapter_model.safetensors")
    ranks = set()
    for name in sorted(name for name in tensors if name.endswith("lora_A.weight")):
        b_name = name.replace("lora_A", "lora_B")
        a, b = change(tensors[name], tensors[b_name], chance)
        ranks.add((len(tensors[name]), len(a)))
        tensors[name], tensors[b_name] = a.contiguous(), b.contiguous()
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "adapter_config.json").read_text())
    factor = {after // before for before, after in ranks}.pop()
    config |= {"r": config["r"] * factor, "lora_alpha": config["lora_alpha"] * factor}
    (target / "adapter_config.json").write_text(json.dumps(config))
    return target


def opened(folder: Path, **options: Any) -> AdapterUpdates:
    """The updates in a PEFT folder, which is read whole."""
    weights = folder / "adapter_model.safetensors"
    raw = memoryview(weights.read_bytes())
    config = AdapterConfig.parse((folder / "adapter_config.json").read_bytes(), "config")
    return AdapterUpdates(config, read_header(weights), lambda start, end: raw[start:end], **options)


def forged(source: Path, wanted: Path, target: Path) -> Path:
    """`source` with the least change of its B factors that gives it the sketch of `wanted`, whose signs are public."""
    own, other = opened(source), opened(wanted)
    sums = [sketch_of(one)._sum for one in (own, other)]
    signs, columns = Sketch(), []
    pieces: list[tuple[str, np.ndarray]] = []
    for module in own.modules:
        [part] = own.parts(module)
        left, right = signs._signs("out", module, part.shape[0]), signs._signs("in", module, part.shape[1])
        gram, read = (left.T @ left).astype("f8"), (part.a @ right).astype("f8")
        columns.append(np.kron(gram, read.T) * part.scale / 16)  # of a change `left @ x` of B, x [16, rank] by rows
        pieces.append((module, left))
    changes = np.linalg.lstsq(np.concatenate(columns, 1), (sums[1] - sums[0]).ravel(), rcond=None)[0]
    shutil.copytree(source, target)
    tensors, at = load_file(source / "adapter_model.safetensors"), 0
    for module, left in pieces:
        b = tensors[f"base_model.model.{module}.lora_B.weight"]
        size = 16 * b.shape[1]
        b += torch.from_numpy((left @ changes[at : at + size].reshape(16, -1)).astype("f4"))
        at += size
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target
