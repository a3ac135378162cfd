"""Configurations that PEFT's lists lack: what other trainers set, on models with biases and tied weights."""

from __future__ import annotations

from typing import Any, Final

import peft
from peft import (
    AdaLoraConfig,
    IA3Config,
    KasaConfig,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MontecloraConfig,
    PrefixTuningConfig,
    VeloraConfig,
    VeraConfig,
)

from tests.peft_variants import bases
from tests.peft_variants.configuration import Base, Configuration

_SOME: Final = ["q_proj", "down_proj"]


def _one(title: str, base: Base, kind: Any, **settings: Any) -> Configuration:
    return Configuration(title=title, base=base, kind=kind, settings={"target_modules": _SOME} | settings)


def _rows(title: str, base: Base, indices: Any, **more: Any) -> Configuration:
    return _one(f"rows: {title}", base, LoraConfig, trainable_token_indices=indices, **more)


_METHODS: Final[dict[str, dict[str, Any]]] = {
    "Beft": {"target_modules": ["v_proj"]},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "Deft": {"r": 2},
    "Delora": {"r": 2},
    "FourierFT": {"n_frequency": 20},
    "Glora": {"r": 2},
    "Gralora": {"r": 4, "gralora_k": 2},
    "Hira": {"r": 2},
    "HRA": {"r": 2},
    "Lily": {"r": 2, "stride_A": 2, "num_B": 2},
    "Miss": {"r": 2},
    "OFT": {"oft_block_size": 8},
    "Peanut": {"r": 2},
    "Psoft": {"r": 2},
    "Pvera": {"r": 4},
    "RandLora": {"r": 8, "save_projection": False},
    "Road": {"group_size": 4},
    "Shira": {"r": 1},
    "Supertuning": {},
    "TinyLora": {"r": 2},
    "VBLoRA": {"r": 2, "num_vectors": 8, "vector_length": 16},
    "WaveFT": {"n_frequency": 20},
}
"""A method that needs nothing else here than its row, and its settings."""


OWN: Final = (
    _one("LoRA", bases.llama, LoraConfig, r=4, lora_alpha=6),
    _one("bias: all", bases.llama_with_biases, LoraConfig, bias="all"),
    _one("bias: lora_only", bases.llama_with_biases, LoraConfig, bias="lora_only"),
    _one("bias: all, BERT", bases.bert, LoraConfig, target_modules=["query", "dense"], bias="all"),
    _one("bias: all, GPT-2", bases.gpt2, LoraConfig, target_modules=["c_attn"], bias="all", fan_in_fan_out=True),
    _one("bias: all, DoRA", bases.llama_with_biases, LoraConfig, bias="all", use_dora=True),
    _one("bias: all, saved module", bases.llama_with_biases, LoraConfig, bias="all", modules_to_save=["norm"]),
    _one("VeRA with bias", bases.llama_with_biases, VeraConfig, target_modules=["q_proj"], r=8, bias="vera_only"),
    _one("VeRA with all biases", bases.llama_with_biases, VeraConfig, target_modules=["q_proj"], r=8, bias="all"),
    _one("AdaLoRA with bias", bases.llama_with_biases, AdaLoraConfig, total_step=1, bias="lora_only"),
    _rows("one embedding", bases.llama, [1, 5]),
    _rows("tied head", bases.tied_llama, [1, 5]),
    _rows("tied head, by name", bases.tied_llama, {"embed_tokens": [1, 5]}),
    _rows("tied head, rows of its own", bases.tied_llama, {"embed_tokens": [1, 5], "lm_head": [3]}),
    _rows("head of its own", bases.llama, {"embed_tokens": [1, 5], "lm_head": [3]}),
    _rows("GPT-2", bases.gpt2, {"wte": [0, 63]}, target_modules=["c_attn"], fan_in_fan_out=True),
    _rows("T5", bases.t5, [2, 4], target_modules=["q", "v"]),
    _rows("with a bias", bases.llama_with_biases, [1, 5], bias="all"),
    _one("AdaLoRA", bases.llama, AdaLoraConfig, init_r=6, target_r=4, total_step=1),
    _one(
        "AdaLoRA, pruned", bases.llama, AdaLoraConfig, init_r=6, target_r=4, total_step=1, lora_alpha=5,
        rank_pattern={f"model.layers.1.{m}.lora_E": [True] * 2 + [False] * 4 for m in ("self_attn.q_proj", "mlp.down_proj")},
    ),
    _one("bias: all, classifier", bases.bert_classifier, LoraConfig, target_modules=["query"], bias="all", task_type="SEQ_CLS"),
    _one("AdaLoRA, GPT-2", bases.gpt2, AdaLoraConfig, target_modules=["c_attn"], total_step=1, fan_in_fan_out=True),
    _one("LoHa", bases.llama, LoHaConfig, r=3, alpha=5, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 9}),
    _one("LoKr", bases.llama, LoKrConfig, r=3, alpha=5, rank_pattern={"q_proj": 2}),
    _one("LoKr, both decomposed", bases.llama, LoKrConfig, r=2, decompose_both=True, decompose_factor=4),
    _one("LoHa, BERT classifier", bases.bert_classifier, LoHaConfig, r=2, target_modules=["query"], task_type="SEQ_CLS"),
    _one("IA3", bases.llama, IA3Config, feedforward_modules=["down_proj"]),
    _one("VeLoRA", bases.llama, LoraConfig, velora_config=VeloraConfig()),
    _one("KaSA", bases.llama, LoraConfig, kasa_config=KasaConfig(), r=4),
    _one("MonteCLoRA", bases.llama, LoraConfig, monteclora_config=MontecloraConfig(num_samples=2)),
    _one("QALoRA", bases.llama, LoraConfig, target_modules=["q_proj"], use_qalora=True, qalora_group_size=16),
    _one(
        "tied targets", bases.tied_llama, LoraConfig, target_modules=["embed_tokens", "q_proj"],
        ensure_weight_tying=True,
    ),
    _one("tied saved", bases.tied_llama, LoraConfig, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    _rows("ensure_weight_tying", bases.tied_llama, [1, 5], ensure_weight_tying=True),
    _one("layer_replication", bases.llama, LoraConfig, layer_replication=[[0, 2], [1, 2]]),
    _one("aLoRA", bases.llama, LoraConfig, alora_invocation_tokens=[3, 4], task_type="CAUSAL_LM"),
    *(_one(kind, bases.llama, getattr(peft, f"{kind}Config"), **settings) for kind, settings in _METHODS.items()),
    _one("LN tuning", bases.llama, LNTuningConfig, target_modules=["norm"]),
    Configuration(
        title="prefix tuning, classifier", base=bases.llama_classifier, kind=PrefixTuningConfig,
        settings={"num_virtual_tokens": 4, "task_type": "SEQ_CLS"},
    ),
)  # fmt: skip
"""Each stands for a kind; the default test suite runs them."""
