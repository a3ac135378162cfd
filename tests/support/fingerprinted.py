"""Bases of random weights, large enough that a fingerprint samples them, and ways to change their files. Needs torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.base.folders import fingerprint_folder


def llama(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(7)
    sizes: dict[str, object] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 320}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**(sizes | heads | changes)))


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(8)
    return GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=320, n_positions=32))


def fingerprint(folder: Path) -> BaseFingerprint:
    return fingerprint_folder(folder, cache_folder=None)[0]


def edited(source: Path, target: Path, edit: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Path:
    """A copy of a model's folder with its tensors passed through `edit`."""
    target.mkdir()
    shutil.copy(source / "config.json", target)
    tensors = edit(load_file(source / "model.safetensors"))
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
    return target
