"""The parts of rules: features that an adapter can have, and what an engine does with one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from adapterhub.core.errors import shown
from adapterhub.formats.engines._traits import Traits

Effect = Literal["refuses", "misreads", "notes"]
"""`refuses`: does not load. `misreads`: loads as another adapter. `notes`: loads correctly, with a remark."""

REFUSES: Final[Effect] = "refuses"
MISREADS: Final[Effect] = "misreads"
NOTES: Final[Effect] = "notes"

CHANGES_BASE: Final = ("pissa", "olora", "corda", "loftq")
"""Initialisations that PEFT repeats on the base when it loads the adapter: B @ A is the update of another base."""

Test = Callable[[Traits], str]
"""Where the adapter has the feature, as the subject of a sentence; empty if nowhere."""

_FEW = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """Something that an adapter can have and that an engine may not read."""

    title: str
    test: Test


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What an engine does with a feature. `when` replaces the feature's own test."""

    feature: str
    effect: Effect
    says: str
    source: str = ""
    when: Test | None = None

    def detail(self, traits: Traits) -> str:
        """Where the adapter has the feature; "" if nowhere."""
        return (self.when or FEATURES[self.feature].test)(traits)


def some(names: Sequence[str]) -> str:
    """The first few of several names."""
    listed = ", ".join(f"`{shown(name)}`" for name in names[:_FEW])
    return f"{listed} and {len(names) - _FEW} more" if len(names) > _FEW else listed


def set_to(name: str, value: object) -> str:
    """A setting with its value, such as `use_dora: true`."""
    text = {True: "true", False: "false"}.get(value, shown(value, 60)) if isinstance(value, bool) else shown(value, 60)
    return f"`{name}: {text}`"


def _method(traits: Traits) -> str:
    return "" if traits.config.is_lora else set_to("peft_type", traits.config.peft_type)


def _flag(name: str) -> Test:
    def test(traits: Traits) -> str:
        value = getattr(traits.config, name)
        return set_to(name, value) if value else ""

    return test


def _extra(name: str) -> Test:
    def test(traits: Traits) -> str:
        return f"`{name}`" if traits.config.is_lora and traits.config.extra.get(name) else ""

    return test


def _scale(traits: Traits) -> str:
    """Modules whose factor is not the config's alpha / r."""
    common = _common(traits)
    odd = [m for m, scale in traits.scales.items() if not math.isclose(scale, common, rel_tol=1e-9)]
    if not odd:
        return ""
    config = traits.config
    why = [w for w, is_so in (("rsLoRA", config.use_rslora), ("`alpha_pattern`", config.alpha_pattern)) if is_so]
    why += ["`rank_pattern`"] * bool(config.rank_pattern)
    return f"{' and '.join(why) or 'a scale of its own'} on {some(odd)}"


def _scale_past_rslora(traits: Traits) -> str:
    config = traits.config
    common = _common(traits) * (math.sqrt(config.r or 1) if config.use_rslora else 1)
    odd = [m for m, scale in traits.scales.items() if not math.isclose(scale, common, rel_tol=1e-9)]
    return f"a scale of its own on {some(odd)}" if odd else ""


def _common(traits: Traits) -> float:
    config = traits.config
    return (config.lora_alpha or 0.0) / config.r if config.r else 0.0


def _ranks(traits: Traits) -> str:
    ranks = {pair.rank for pair in traits.keys.pairs if pair.rank}
    return f"ranks {min(ranks)} to {max(ranks)}" if len(ranks) > 1 else ""


def _bias(traits: Traits) -> str:
    return set_to("bias", traits.config.bias) if traits.config.is_lora and traits.config.bias != "none" else ""


def _dora(traits: Traits) -> str:
    has = [pair.module for pair in traits.keys.pairs if pair.magnitude is not None]
    return "`use_dora: true`" if traits.config.use_dora else f"magnitudes on {some(has)}" if has else ""


def _saved(traits: Traits) -> str:
    names = traits.config.modules_to_save or tuple(name for name, _ in traits.keys.saved)
    return f"`modules_to_save` with {some(names)}" if names else ""


def _tokens(traits: Traits) -> str:
    wanted = traits.config.trainable_token_indices is not None or traits.keys.tokens
    return "`trainable_token_indices`" if wanted and traits.config.is_lora else ""


def _kind(kind: str, what: str) -> Test:
    def test(traits: Traits) -> str:
        names = traits.of_kind(kind)
        return f"{what} {some(names)}" if names else ""

    return test


