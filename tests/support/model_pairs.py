"""A model before and after, in files: an adapter merged by PEFT, or tensors that were changed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.library import Library
from adapterhub.weights.extract import ExtractOptions, ExtractResult, extract
from tests.support.tiny_models import llama, save_adapter

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


LAYERS = {
    "embed_tokens.weight": (16, 8),
    "layers.0.q.weight": (8, 8),
    "layers.0.input_norm.weight": (8,),
    "norm.weight": (8,),
}


def saved(model: nn.Module, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def fused(make: Callable[[], nn.Module], adapter: Path) -> nn.Module:
    return PeftModel.from_pretrained(make(), adapter).merge_and_unload()


def look(folder: Path) -> BaseRecord:
    return Library(folder.parent / "nowhere").bases.look(folder)


def run(tmp_path: Path, base: Path, tuned: Path, out: str = "out", **options: Any) -> ExtractResult:
    return extract(look(base), look(tuned), tmp_path / out, ExtractOptions(**options))


def changed(model: nn.Module, names: dict[str, Tensor]) -> nn.Module:
    """The model with `names` added to its parameters."""
    with torch.no_grad():
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in names:
                parameter.add_(names[name])
    return model


def low_rank(out: int, width: int, rank: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, rank, generator=generator) @ torch.randn(rank, width, generator=generator) / 10


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def difference_of(base: Path, tuned: Path) -> dict[str, Tensor]:
    """By module, tuned - base in float64."""
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tuned))
    return {name.removesuffix(".weight"): after[name].double() - before[name].double() for name in before}


def rename(folder: Path, how: Callable[[str], str]) -> None:
    tensors = {how(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop(adapter: Path, part: str) -> None:
    """Take tensors out of an adapter (PEFT saves copies of embeddings beside their factors)."""
    tensors = {name: tensor for name, tensor in tensors_of(adapter).items() if part not in name}
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})


def tuned_from(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def write_model(folder: Path, shapes: dict[str, tuple[int, ...]], **config: object) -> Path:
    """Random tensors as a model of no known class."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "mine"} | config))
    return folder


def edit(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Add to tensors; a new one is put in, None takes one out."""
    tensors = load_file(folder / "model.safetensors")
    for name, change in changes.items():
        if change is None:
            del tensors[name]
        else:
            tensors[name] = tensors[name] + change if name in tensors else change
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def merged_pair(folder: Path) -> tuple[Path, Path, Path]:
    """(base, adapter, base with the adapter merged by PEFT): every linear layer but the head, at rank 4."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=[*ATTENTION, *MLP], task_type="CAUSAL_LM")
    adapter = save_adapter(folder / "adapter", llama, config)
    return saved(llama(), folder / "base"), adapter, saved(fused(llama, adapter), folder / "tuned")
