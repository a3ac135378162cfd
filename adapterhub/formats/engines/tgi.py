"""TGI (text-generation-inference): adapters given when the server starts, on GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from adapterhub.formats.engines import MISREADS, NOTES, REFUSES, SETTINGS, Rule, Traits, on, rules, some

NAME: Final = "TGI"
VERSIONS: Final[tuple[str, ...]] = ()
SOURCE: Final = (
    "`server/text_generation_server/adapters/lora.py` and `utils/adapter.py` of text-generation-inference, read, "
    "not run"
)

_TARGETS: Final = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"})
_PREPARED: Final = "LoraWeights.prepare_weights"
_LOOKUP: Final = "build_layer_weight_lookup"
_PLACE: Final = "LoraConfig.map_weights_for_model"


def _targets(traits: Traits) -> str:
    embeddings = frozenset(traits.of_kind("embedding"))
    odd = [m for m in traits.modules if m.rpartition(".")[2] not in _TARGETS and m not in embeddings]
    return on("pairs on", odd)


def _layers(traits: Traits) -> str:
    """Kinds of layer with a pair in some layers and none in others, as far as the adapter itself shows."""
    kinds: dict[str, set[str]] = {}
    for module in traits.modules:
        number = next((part for part in module.split(".") if part.isdecimal()), None)
        if number is not None:
            kinds.setdefault(module.rpartition(".")[2], set()).add(number)
    every = set().union(*kinds.values()) if kinds else set()
    partial = sorted(kind for kind, numbers in kinds.items() if numbers != every)
    if traits.config.layers_to_transform:
        return f"`layers_to_transform` with {len(every)} layers"
    return f"{some(partial)} in some layers only" if partial else ""


RULES: Final[Sequence[Rule]] = (
    *rules(REFUSES, "TGI reads LoRA only", "method", source="LoraConfig.load"),
    *rules(MISREADS, "TGI uses one alpha and one rank for all modules", "scale_pattern", source=_PREPARED),
    *rules(REFUSES, "TGI stacks the layers, which requires one rank", "ranks", source="LoraWeights.__init__"),
    *rules(
        MISREADS,
        "TGI reads the pairs of linear layers and skips everything else",
        *("dora", "lora_bias", "bias", "modules_to_save", "trainable_tokens", "embedding", "conv"),
        *("target_parameters", "experts", "nested", "others"),
        source=_PLACE,
    ),
    *rules(MISREADS, "TGI ignores the setting and adds B·A to the unchanged base", *SETTINGS, source=_PLACE),
    *rules(MISREADS, f"TGI adapts {', '.join(sorted(_TARGETS))} only", "targets", source=_LOOKUP, when=_targets),
    *rules(
        MISREADS,
        "TGI skips a kind of layer if one of those layers lacks its pair",
        "layers",
        source=_PREPARED,
        when=_layers,
    ),
    *rules(NOTES, "TGI's code supports it; not tested here", "head", source=_LOOKUP),
)


def notes(_traits: Traits) -> list[str]:
    """Return the facts worth knowing."""
    return ["judged from TGI's source, which was read and not run; start the server with `--lora-adapters NAME=PATH`"]
