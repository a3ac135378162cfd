"""The true reasons for which an adapter is refused, said independently of the package: by its own files and its base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import nn

Config = Mapping[str, Any]

ATTACHED: Final = (
    *("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "VERA", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "GLORA"),
    *("GRALORA", "HIRA", "HRA", "LILY", "LN_TUNING", "MISS", "OFT", "PEANUT", "PVERA", "RANDLORA", "ROAD"),
    *("SHIRA", "SUPERTUNING", "TINYLORA", "VBLORA", "WAVEFT"),
)
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
WHY: Final = {
    "PSOFT": "its basis, singular vectors of the base, is in no file; their signs differ between precisions",
    "ADAMSS": "its clusters of the base's weights are in no file; scikit-learn makes them again",
    "FROD": "its basis is made of all layers of the base together; files may lack it",
    "OSF": "its update is relative to singular vectors of the base that are in no file",
    "UNILORA": "no tensor of its file names a module: the config alone says where its one vector goes",
    "TRAINABLE_TOKENS": "`trainable_token_indices` of LoRA does the same, and attaches",
    **dict.fromkeys(("CPT", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"), "virtual tokens, no change of a layer"),
    "SHADOW": "a second model beside the base",
    "BD-LoRA": "its factors are blocks, in a layout for parallel devices",
    "QALoRA": "pools the inputs of its layers",
    "KaSA": "cuts directions out of the base",
    "MonteCLoRA": "draws its weights at random",
    "Arrow": "chooses between other adapters for each token",
    "ensure_weight_tying": "ties the factors of two layers",
    "aLoRA": "acts from tokens of the prompt on, for which several adapters would differ",
    "layer_replication": "repeats layers of the base",
    "MultiheadAttention": "torch reads the weights without calling the layer",
}
"""Why what is refused is refused, by the word for it."""

_NEVER: Final = _VARIANTS | {"layer_replication": "layer_replication"}
_ALIKE: Final = {"alora_invocation_tokens": "aLoRA", "layer_replication": "layer_replication"}


def against_attaching(config: Config, base: nn.Module) -> list[str]:
    """A word for each reason, one of which the refusal has to hold; empty where the adapter must attach."""
    if config["peft_type"] not in ATTACHED:
        return [config["peft_type"]]
    words = [word for key, word in _NEVER.items() if config.get(key)]
    if any(isinstance(module, nn.MultiheadAttention) for module in base.modules()):
        words.append("MultiheadAttention")
    return words


def against_adding_up(first: Config, second: Config) -> list[str]:
    """The same for two adapters on one model at once."""
    words = _differing(first, second, "trainable_token_indices", "target_parameters")
    for config in (first, second):
        words += [config["peft_type"]] if config["peft_type"] not in SUMMED else []
        words += ["DoRA"] if config.get("use_dora") else []
        words += ["aLoRA"] if config.get("alora_invocation_tokens") else []
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
