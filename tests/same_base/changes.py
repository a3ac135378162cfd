"""Models that are nearly another one: tuned a little, with parts in other places, or of other numbers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

RANK: Final = 16
_LAYER: Final = re.compile(r"(?P<front>^|.*?\.)(?P<stack>layers?|h|blocks?)\.(?P<number>\d+)\.")
_NO_LINEAR: Final = re.compile(
    r"embed|lm_head|norm|conv|router|mlp\.gate\.|block_sparse_moe\.gate\.|position|pooler|vision|visual|wte|wpe"
)


def is_linear(name: str, tensor: torch.Tensor) -> bool:
    """Whether it is what a fine-tune changes and a quantiser writes as codes: a matrix or a stack of them in a layer."""
    return tensor.ndim > 1 and name.endswith(("weight", "_proj")) and not _NO_LINEAR.search(name)


def moved(weight: torch.Tensor, part: float, seed: int) -> torch.Tensor:
    """The weight after a change of rank 16 whose norm is a part of its own, in float32."""
    generator = torch.Generator().manual_seed(seed)
    numbers = weight.float()
    delta = torch.randn(*numbers.shape[:-1], RANK, generator=generator) @ torch.randn(
        *numbers.shape[:-2], RANK, numbers.shape[-1], generator=generator
    )
    return numbers + delta * (part * numbers.norm() / delta.norm())


def tuned(tensors: Mapping[str, torch.Tensor], part: float, *, only: str = "") -> Tensors:
    """Every linear weight, or only one, changed by a part of its norm, and rounded to its dtype."""
    return {
        name: moved(tensor, part, seed).to(tensor.dtype) if is_linear(name, tensor) and only in ("", name) else tensor
        for seed, (name, tensor) in enumerate(sorted(tensors.items()))
    }


def last_linear(tensors: Mapping[str, torch.Tensor]) -> str:
    """The name of one weight of the last layers."""
    return max(name for name, tensor in tensors.items() if is_linear(name, tensor))


def swapped(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The first two layers of each stack in each other's place."""

    def other(name: str) -> str:
        found = _LAYER.match(name)
        if found is None or found["number"] not in ("0", "1"):
            return name
        return f"{name[: found.start('number')]}{1 - int(found['number'])}{name[found.end('number') :]}"

    return {
        name: tensors[other(name)] if other(name) in tensors and tensors[other(name)].shape == tensor.shape else tensor
        for name, tensor in tensors.items()
    }


def permuted(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The rows of one weight in another order."""
    name = last_linear(tensors)
    order = torch.randperm(tensors[name].shape[-2], generator=torch.Generator().manual_seed(0))
    return {**tensors, name: tensors[name].index_select(-2, order)}


def reseeded(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The numbers of each linear weight in another order: another model with the same distributions."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor.reshape(-1)[torch.randperm(tensor.numel(), generator=generator)].reshape(tensor.shape)
        if is_linear(name, tensor)
        else tensor
        for name, tensor in tensors.items()
    }


WAYS: Final[Mapping[str, Callable[[Mapping[str, torch.Tensor]], Tensors]]] = {
    "other numbers": reseeded,
    "1 %": lambda tensors: tuned(tensors, 0.01),
    "layers swapped": swapped,
    "0.3 %": lambda tensors: tuned(tensors, 0.003),
    "rows permuted": permuted,
    "0.1 %": lambda tensors: tuned(tensors, 0.001),
    "one weight 1 %": lambda tensors: tuned(tensors, 0.01, only=last_linear(tensors)),
}

SMALL: Final = ("1 %", "0.3 %", "0.1 %", "one weight 1 %")
"""Changes that coarse codes may hide."""


def changed_folder(source: Path, out: Path, way: str) -> Path:
    """A copy of a model's folder, changed in one of `WAYS`."""
    out.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix == ".json" and "index" not in path.name:
            shutil.copy(path, out / path.name)
    tensors: Tensors = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors |= load_file(path)
    found = WAYS[way](tensors)
    save_file({name: tensor.contiguous().clone() for name, tensor in found.items()}, out / "model.safetensors")
    return out
