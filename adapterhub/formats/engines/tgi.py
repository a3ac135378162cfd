"""TGI (text-generation-inference): adapters given when the server starts, on GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from adapterhub.formats.engines import MISREADS, NOTES, REFUSES, SETTINGS, Rule, Settings, Traits, some

NAME: Final = "TGI"
VERSIONS: Final[tuple[str, ...]] = ()
SOURCE: Final = (
    "`server/text_generation_server/adapters/lora.py` and `utils/adapter.py` of text-generation-inference, read, "
    "not run"
)

_TARGETS: Final = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"})
_IGNORED: Final = "TGI reads the pairs of linear layers and skips everything else"
_PLACE: Final = "LoraConfig.map_weights_for_model"


def _targets(traits: Traits) -> str:
    embeddings = frozenset(traits.of_kind("embedding"))
    odd = [m for m in traits.modules if m.rpartition(".")[2] not in _TARGETS and m not in embeddings]
    return f"pairs on {some(odd)}" if odd else ""


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
    Rule(feature="method", effect=REFUSES, says="TGI reads LoRA only", source="LoraConfig.load"),
    Rule(
        feature="scale_pattern",
        effect=MISREADS,
        says="TGI uses one alpha and one rank for all modules",
        source="LoraWeights.prepare_weights",
    ),
    Rule(
        feature="ranks",
        effect=REFUSES,
        says="TGI stacks the layers, which requires one rank",
        source="LoraWeights.__init__",
    ),
    *(
        Rule(feature=name, effect=MISREADS, says=_IGNORED, source=_PLACE)
        for name in (
            "dora",
            "lora_bias",
            "bias",
            "modules_to_save",
            "trainable_tokens",
            "embedding",
            "conv",
            "target_parameters",
            "experts",
            "nested",
            "others",
        )
    ),
    *(
        Rule(
            feature=name,
            effect=MISREADS,
            says="TGI ignores the setting and adds B·A to the unchanged base",
            source=_PLACE,
        )
        for name in SETTINGS
    ),
    Rule(
        feature="targets",
        effect=MISREADS,
        says=f"TGI adapts {', '.join(sorted(_TARGETS))} only",
        source="build_layer_weight_lookup",
        when=_targets,
    ),
    Rule(
        feature="layers",
        effect=MISREADS,
        says="TGI skips a kind of layer if one of those layers lacks its pair",
        source="LoraWeights.prepare_weights",
        when=_layers,
    ),
    Rule(
        feature="head", effect=NOTES, says="TGI's code supports it; not tested here", source="build_layer_weight_lookup"
    ),
)


def settings(_traits: Traits) -> Settings:
    """None: `--lora-adapters NAME=PATH` names the adapter, and TGI reads the rank from it."""
    return {}


def notes(_traits: Traits) -> list[str]:
    """What is worth knowing."""
    return ["judged from TGI's source, which was read and not run; start the server with `--lora-adapters NAME=PATH`"]
