"""Settings of an adapter's config that decide whether its update is `scale * B A` on the base as named."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from adapterhub.formats.peft.config import AdapterConfig

VARIANTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "use_qalora": "pools its inputs (QALoRA)",
        "use_bdlora": "has block-diagonal factors (BD-LoRA)",
        "kasa_config": "cuts directions out of the base weights (KaSA)",
        "monteclora_config": "samples its weights (MonteCLoRA)",
        "arrow_config": "routes between adapters (Arrow), anew for each token",
        "megatron_config": "is made for Megatron's parallel layers",
        "ensure_weight_tying": "ties the factors of two layers to each other (ensure_weight_tying)",
    }
)
"""Settings that neither a merge nor a fusion can carry out, and what they mean."""

CHANGES_THE_UPDATE: Final = ("use_dora", "use_qalora", "use_bdlora", "kasa_config", "monteclora_config")
"""Settings under which the update of a module is not `scale * B A`."""

CONVERTIBLE_INITS: Final = ("pissa", "olora", "corda", "lora_ga")
_BASE_CHANGING_INITS: Final = (*CONVERTIBLE_INITS, "loftq")
_HARMLESS_INITS: Final = ("gaussian", "eva", "orthogonal", "mica")


def has_setting(config: AdapterConfig, key: str) -> bool:
    """Whether the config switches `key` on."""
    return (getattr(config, key, None) or config.extra.get(key)) not in (None, False, (), [], {})


def changes_base(config: AdapterConfig, inits: tuple[str, ...] = _BASE_CHANGING_INITS) -> bool:
    """Whether the initialisation is one of `inits`, which change the base weights."""
    init = config.init_lora_weights
    return isinstance(init, str) and init.lower().startswith(inits)


def may_change_base(config: AdapterConfig) -> bool:
    """Whether the initialisation changes the base weights, or is unknown."""
    init = config.init_lora_weights
    return isinstance(init, str) and init.lower() not in _HARMLESS_INITS


def trained_rows(config: AdapterConfig, module: str) -> tuple[int, ...]:
    """The rows of the embedding `module` that the adapter trained (`trainable_token_indices`)."""
    indices = config.trainable_token_indices
    if isinstance(indices, Mapping):
        return next((rows for name, rows in indices.items() if module.endswith(name)), ())
    return indices or ()