def _start(traits: Traits) -> str:
    start = traits.config.init_lora_weights
    changed = isinstance(start, str) and start.lower().startswith(CHANGES_BASE)
    return set_to("init_lora_weights", start) if changed else ""


def _parameters(traits: Traits) -> str:
    names = [module for module in traits.modules if traits.is_expert(module)]
    return f"`target_parameters` on {some(names)}" if names else ""


def _experts(traits: Traits) -> str:
    names = [m for m in traits.modules if ".experts." in f".{m}." and not traits.is_expert(m)]
    return f"experts {some(names)}" if names else ""


def _nested(traits: Traits) -> str:
    names = [m for m in traits.modules if ".base_layer." in f"{m}." and not traits.is_expert(m)]
    return f"a layer inside a layer, {some(names)}" if names else ""


def _others(traits: Traits) -> str:
    names = [spec.name for spec in traits.keys.others] if traits.config.is_lora else []
    return f"tensors that belong to no pair, {some(names)}" if names else ""


def _copies(traits: Traits) -> str:
    names = [spec.name for _, spec in traits.keys.copies]
    return f"copies of base weights, {some(names)}" if names else ""


FEATURES: Final[Mapping[str, Feature]] = MappingProxyType(
    {
        "method": Feature(title="a PEFT method other than LoRA", test=_method),
        "scale": Feature(title="a scale other than `lora_alpha / r` on some module", test=_scale),
        "scale_pattern": Feature(title="a scale of its own on some module (`alpha_pattern`)", test=_scale_past_rslora),
        "ranks": Feature(title="several ranks (`rank_pattern`)", test=_ranks),
        "rank": Feature(title="a large rank", test=lambda _traits: ""),
        "dora": Feature(title="DoRA", test=_dora),
        "lora_bias": Feature(title="a bias of B (`lora_bias`)", test=_flag("lora_bias")),
        "bias": Feature(title="biases of the base (`bias: all`, `lora_only`)", test=_bias),
        "modules_to_save": Feature(title="modules trained as a whole (`modules_to_save`)", test=_saved),
        "trainable_tokens": Feature(title="trained tokens (`trainable_token_indices`)", test=_tokens),
        "embedding": Feature(title="LoRA on the token embedding", test=_kind("embedding", "the embedding")),
        "head": Feature(title="LoRA on the output head", test=_kind("head", "the output head")),
        "conv": Feature(title="LoRA on convolutions", test=_kind("conv", "convolutions")),
        "target_parameters": Feature(title="LoRA on bare parameters (`target_parameters`)", test=_parameters),
        "experts": Feature(title="LoRA on each expert of a mixture", test=_experts),
        "nested": Feature(title="LoRA on a layer that lies inside another LoRA layer", test=_nested),
        "start": Feature(title="an initialisation that changes the base (PiSSA, OLoRA, CorDA, LoftQ)", test=_start),
        "layer_replication": Feature(title="`layer_replication`", test=_flag("layer_replication")),
        "alora": Feature(title="aLoRA (`alora_invocation_tokens`)", test=_flag("alora_invocation_tokens")),
        "bdlora": Feature(title="BD-LoRA (`use_bdlora`)", test=_extra("use_bdlora")),
        "qalora": Feature(title="QALoRA (`use_qalora`)", test=_extra("use_qalora")),
        "kasa": Feature(title="KaSA (`kasa_config`)", test=_extra("kasa_config")),
        "velora": Feature(title="VeLoRA (`velora_config`)", test=_extra("velora_config")),
        "monteclora": Feature(title="MonteCLoRA (`monteclora_config`)", test=_extra("monteclora_config")),
        "arrow": Feature(title="Arrow routing (`arrow_config`)", test=_extra("arrow_config")),
        "targets": Feature(title="target modules that the engine does not support", test=lambda _traits: ""),
        "layers": Feature(title="pairs in some layers only", test=lambda _traits: ""),
        "defaults": Feature(title="settings left out of the config", test=lambda _traits: ""),
        "copies": Feature(title="copies of base weights in the file", test=_copies),
        "others": Feature(title="tensors that belong to no module", test=_others),
        "base": Feature(title="a base for which the engine has no LoRA", test=lambda _traits: ""),
        "vocabulary": Feature(title="a large or changed vocabulary", test=lambda _traits: ""),
    }
)
"""By the name in verdicts, in the order of the reference page."""

SETTINGS: Final = (
    "start",
    "layer_replication",
    "alora",
    "bdlora",
    "qalora",
    "kasa",
    "velora",
    "monteclora",
    "arrow",
)
"""Features set in the config alone: a program that does not know one still finds B and A in the file."""
