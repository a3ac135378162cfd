"""Adapters for tests of the bank on the small llama, and what the model says with each of them on PEFT's own layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peft import IA3Config, LoraConfig, PeftConfig
from torch import Tensor, nn

from adapterhub.inference.loader import attach
from adapterhub.library.library import Library
from tests.support.tiny_models import llama, logits, plain_peft, save_adapter


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | settings)


CONFIGS: dict[str, Callable[[], PeftConfig]] = {
    "a": lora,
    "b": lambda: lora(r=6, use_rslora=True, target_modules=["q_proj", "embed_tokens", "down_proj"]),
    "c": lambda: lora(r=2, lora_alpha=2, target_modules=["up_proj", "lm_head"]),
    "dora": lambda: lora(use_dora=True),
    "norm": lambda: lora(modules_to_save=["norm"]),
    "ia3": lambda: IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
}  # fmt: skip


def make_folders(root: Path, *names: str) -> dict[str, Path]:
    chosen = names or tuple(CONFIGS)
    return {n: save_adapter(root / n, llama, CONFIGS[n](), seed=1 + list(CONFIGS).index(n)) for n in chosen}


@functools.cache
def with_peft(folder: Path | None) -> Tensor:
    """The logits with one adapter on PEFT's layers, of a model made anew; without any for None."""
    return logits(llama() if folder is None else plain_peft(llama, folder))


def with_sum(folders: Mapping[Path, float], library: Library) -> Tensor:
    """The logits with a weighted sum on PEFT's layers, of a model made anew."""
    with attach(llama(), folders, library=library) as attached:
        return logits(attached.model)


def hooks_of(model: nn.Module) -> list[tuple[str, int, list[int], list[int]]]:
    """Every module by identity, with its hooks."""
    return [(n, id(m), list(m._forward_pre_hooks), list(m._forward_hooks)) for n, m in model.named_modules()]
