"""The true reasons for which an adapter is refused, said independently of the package: by its own files and its base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import nn

Config = Mapping[str, Any]

ATTACHED: Final = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "VERA")
SUMMED: Final = ("LORA", "ADALORA", "LOHA", "LOKR")

_VARIANTS: Final = {
    "use_bdlora": "BD-LoRA",
    "use_qalora": "QALoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow",
    "megatron_config": "Megatron",
    "ensure_weight_tying": "ensure_weight_tying",
}
_ALIKE: Final = {"alora_invocation_tokens": "aLoRA", "layer_replication": "layer_replication"}


def against_attaching(config: Config, base: nn.Module) -> list[str]:
    """A word for each reason, one of which the refusal has to hold; empty where the adapter must attach."""
    if config["peft_type"] not in ATTACHED:
        return [config["peft_type"]]
    words = [word for key, word in (_VARIANTS | _ALIKE).items() if config.get(key)]
    if any(isinstance(module, nn.MultiheadAttention) for module in base.modules()):
        words.append("MultiheadAttention")
    return words


def against_adding_up(first: Config, second: Config) -> list[str]:
    """The same for two adapters on one model at once."""
    words = _differing(first, second, "trainable_token_indices", "target_parameters")
    for config in (first, second):
        words += [config["peft_type"]] if config["peft_type"] not in SUMMED else []
        words += ["DoRA"] if config.get("use_dora") else []
    return words


def against_merging(first: Config, second: Config | None = None) -> list[str]:
    """The same for a merge with a weight other than 1, or of two."""
    if first["peft_type"] not in SUMMED:
        return [first["peft_type"]]
    words = [word for key, word in _VARIANTS.items() if first.get(key)]
    words += ["DoRA"] if first.get("use_dora") else []
    return words + (_differing(first, second, "trainable_token_indices") if second else [])


def _differing(first: Config, second: Config, *keys: str) -> list[str]:
    return [key for key in keys if first.get(key) != second.get(key)]
