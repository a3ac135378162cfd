"""llama.cpp: quantised bases on any machine; adapters as GGUF files, which `adapt export --format gguf` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.base.fingerprint import OUTPUT_HEADS
from adapterhub.formats.engines import FEATURES, NOTES, REFUSES, Rule, Test, Traits, on, rules, some
from adapterhub.formats.engines._tables import releases
from adapterhub.formats.gguf.names import TURNED

NAME: Final = "llama.cpp"
VERSIONS: Final = ("b11739",)
SOURCE: Final = (
    "`src/llama-adapter.cpp` and `convert_lora_to_gguf.py` of llama.cpp; run as the package `llama-cpp-py-sync` "
    "0.11739. The rules judge the file that `adapt export --format gguf` writes: it folds the scales of rsLoRA and "
    "`alpha_pattern` into B, which `convert_lora_to_gguf.py` does not"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufBase:
    """How llama.cpp keeps a model type: its name for the architecture, and what is special there.

    `tied`: it has no tensor for an output head, which is the embedding always. `experts`: its MLPs are mixtures, and
    all experts of a layer one tensor.
    """

    architecture: str
    tied: bool = False
    experts: bool = False

    @property
    def turned(self) -> bool:
        """Whether the rows of q and k are reordered: rotary embeddings turn neighbours there."""
        return self.architecture in TURNED


BASES: Final[Mapping[str, GgufBase]] = MappingProxyType(
    {
        "arcee": GgufBase(architecture="arcee"),
        "ernie4_5": GgufBase(architecture="ernie4_5"),
        "exaone4": GgufBase(architecture="exaone4"),
        "gemma": GgufBase(architecture="gemma", tied=True),
        "gemma2": GgufBase(architecture="gemma2", tied=True),
        "gemma3_text": GgufBase(architecture="gemma3"),
        "glm4": GgufBase(architecture="glm4"),
        "gpt2": GgufBase(architecture="gpt2"),
        "granite": GgufBase(architecture="granite"),
        "hunyuan_v1_dense": GgufBase(architecture="hunyuan-dense"),
        "llama": GgufBase(architecture="llama"),
        "mistral": GgufBase(architecture="llama"),
        "mixtral": GgufBase(architecture="llama", experts=True),
        "nemotron": GgufBase(architecture="nemotron"),
        "olmo": GgufBase(architecture="olmo"),
        "olmo2": GgufBase(architecture="olmo2"),
        "phi3": GgufBase(architecture="phi3"),
        "qwen2": GgufBase(architecture="qwen2"),
        "qwen2_moe": GgufBase(architecture="qwen2moe", experts=True),
        "qwen3": GgufBase(architecture="qwen3"),
        "qwen3_moe": GgufBase(architecture="qwen3moe", experts=True),
        "seed_oss": GgufBase(architecture="seed_oss"),
        "smollm3": GgufBase(architecture="smollm3"),
        "stablelm": GgufBase(architecture="stablelm"),
        "starcoder2": GgufBase(architecture="starcoder2"),
    }
)
"""By transformers' `model_type`: those whose conversion leaves a linear layer one tensor, and whose names are known."""


_TOKENS: Final = ("embed_tokens", "wte")
"""What those bases call the embedding of tokens."""


_CONVERTER: Final = next(iter(releases("llama_cpp").values()))
"""The converter in the newest llama-cpp-python that was read."""


def _base(traits: Traits) -> str:
    kind = traits.base.model_type
    is_known = kind is None or kind in BASES or _unconverted(traits)
    return "" if is_known else f"a base of type `{shown(kind)}`"


def _unconverted(traits: Traits) -> str:
    """Return the class of the base, where llama.cpp's converter has none of that name."""
    name = traits.base.class_name
    is_known = name is None or name in _CONVERTER.classes or traits.base.model_type in BASES
    return "" if is_known else f"a base of class `{shown(name)}`"


def _tied(traits: Traits) -> str:
    names = (*traits.of_kind("embedding"), *traits.of_kind("head"))
    base = BASES.get(traits.base.model_type or "")
    is_tied = traits.base.is_tied or (base is not None and base.tied)
    return f"{some(names)} on a base whose output head is its embedding" if names and is_tied else ""


def _positions(traits: Traits) -> str:
    odd = [m for m in traits.of_kind("embedding") if m.rpartition(".")[2] not in _TOKENS]
    return on("the embedding", odd)


