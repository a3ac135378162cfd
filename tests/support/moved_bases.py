"""Bases like a later version of another one: the same modules, weights that moved a little."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def moved_copy(
    base: Path, folder: Path, share: float, *, tokens: int | None = None, model_class: Any = AutoModelForCausalLM
) -> Path:
    """A copy whose weights moved by a share of their spread; with so many tokens, if given."""
    model = model_class.from_pretrained(base, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(share * weights.std() * torch.randn(weights.shape, generator=generator))
    if tokens is not None:
        model.resize_token_embeddings(tokens)
    shutil.copytree(base, folder)
    model.save_pretrained(folder)
    return folder


def without_layers(base: Path, folder: Path, *gone: int) -> Path:
    """A copy of a llama without some of its layers, the others numbered anew."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList(layer for at, layer in enumerate(layers) if at not in gone)
    model.config.num_hidden_layers = len(model.model.layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: len(model.model.layers)]
    shutil.copytree(base, folder)
    model.save_pretrained(folder)
    return folder


def reordered_copy(base: Path, folder: Path) -> Path:
    """A copy of a llama or a GPT-2 whose hidden numbers stand in another order: it says the same, number for number."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    reorder(model)
    shutil.copytree(base, folder)
    model.save_pretrained(folder)
    return folder


_READS = ("c_attn", "c_fc", "q_proj", "k_proj", "v_proj", "up_proj", "gate_proj")
_TABLES = ("wte", "wpe", "embed_tokens", "lm_head")


def reorder(model: Any) -> None:
    """Put the hidden numbers of a llama or a GPT-2 in another order throughout."""
    width = model.get_input_embeddings().weight.shape[1]
    order = torch.randperm(width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, one in model.named_parameters():
            leaf = name.split(".")[-2]
            is_turned = model.config.model_type == "gpt2" and leaf not in _TABLES
            if one.ndim == 1:
                if leaf not in _READS:
                    one.copy_(one[order])
            elif leaf in _TABLES or (leaf in _READS) ^ is_turned:
                one.copy_(one[:, order])
            else:
                one.copy_(one[order])
