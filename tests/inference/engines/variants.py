"""Adapters of many kinds for the real base, saved by PEFT, and what PEFT writes with them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.real_base import smollm2_base

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
PROMPTS = ("The parties agree that", "A recipe for bread begins with", "Once upon a time there was")
TOKENS = 16
SMALL = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}

SERVED: Mapping[str, dict[str, Any]] = {
    "plain": {"r": 8, "lora_alpha": 16, "target_modules": LINEAR},
    "rslora": {"r": 16, "lora_alpha": 16, "use_rslora": True, "target_modules": LINEAR},
    "patterns": {
        "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"down_proj": 32},
    },
}  # fmt: skip
"""The three whose tokens must be PEFT's."""

VARIANTS: Mapping[str, dict[str, Any]] = {
    **SERVED,
    "odd-rank": {"r": 3, "lora_alpha": 5, "target_modules": LINEAR},
    "one-layer": {"r": 8, "lora_alpha": 32, "target_modules": LINEAR, "layers_to_transform": [3]},
    "gaussian": {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION, "init_lora_weights": "gaussian"},
    "embedding": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "embed_tokens"]},
    "lm-head": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "lm_head"]},
    "regex": {"r": 8, "lora_alpha": 16, "target_modules": r".*\.[02]\.self_attn\.(q|v)_proj"},
    "over-rank": {"r": 96, "lora_alpha": 96, "target_modules": ["q_proj"]},
    "over-rank-by-pattern": {
        "r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 80},
    },
    "dora": {"r": 8, "lora_alpha": 16, "use_dora": True, "target_modules": ["q_proj", "v_proj"]},
    "lora-bias": {"r": 8, "lora_alpha": 16, "lora_bias": True, "target_modules": ["q_proj", "v_proj"]},
    "norms-saved": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]},
    "head-saved": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "pissa": {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": "pissa_niter_4"},
    "olora": {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": "olora"},
    "new-tokens": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "trainable_token_indices": [5, 7]},
    "alora": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "alora_invocation_tokens": [260, 260]},
    "one-excluded": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "exclude_modules": r".*layers\.1\..*"},
}  # fmt: skip
"""All that verdicts are compared on; the server of that test takes ranks up to 64."""


def base_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(smollm2_base(), dtype=torch.float32).eval()


@functools.cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(smollm2_base())


def prompt_ids(prompt: str) -> list[int]:
    return tokenizer()(prompt)["input_ids"]


def write_variant(folder: Path, config: Mapping[str, Any], *, seed: int = 1) -> Path:
    """An adapter whose every trained tensor differs from its start, so that one left out shows."""
    torch.manual_seed(seed)
    model = get_peft_model(base_model(), LoraConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("lora_A" not in name):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * (0.05 if "lora_" in name else 0.2))
    model.save_pretrained(folder)
    return folder


def peft_model(folder: Path | None) -> Any:
    return base_model() if folder is None else PeftModel.from_pretrained(base_model(), folder).eval()


def peft_tokens(folder: Path | None, prompts: Sequence[str] = PROMPTS, count: int = TOKENS) -> list[list[int]]:
    """Greedy continuations by PEFT in float32, as token numbers."""
    model = peft_model(folder)
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt_ids(prompt)])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
        answers.append(out[0, ids.shape[1] :].tolist())
    return answers


def peft_logprobs(folder: Path | None, prompt: str) -> torch.Tensor:
    """Log-probabilities of the token behind `prompt`, float32, one a token of the vocabulary."""
    model = peft_model(folder)
    ids = torch.tensor([prompt_ids(prompt)])
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].log_softmax(-1)