def _odd_targets(traits: Traits) -> str:
    embeddings = traits.of_kind("embedding")
    odd = [
        m
        for m in traits.modules
        if not any(part.isdecimal() for part in m.split("."))
        and m not in embeddings
        and m.rpartition(".")[2] not in OUTPUT_HEADS
    ]
    return on("modules outside of the layers,", odd)


def _on_other(feature: str) -> Test:
    """Return the feature's own test, on bases whose experts are not known."""

    def test(traits: Traits) -> str:
        base = BASES.get(traits.base.model_type or "")
        has_experts = traits.base.model_type is None or (base is not None and base.experts)
        return "" if has_experts else FEATURES[feature].test(traits)

    return test


STEPS: Final = ("needs the file that `adapt export --format gguf` writes, given as `--lora FILE.gguf`",)

_MIXTURES: Final = ", ".join(f"`{kind}`" for kind, base in BASES.items() if base.experts)

RULES: Final[Sequence[Rule]] = (
    *rules(REFUSES, "GGUF stores LoRA only", "method", source="adapter.type"),
    *rules(REFUSES, "GGUF has no place for DoRA's magnitudes; fuse it with `adapt fuse`", "dora"),
    *rules(REFUSES, "GGUF has no place for a bias of B", "lora_bias"),
    *rules(REFUSES, "GGUF has no place for biases in an adapter; fuse it with `adapt fuse`", "bias"),
    *rules(
        REFUSES,
        "GGUF has no place for whole modules in an adapter; fuse it with `adapt fuse`",
        "modules_to_save",
        source="llama_adapter_lora_init_impl",
    ),
    *rules(REFUSES, "GGUF has no place for single rows of an embedding", "trainable_tokens"),
    *rules(
        REFUSES,
        "llama.cpp has one tensor for both; it applies the update in the wrong place or not at all",
        "embedding",
        source="llm_build_inp_embd, build_lora_mm",
        when=_tied,
    ),
    *rules(
        REFUSES,
        "llama.cpp adapts only the token embedding and skips this pair",
        "embedding",
        source="llm_build_inp_embd",
        when=_positions,
    ),
    *rules(REFUSES, "llama.cpp adapts linear layers only", "conv"),
    *(
        rule
        for name in ("target_parameters", "experts")
        for rule in rules(
            REFUSES,
            f"`adapt export` writes the experts of {_MIXTURES} only",
            name,
            source="build_lora_mm_id",
            when=_on_other(name),
        )
    ),
    *rules(REFUSES, "GGUF has one pair per tensor", "nested"),
    *rules(
        REFUSES,
        "B·A is the update of a base that PEFT changes first; convert it with PEFT's "
        "`path_initial_model_for_weight_conversion`",
        "start",
    ),
    *rules(REFUSES, "llama.cpp does not repeat layers", "layer_replication"),
    *rules(
        NOTES,
        "llama-server switches it on at the last of its invocation tokens if no other adapter is on, and misses them"
        " where a part of them follows; other programs of llama.cpp use the adapter on the whole prompt",
        "alora",
        source="launch_slot_with_task",
    ),
    *rules(
        REFUSES,
        "its update is more than B·A; cannot be exported",
        *("bdlora", "qalora", "kasa", "velora", "monteclora", "arrow"),
    ),
    *rules(REFUSES, "GGUF has no place for them", "others"),
    *rules(REFUSES, "GGUF has no tensor of that name", "targets", when=_odd_targets),
    *rules(
        REFUSES,
        f"the converter of llama-cpp-python {_CONVERTER.version} does not know it",
        "base",
        source="convert_hf_to_gguf.py",
        when=_unconverted,
    ),
    *rules(
        REFUSES,
        "its tensor names in GGUF are unknown here, or its layers are not one tensor each",
        "base",
        when=_base,
    ),
)


def notes(traits: Traits) -> list[str]:
    """Return the facts that were not judged, and those worth knowing."""
    said: list[str] = []
    if traits.base.model_type is None:
        said.append("the base is unknown here, so whether its layers have names in GGUF was not judged")
    if (traits.of_kind("embedding") or traits.of_kind("head")) and traits.base.is_tied is None:
        said.append("unknown here whether the base's output head is its embedding, which GGUF cannot store")
    return said
