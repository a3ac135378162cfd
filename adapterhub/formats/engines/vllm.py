"""vLLM: many adapters in one batch, on GPUs and CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.engines import MISREADS, NOTES, REFUSES, Rule, Settings, Traits, set_to, some
from adapterhub.formats.peft.config import DEFAULT_ALPHA, DEFAULT_RANK

NAME: Final = "vLLM"
VERSIONS: Final = ("0.32", "0.33")
SOURCE: Final = (
    "`vllm/lora/peft_helper.py`, `lora_model.py` and `utils.py`, `vllm/config/lora.py`, `vllm/lora/layers/` of vLLM "
    "0.32.0, read and run on CPU"
)

MAX_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that `--max-lora-rank` accepts."""

LARGEST_VOCABULARY: Final = 258_048

_PLAIN_STARTS: Final = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_HEADS_TRAINED_WHOLE: Final = ("classifier", "score")
_IGNORED_COPIES: Final = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
_WITHOUT_LORA: Final = frozenset(
    {"bloom", "dbrx", "falcon", "gpt2", "gptj", "gpt_neo", "mamba", "mamba2", "orion", "stablelm"}
)


def slot_rank(rank: int) -> int | None:
    """The smallest allowed `--max-lora-rank` for an adapter of that rank; None when there is none."""
    return next((allowed for allowed in MAX_RANKS if allowed >= rank), None)


def _too_large(traits: Traits) -> str:
    return f"rank {traits.rank}" if traits.rank and slot_rank(traits.rank) is None else ""


def _saved(traits: Traits) -> str:
    listed = traits.config.modules_to_save
    odd = [name for name in listed if name not in _HEADS_TRAINED_WHOLE]
    odd += [name for name, _ in traits.keys.saved if name.split(".")[-2:-1] and name.split(".")[-2] not in listed]
    if odd:
        return f"`modules_to_save` with {some(sorted(set(odd)))}"
    heads = sorted({name.rpartition(".")[0] for name, _ in traits.keys.saved})
    return f"several heads trained whole, {some(heads)}" if len(heads) > 1 else ""


def _one_head(traits: Traits) -> str:
    names = sorted({name.rpartition(".")[0] for name, _ in traits.keys.saved})
    return f"the head `{shown(names[0])}` trained as a whole" if len(names) == 1 and not _saved(traits) else ""


def _start(traits: Traits) -> str:
    start = traits.config.init_lora_weights
    known = not isinstance(start, str) or start.lower() in _PLAIN_STARTS
    return "" if known else set_to("init_lora_weights", start)


def _embedding(traits: Traits) -> str:
    odd = [m for m in traits.of_kind("embedding") if m.rpartition(".")[2] != "embed_tokens"]
    return f"the embedding {some(odd)}" if odd else ""


def _copies(traits: Traits) -> str:
    odd = [spec.name for _, spec in traits.keys.copies if not spec.name.endswith(_IGNORED_COPIES)]
    return f"copies of base weights, {some(odd)}" if odd else ""


def _defaults(traits: Traits) -> str:
    said = " ".join(note[1] for note in traits.config.notes if note[0] == "W_CONFIG_DEFAULT")
    missing = [name for name in ("r", "lora_alpha") if f"`{name}` is missing" in said]
    values = f" (PEFT takes r {DEFAULT_RANK}, lora_alpha {DEFAULT_ALPHA})" if missing else ""
    return f"{some(missing)} missing in the config{values}" if missing else ""


def _base(traits: Traits) -> str:
    kind = traits.base.model_type
    return f"a base of type `{kind}`" if kind in _WITHOUT_LORA else ""


def _vocabulary(traits: Traits) -> str:
    rows, heads = traits.base.vocabulary, frozenset(traits.of_kind("head"))
    for pair in traits.keys.pairs:
        if pair.a is not None and pair.kind == "embedding" and len(pair.a.shape) > 1:
            if rows is not None and pair.a.shape[1] != rows:
                return f"an embedding of {pair.a.shape[1]} tokens on a base of {rows}"
            rows = rows or pair.a.shape[1]
        elif pair.b is not None and pair.module in heads and pair.b.shape:
            rows = rows or pair.b.shape[0]
    return f"a vocabulary of {rows}" if rows is not None and rows > LARGEST_VOCABULARY else ""


RULES: Final[Sequence[Rule]] = (
    Rule(feature="method", effect=REFUSES, says="vLLM reads LoRA only"),
    Rule(
        feature="rank",
        effect=REFUSES,
        says=f"the largest `--max-lora-rank` is {MAX_RANKS[-1]}",
        source="MaxLoRARanks",
        when=_too_large,
    ),
    Rule(feature="dora", effect=REFUSES, says="vLLM does not read DoRA", source="PEFTHelper._validate_features"),
    Rule(feature="lora_bias", effect=REFUSES, says="vLLM reads no bias of B", source="PEFTHelper._validate_features"),
    Rule(feature="bias", effect=REFUSES, says="vLLM changes no bias of the base", source="PEFTHelper.validate_legal"),
    Rule(
        feature="modules_to_save",
        effect=REFUSES,
        says="vLLM accepts one whole module, named `classifier` or `score`",
        source="PEFTHelper._validate_features, LoRAModel.from_lora_tensors",
        when=_saved,
    ),
    Rule(
        feature="modules_to_save",
        effect=NOTES,
        says="vLLM loads it on a classification model only",
        source="LoRAModel.from_lora_tensors",
        when=_one_head,
    ),
    Rule(
        feature="trainable_tokens",
        effect=REFUSES,
        says="vLLM knows no such tensor",
        source="parse_fine_tuned_lora_name",
    ),
    Rule(
        feature="embedding",
        effect=REFUSES,
        says="vLLM adapts the embedding `embed_tokens` only",
        source="embedding_modules of the models",
        when=_embedding,
    ),
    Rule(feature="conv", effect=REFUSES, says="vLLM adapts linear layers only", source="is_supported_lora_module"),
    Rule(
        feature="target_parameters",
        effect=NOTES,
        says="vLLM reads experts stored as `gate_up_proj` and `down_proj`; not tested here",
        source="PEFTHelper.get_rank_and_scaling",
    ),
    Rule(
        feature="nested",
        effect=MISREADS,
        says="vLLM finds no layer of that name and skips the pair",
        source="LoRAModel.check_unexpected_modules passes over `base_layer`",
    ),
    Rule(
        feature="start",
        effect=REFUSES,
        says="vLLM accepts only initialisations that leave the base unchanged; convert it with PEFT's "
        "`path_initial_model_for_weight_conversion`",
        source="PEFTHelper._init_is_supported",
        when=_start,
    ),
    Rule(feature="layer_replication", effect=REFUSES, says="vLLM does not repeat layers", source="PEFTHelper"),
    Rule(feature="alora", effect=REFUSES, says="vLLM does not read aLoRA", source="PEFTHelper"),
    Rule(feature="bdlora", effect=REFUSES, says="vLLM does not read BD-LoRA", source="PEFTHelper"),
    Rule(feature="qalora", effect=REFUSES, says="vLLM does not read QALoRA", source="PEFTHelper"),
    *(
        Rule(
            feature=name,
            effect=MISREADS,
            says="vLLM ignores the setting and reads plain LoRA",
            source="PEFTHelper",
        )
        for name in ("kasa", "velora", "monteclora", "arrow")
    ),
    Rule(
        feature="copies",
        effect=REFUSES,
        says="vLLM knows no such tensor; save the adapter with `save_embedding_layers=False`",
        source="is_base_embedding_weights, parse_fine_tuned_lora_name",
        when=_copies,
    ),
    Rule(feature="others", effect=REFUSES, says="vLLM knows no such tensor", source="parse_fine_tuned_lora_name"),
    Rule(
        feature="defaults",
        effect=REFUSES,
        says="vLLM requires them in the config",
        source="PEFTHelper.from_dict",
        when=_defaults,
    ),
    Rule(feature="base", effect=REFUSES, says="vLLM does not support LoRA on it", source="SupportsLoRA", when=_base),
    Rule(
        feature="vocabulary",
        effect=REFUSES,
        says=f"vLLM requires the vocabulary of the base, of at most {LARGEST_VOCABULARY}",
        source="LogitsProcessorWithLoRA.create_lora_weights, LoRAModel.from_lora_tensors",
        when=_vocabulary,
    ),
)


def settings(traits: Traits) -> Settings:
    """The options that a server needs for this adapter."""
    return {"enable-lora": True, "max-lora-rank": slot_rank(traits.rank) or MAX_RANKS[-1]}


def notes(traits: Traits) -> list[str]:
    """What was not judged, and what is worth knowing."""
    said = []
    if traits.base.model_type is None:
        said.append("the base is unknown here, so whether vLLM supports LoRA on its architecture was not judged")
    if traits.config.fan_in_fan_out and traits.base.model_type is None:
        said.append("`fan_in_fan_out` belongs to models such as GPT-2, on which vLLM does not support LoRA")
    return said
