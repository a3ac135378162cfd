"""A two-layer base of width 8 and adapters for it, as real safetensors files; made in milliseconds, without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WIDTH, LAYERS, VOCABULARY = 8, 2, 16
MODULES = ("q_proj", "v_proj")


def tensors_of_base(seed: int = 0, width: int = WIDTH) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    names = [
        f"model.layers.{i}.self_attn.{m}.weight"
        for i in range(LAYERS)
        for m in ("q_proj", "k_proj", "v_proj", "o_proj")
    ]
    tensors = {name: random.normal(size=(width, width)).astype("f4") for name in names}
    tensors["model.embed_tokens.weight"] = random.normal(size=(VOCABULARY, width)).astype("f4")
    tensors["model.norm.weight"] = np.ones(width, "f4")
    return tensors


def make_base(folder: Path, *, seed: int = 0, width: int = WIDTH, dtype: str = "f4") -> Path:
    folder.mkdir(parents=True)
    tensors = {name: value.astype(dtype) for name, value in tensors_of_base(seed, width).items()}
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama", "hidden_size": width, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_adapter(
    folder: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    width: int = WIDTH,
    modules: tuple[str, ...] = MODULES,
    base: str | None = "test/tiny",
    **config: object,
) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed + 1000)
    tensors = {}
    for layer in range(LAYERS):
        for module in modules:
            key = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_"
            tensors[f"{key}A.weight"] = random.normal(size=(rank, width)).astype("f4")
            tensors[f"{key}B.weight"] = random.normal(size=(width, rank)).astype("f4")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(modules),
        "lora_dropout": 0.0,
        "bias": "none",
    } | config
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder
