"""vLLM: many adapters in one batch, on GPUs and CPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.engines import (
    MISREADS,
    NOTES,
    REFUSES,
    Effect,
    Pairs,
    Rule,
    Settings,
    Test,
    Traits,
    on,
    rules,
    set_to,
    some,
)
from adapterhub.formats.engines._tables import Binding, Models, Release, bind, release_of, releases
from adapterhub.formats.peft.config import DEFAULT_ALPHA, DEFAULT_RANK

NAME: Final = "vLLM"
_RELEASES: Final = releases("vllm")
_NEWEST: Final = next(iter(_RELEASES.values()))
VERSIONS: Final = tuple(".".join(version.split(".")[:2]) for version in reversed(tuple(_RELEASES)))
SOURCE: Final = (
    f"the wheels of vLLM {', '.join(_RELEASES)}: `vllm/lora/`, `vllm/config/lora.py` and the class of each model, read "
    "by `docs/engine_tables`; 0.32.0 was run on CPU"
)

MAX_RANKS: Final[tuple[int, ...]] = tuple(_NEWEST.limits["ranks"])
"""The values that `--max-lora-rank` accepts."""

LARGEST_VOCABULARY: Final[int] = _NEWEST.limits["vocabulary"]
_HELPER: Final = "PEFTHelper"
_FEATURES: Final = "PEFTHelper._validate_features"
_TENSORS: Final = "LoRAModel.from_lora_tensors"
_NAMES: Final = "parse_fine_tuned_lora_name"

_PLAIN_STARTS: Final = frozenset(_NEWEST.limits["starts"])
_HEADS_TRAINED_WHOLE: Final = frozenset(_NEWEST.limits["heads"])
_IGNORED_COPIES: Final = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")


def slot_rank(rank: int) -> int | None:
    """Return the smallest allowed `--max-lora-rank` for an adapter of that rank; None when there is none."""
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


def _nowhere(traits: Traits) -> str:
    """Modules that no class of models adapts, by the last parts of their names; a known class says more."""
    if _models(traits, _NEWEST) is not None:
        return ""
    leaves = _NEWEST.every_leaf
    names = [m for m in traits.modules if not traits.is_expert(m) and ".base_layer" not in m]
    return on("pairs on", [m for m in names if ".experts." not in f".{m}" and m.rpartition(".")[2] not in leaves])


def _copies(traits: Traits) -> str:
    odd = [spec.name for _, spec in traits.keys.copies if not spec.name.endswith(_IGNORED_COPIES)]
    return on("copies of base weights,", odd)


def _defaults(traits: Traits) -> str:
    said = " ".join(note[1] for note in traits.config.notes if note[0] == "W_CONFIG_DEFAULT")
    missing = [name for name in ("r", "lora_alpha") if f"`{name}` is missing" in said]
    values = f" (PEFT takes r {DEFAULT_RANK}, lora_alpha {DEFAULT_ALPHA})" if missing else ""
    return f"{some(missing)} missing in the config{values}" if missing else ""


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
    *rules(REFUSES, "vLLM reads LoRA only", "method"),
    *rules(
        REFUSES, f"the largest `--max-lora-rank` is {MAX_RANKS[-1]}", "rank", source="MaxLoRARanks", when=_too_large
    ),
    *rules(REFUSES, "vLLM does not read DoRA", "dora", source=_FEATURES),
    *rules(REFUSES, "vLLM reads no bias of B", "lora_bias", source=_FEATURES),
    *rules(REFUSES, "vLLM changes no bias of the base", "bias", source="PEFTHelper.validate_legal"),
    *rules(
        REFUSES,
        "vLLM accepts one whole module, named `classifier` or `score`",
        "modules_to_save",
        source=f"{_FEATURES}, {_TENSORS}",
        when=_saved,
    ),
    *rules(NOTES, "vLLM loads it on a classification model only", "modules_to_save", source=_TENSORS, when=_one_head),
    *rules(REFUSES, "vLLM knows no such tensor", "trainable_tokens", source=_NAMES),
    *rules(REFUSES, "vLLM adapts no module of that name", "targets", source="expected_lora_modules", when=_nowhere),
    *rules(REFUSES, "vLLM adapts linear layers only", "conv", source="is_supported_lora_module"),
    *rules(
        MISREADS,
        "vLLM reads stacked experts as PEFT 0.19 and newer lay them out; `adapt export --format peft` writes that",
        "layout",
        source="LoRAModelManager._stack_moe_lora_weights",
    ),
    *rules(
        REFUSES,
        "vLLM accepts only initialisations that leave the base unchanged; convert it with PEFT's "
        "`path_initial_model_for_weight_conversion`",
        "start",
        source="PEFTHelper._init_is_supported",
        when=_start,
    ),
    *rules(REFUSES, "vLLM does not repeat layers", "layer_replication", source=_HELPER),
    *rules(REFUSES, "vLLM does not read aLoRA", "alora", source=_HELPER),
    *rules(REFUSES, "vLLM does not read BD-LoRA", "bdlora", source=_HELPER),
    *rules(REFUSES, "vLLM does not read QALoRA", "qalora", source=_HELPER),
    *rules(
        MISREADS,
        "vLLM ignores the setting and reads plain LoRA",
        *("kasa", "velora", "monteclora", "arrow"),
        source=_HELPER,
    ),
    *rules(
        REFUSES,
        "vLLM knows no such tensor; save the adapter with `save_embedding_layers=False`",
        "copies",
        source=f"is_base_embedding_weights, {_NAMES}",
        when=_copies,
    ),
    *rules(REFUSES, "vLLM knows no such tensor", "others", source=_NAMES),
    *rules(REFUSES, "vLLM requires them in the config", "defaults", source="PEFTHelper.from_dict", when=_defaults),
    *rules(
        REFUSES,
        f"vLLM requires the vocabulary of the base, of at most {LARGEST_VOCABULARY}",
        "vocabulary",
        source=f"LogitsProcessorWithLoRA.create_lora_weights, {_TENSORS}",
        when=_vocabulary,
    ),
)


_SETTING_OF: Final = {
    "lora_bias": "lora_bias",
    "start": "init_lora_weights",
    "layer_replication": "layer_replication",
    "alora": "alora_invocation_tokens",
    "bdlora": "use_bdlora",
    "qalora": "use_qalora",
}
"""The setting that a release must read to refuse a feature; one that does not read it takes plain LoRA instead."""


def rules_of(version: str | None) -> Sequence[Rule]:
    """Return the rules of a release: an older one ignores settings that a newer one reads."""
    release = release_of("vllm", version)
    known = frozenset(release.limits["settings"])
    ignored = f"vLLM {release.version} ignores the setting and reads plain LoRA"
    made = [
        replace(rule, effect=MISREADS, says=ignored) if _SETTING_OF.get(rule.feature, "r") not in known else rule
        for rule in RULES
    ]
    if "rank_pattern" not in known:
        one = f"vLLM {release.version} scales every module by the `r` and `lora_alpha` of the config"
        made += rules(MISREADS, one, "scale_pattern", source=_HELPER)
    return made


_TOWERS: Final = "adapts parts that see or hear only with `--enable-tower-connector-lora`, an experiment there"
_BACKEND: Final = "runs a class of transformers for them, which the tables do not have"


def _models(traits: Traits, release: Release) -> Models | None:
    name = traits.base.class_name
    return release.models(name, traits.base.inner_class or "") if name else None


def bound(traits: Traits, version: str | None) -> tuple[Pairs | None, Sequence[Rule]]:
    """Return how many pairs the base's class binds, and rules that name the others; None if the base is unknown."""
    release, name = release_of("vllm", version), traits.base.class_name
    if name is None or not traits.config.is_lora:
        return None, ()
    engine, models = f"vLLM {release.version}", _models(traits, release)
    count = len(traits.modules)
    if models is None or not models.has_lora:
        base = f"a base of class `{shown(name)}`"
        says = f"{engine} does not adapt it" if models is not None else f"{engine} has no such class"
        return Pairs(bound=0, dropped=0, refused=count, unknown=0), rules(
            REFUSES, says, "base", source="SupportsLoRA", when=lambda _: base
        )
    found = bind(models, traits.modules, has_text_names=bool(release.limits["text_names"]), experts=traits.base.experts)
    pairs = Pairs(
        bound=len(found.bound),
        dropped=len((*found.dropped, *found.towers, *found.skipped)),
        refused=len((*found.refused, *found.stacked, *found.single, *found.partial)),
        unknown=len(found.unknown),
    )
    return pairs, list(_named(found, f"`{shown(name)}` of {engine}", is_wrapper=bool(models.language)))


def _named(found: Binding, models: str, *, is_wrapper: bool) -> Iterator[Rule]:
    """Yield a rule for each group of pairs that are not bound."""
    lost = "has no such module, and skips them silently"
    lost += "; `adapt export --format vllm` writes the names that it has" if is_wrapper else ""
    whole = "takes one pair for each layer of each expert; `adapt export --format vllm@2d` writes them"
    manager, loader = "LoRAModelManager", "LoRAModel.from_local_checkpoint"
    groups: Sequence[tuple[tuple[str, ...], str, Effect, str, str, str]] = (
        (found.refused, "targets", REFUSES, "pairs on", "adapts no module of that name", loader),
        (found.stacked, "target_parameters", REFUSES, "pairs on stacked experts,", whole, manager),
        (found.skipped, "target_parameters", MISREADS, "pairs on stacked experts,", f"skips them; it {whole}", manager),
        (found.single, "experts", REFUSES, "pairs on single experts,", "takes one pair for all of a layer", loader),
        (found.partial, "experts", REFUSES, "pairs on experts,", "needs all layers of all experts", manager),
        (found.towers, "names", MISREADS, "pairs on", _TOWERS, manager),
        (found.dropped, "names", MISREADS, "pairs on", lost, manager),
        (found.unknown, "names", REFUSES, "pairs on", _BACKEND, "vllm/model_executor/models/transformers"),
    )
    for group, feature, effect, what, says, source in groups:
        if group:
            yield Rule(
                feature=feature,
                effect=effect,
                says=f"{models} {says}",
                source=source,
                when=_told(what, group),
            )


def _told(what: str, names: Sequence[str]) -> Test:
    text = f"{len(names)} {on(what, names)}"
    return lambda _traits: text


def settings(traits: Traits) -> Settings:
    """Return the options that a server needs for this adapter."""
    return {"enable-lora": True, "max-lora-rank": slot_rank(traits.rank) or MAX_RANKS[-1]}


def notes(traits: Traits) -> list[str]:
    """Return the facts that were not judged, and those worth knowing."""
    said = []
    if traits.base.class_name is None:
        said.append("the base is unknown here, so whether vLLM's class for it binds every pair was not judged")
    if traits.config.fan_in_fan_out and traits.base.class_name is None:
        said.append("`fan_in_fan_out` belongs to models such as GPT-2, on which vLLM does not support LoRA")
    return said
