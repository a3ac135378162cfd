"""llama.cpp: quantised bases on any machine; adapters as GGUF files, which `adapt export --format gguf` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.engines import FEATURES, HEADS, REFUSES, Rule, Settings, Test, Traits, some

NAME: Final = "llama.cpp"
VERSIONS: Final = ("b11739",)
SOURCE: Final = (
    "`src/llama-adapter.cpp` and `convert_lora_to_gguf.py` of llama.cpp; run as the package `llama-cpp-py-sync` "
    "0.11739. The rules judge the file that `adapt export --format gguf` writes: it folds the scales of rsLoRA and "
    "`alpha_pattern` into B, which `convert_lora_to_gguf.py` does not"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufBase:
    """How llama.cpp keeps a model type: its name for the architecture, and whether rows of q and k are reordered.

    `turned`: the pairs of a rotary embedding lie side by side in GGUF and half a head apart in transformers.
    `tied`: it has no tensor for an output head, which is the embedding always. `experts`: its MLPs are mixtures, and
    all experts of a layer one tensor.
    """

    architecture: str
    turned: bool = False
    tied: bool = False
    experts: bool = False


BASES: Final[Mapping[str, GgufBase]] = MappingProxyType(
    {
        "arcee": GgufBase(architecture="arcee", turned=True),
        "gemma": GgufBase(architecture="gemma", tied=True),
        "gemma2": GgufBase(architecture="gemma2", tied=True),
        "gemma3_text": GgufBase(architecture="gemma3"),
        "gpt2": GgufBase(architecture="gpt2"),
        "granite": GgufBase(architecture="granite", turned=True),
        "llama": GgufBase(architecture="llama", turned=True),
        "mistral": GgufBase(architecture="llama", turned=True),
        "mixtral": GgufBase(architecture="llama", turned=True, experts=True),
        "olmo2": GgufBase(architecture="olmo2"),
        "phi3": GgufBase(architecture="phi3"),
        "qwen2": GgufBase(architecture="qwen2"),
        "qwen2_moe": GgufBase(architecture="qwen2moe", experts=True),
        "qwen3": GgufBase(architecture="qwen3"),
        "qwen3_moe": GgufBase(architecture="qwen3moe", experts=True),
        "smollm3": GgufBase(architecture="smollm3", turned=True),
        "starcoder2": GgufBase(architecture="starcoder2"),
    }
)
"""By transformers' `model_type`: those whose conversion leaves a linear layer one tensor, and whose names are known."""


_TOKENS: Final = ("embed_tokens", "wte")
"""What those bases call the embedding of tokens."""


def _base(traits: Traits) -> str:
    kind = traits.base.model_type
    return f"a base of type `{shown(kind)}`" if kind is not None and kind not in BASES else ""


def _tied(traits: Traits) -> str:
    names = (*traits.of_kind("embedding"), *traits.of_kind("head"))
    base = BASES.get(traits.base.model_type or "")
    is_tied = traits.base.is_tied or (base is not None and base.tied)
    return f"{some(names)} on a base whose output head is its embedding" if names and is_tied else ""


def _positions(traits: Traits) -> str:
    odd = [m for m in traits.of_kind("embedding") if m.rpartition(".")[2] not in _TOKENS]
    return f"the embedding {some(odd)}" if odd else ""


def _odd_targets(traits: Traits) -> str:
    embeddings = traits.of_kind("embedding")
    odd = [
        m
        for m in traits.modules
        if not any(part.isdecimal() for part in m.split("."))
        and m not in embeddings
        and m.rpartition(".")[2] not in HEADS
    ]
    return f"modules outside of the layers, {some(odd)}" if odd else ""


def _on_other(feature: str) -> Test:
    """The feature's own test, on bases whose experts are not known."""

    def test(traits: Traits) -> str:
        base = BASES.get(traits.base.model_type or "")
        has_experts = traits.base.model_type is None or (base is not None and base.experts)
        return "" if has_experts else FEATURES[feature].test(traits)

    return test


STEPS: Final = ("needs the file that `adapt export --format gguf` writes, given as `--lora FILE.gguf`",)

_MIXTURES: Final = ", ".join(f"`{kind}`" for kind, base in BASES.items() if base.experts)

RULES: Final[Sequence[Rule]] = (
    Rule(feature="method", effect=REFUSES, says="GGUF stores LoRA only", source="adapter.type"),
    Rule(feature="dora", effect=REFUSES, says="GGUF has no place for DoRA's magnitudes; fuse it with `adapt fuse`"),
    Rule(feature="lora_bias", effect=REFUSES, says="GGUF has no place for a bias of B"),
    Rule(feature="bias", effect=REFUSES, says="GGUF has no place for biases in an adapter; fuse it with `adapt fuse`"),
    Rule(
        feature="modules_to_save",
        effect=REFUSES,
        says="GGUF has no place for whole modules in an adapter; fuse it with `adapt fuse`",
        source="llama_adapter_lora_init_impl",
    ),
    Rule(feature="trainable_tokens", effect=REFUSES, says="GGUF has no place for single rows of an embedding"),
    Rule(
        feature="embedding",
        effect=REFUSES,
        says="llama.cpp has one tensor for both; it applies the update in the wrong place or not at all",
        source="llm_build_inp_embd, build_lora_mm",
        when=_tied,
    ),
    Rule(
        feature="embedding",
        effect=REFUSES,
        says="llama.cpp adapts only the token embedding and skips this pair",
        source="llm_build_inp_embd",
        when=_positions,
    ),
    Rule(feature="conv", effect=REFUSES, says="llama.cpp adapts linear layers only"),
    *(
        Rule(
            feature=name,
            effect=REFUSES,
            says=f"`adapt export` writes the experts of {_MIXTURES} only",
            when=_on_other(name),
            source="build_lora_mm_id",
        )
        for name in ("target_parameters", "experts")
    ),
    Rule(feature="nested", effect=REFUSES, says="GGUF has one pair per tensor"),
    Rule(
        feature="start",
        effect=REFUSES,
        says="B·A is the update of a base that PEFT changes first; convert it with PEFT's "
        "`path_initial_model_for_weight_conversion`",
    ),
    Rule(feature="layer_replication", effect=REFUSES, says="llama.cpp does not repeat layers"),
    Rule(feature="alora", effect=REFUSES, says="it acts on a part of the prompt only; cannot be exported"),
    *(
        Rule(feature=name, effect=REFUSES, says="its update is more than B·A; cannot be exported")
        for name in ("bdlora", "qalora", "kasa", "velora", "monteclora", "arrow")
    ),
    Rule(feature="others", effect=REFUSES, says="GGUF has no place for them"),
    Rule(feature="targets", effect=REFUSES, says="GGUF has no tensor of that name", when=_odd_targets),
    Rule(
        feature="base",
        effect=REFUSES,
        says="its tensor names in GGUF are unknown here, or its layers are not one tensor each",
        when=_base,
    ),
)


def settings(_traits: Traits) -> Settings:
    """None: `--lora FILE` is enough."""
    return {}


def notes(traits: Traits) -> list[str]:
    """What was not judged, and what is worth knowing."""
    said: list[str] = []
    if traits.base.model_type is None:
        said.append("the base is unknown here, so whether its layers have names in GGUF was not judged")
    if (traits.of_kind("embedding") or traits.of_kind("head")) and traits.base.is_tied is None:
        said.append("unknown here whether the base's output head is its embedding, which GGUF cannot store")
    return said
