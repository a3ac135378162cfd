"""A small model and its quantised copies, as folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.base.folders import fingerprint_folder

Tensors = dict[str, torch.Tensor]


def model(seed: int = 0, layers: int = 2, width: int = 160) -> Tensors:
    """A model in bfloat16: two weights and a norm in each layer, and an embedding."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"model.layers.{n}.{m}.weight": (96, width) for n in range(layers) for m in ("q_proj", "up_proj")}
    shapes |= {f"model.layers.{n}.norm.weight": (width,) for n in range(layers)} | {
        "model.embed_tokens.weight": (50, width)
    }
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def in_float8(tensors: Tensors) -> Tensors:
    """One scale a row, in the arithmetic of float32."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            found[name] = tensor
            continue
        scale = tensor.float().abs().amax(1, keepdim=True) / 448
        found[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        found[f"{name}_scale"] = scale
    return found


def saved(folder: Path, tensors: Tensors, **config: object) -> Path:
    """The folder of a model with these tensors."""
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def fingerprint(folder: Path, tensors: Tensors, **config: object) -> BaseFingerprint:
    return fingerprint_folder(saved(folder, tensors, **config), cache_folder=None)[0]
