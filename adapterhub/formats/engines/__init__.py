"""Whether an inference engine reads an adapter, and reads it correctly. The rules are one file per engine.

    verdict = judge("vllm@0.32", config, read_header(folder / WEIGHTS_FILE))
    verdict.ok, verdict.reasons, verdict.flags

Engines check little; a part that an engine ignores makes its answers wrong. So a verdict is no in two cases: the
engine refuses the adapter, or it loads it and reads it as another one. `verify` decides whether the numbers are sound
and the base is the right one.

A new engine is a new file here with `NAME`, `VERSIONS`, `SOURCE`, `RULES`, `settings(traits)` and `notes(traits)`. The
file has the name that users type, with an underscore for a dot. Files that begin with an underscore are not engines.
`STEPS`, where an engine needs them, are what its user does before it loads the adapter.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType, ModuleType
from typing import Annotated, Any, Final, Literal, TypeVar

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.formats.documented import Documented
from adapterhub.formats.peft.config import AdapterConfig, owner
from adapterhub.formats.peft.keys import AdapterKeys, sort_keys
from adapterhub.formats.safetensors.file import TensorFile

__all__ = [
    "FEATURES",
    "HEADS",
    "NOTES",
    "SETTINGS",
    "BaseFacts",
    "Effect",
    "Feature",
    "Reason",
    "Rule",
    "Settings",
    "Traits",
    "Verdict",
    "as_flags",
    "described",
    "engine",
    "joined",
    "judge",
    "names",
    "parse_target",
    "together",
]

_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,39}")


def names() -> tuple[str, ...]:
    """The names of all engines, as users type them; imports none."""
    return tuple(m.name.replace("_", ".") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def parse_target(target: str) -> tuple[str, str | None]:
    """The name and the version in `vllm@0.32` or `llama.cpp`.

    Raises:
        UsageProblem: there is no such engine, or the `@` is not followed by a version.
    """
    name, at, version = target.strip().partition("@")
    name = name.lower()
    if name not in names():
        hint = "write it as `vllm` or `vllm@0.32`"
        raise UsageProblem(f"unknown engine `{shown(name, 40)}`, expected one of {', '.join(names())}", hint=hint)
    if at and not _VERSION.fullmatch(version):
        raise UsageProblem(
            f"`{shown(target, 60)}` has no version after the `@`", hint=f"write `{name}`, or `{name}@` and a version"
        )
    return name, version or None


def engine(name: str) -> ModuleType:
    """The rules of one of `names()`."""
    return importlib.import_module(f"adapterhub.formats.engines.{name.replace('.', '_')}")


def judge(
    target: str,
    config: AdapterConfig,
    weights: TensorFile,
    *,
    base: BaseFacts | None = None,
    keys: AdapterKeys | None = None,
) -> Verdict:
    """What the engine `target` (`vllm@0.32`, `llama.cpp`) does with an adapter of this config and tensor header.

    Reads names and shapes only: microseconds a module. Rules that depend on the base apply as far as `base` is known;
    a note names those that were not judged. `keys`: the tensors as `sort_keys` sorts them, if they are sorted already.

    Raises:
        UsageProblem: no such engine.
        MalformedConfig: E_REGEX when the patterns of the config take too long.
    """
    name, version = parse_target(target)
    rules = engine(name)
    traits = Traits.of(config, weights, base or BaseFacts(), keys)
    found = [(rule, detail) for rule in rules.RULES if (detail := rule.detail(traits))]
    reasons = tuple(
        Reason(feature=rule.feature, effect=rule.effect, says=rule.says, detail=detail, source=rule.source)
        for rule, detail in found
        if rule.effect != NOTES
    )
    notes = [f"{detail}: {rule.says}" for rule, detail in found if rule.effect == NOTES]
    notes += [*rules.notes(traits), *_version_notes(rules, version)]
    settings: Settings = rules.settings(traits)
    return Verdict(
        target=target,
        engine=name,
        version=version,
        reasons=reasons,
        steps=getattr(rules, "STEPS", ()),
        notes=tuple(notes),
        settings=settings,
        flags=as_flags(settings),
    )


def together(verdicts: Iterable[Verdict]) -> tuple[str, ...]:
    """The flags of one server for all adapters that the engine reads correctly."""
    return as_flags(joined(verdict.settings for verdict in verdicts if verdict.ok))


def described() -> Mapping[str, Mapping[str, Any]]:
    """Every engine with its title, versions, source and rules, for the reference page."""
    return {
        name: {
            "title": (rules.__doc__ or "").strip().split("\n")[0],
            "versions": rules.VERSIONS,
            "source": rules.SOURCE,
            "rules": rules.RULES,
        }
        for name in names()
        for rules in (engine(name),)
    }


def _version_notes(rules: ModuleType, version: str | None) -> list[str]:
    known: tuple[str, ...] = rules.VERSIONS
    if version is None or not known or any(version == v or version.startswith(f"{v}.") for v in known):
        return []
    return [f"the rules were checked with {rules.NAME} {' and '.join(known)}; {version} may differ"]


Setting = int | bool | str | tuple[str, ...]
Settings = Mapping[str, Setting]
"""Options of a server by name, without leading dashes; a number is a minimum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason(Documented, keys="feature effect detail says source", title="EngineReason"):
    """A reason why an engine does not read an adapter correctly.

    `feature` is a key of `FEATURES`, `detail` is its place in the adapter, `says` what the engine does.
    """

    feature: Annotated[str, "key of the feature; [engines](engines.md#the-rules) lists the features"]
    effect: Annotated[str, "`refuses`, or `misreads`: loads it and answers as a different adapter"]
    says: Annotated[str, "what the engine does with it"]
    detail: Annotated[str, "where the adapter has the feature"]
    source: Annotated[str, "place in the engine's source; may be empty"] = ""

    @property
    def text(self) -> str:
        """One sentence."""
        return f"{self.detail}: {self.says}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Documented, keys="target engine version ok reasons notes settings flags", title="EngineVerdict"):
    """The verdict of one engine on one adapter. `flags` are `settings` as words of a command line.

    `steps` are what somebody who starts the engine by hand does first. `adapt serve` does it itself.
    """

    target: Annotated[str, "as given, such as `vllm@0.32`"]
    engine: str
    version: Annotated[str | None, "as given; null: none was given"]
    reasons: tuple[Reason, ...]
    steps: tuple[str, ...]
    notes: Annotated[tuple[str, ...], "what was not judged, and what is worth knowing"]
    settings: Annotated[Settings, "options that a server needs, by name; a number is a minimum"] = field(hash=False)
    flags: Annotated[tuple[str, ...], "`settings` as words of a command line"]

    @property
    def ok(self) -> bool:
        """Whether the engine loads the adapter and reads it as PEFT does."""
        return not self.reasons


def as_flags(settings: Settings) -> tuple[str, ...]:
    """The words of a command line, such as `--max-lora-rank`, `16`; options that are false are left out."""
    words: list[str] = []
    for key, item in settings.items():
        if item is False:
            continue
        words.append(f"--{key}")
        if isinstance(item, tuple):
            words += item
        elif item is not True:
            words.append(str(item))
    return tuple(words)


def joined(several: Iterable[Settings]) -> Settings:
    """Settings that suit every adapter: the largest number, every name."""
    all_of: dict[str, Setting] = {}
    for settings in several:
        for key, item in settings.items():
            before = all_of.get(key)
            if isinstance(item, tuple) and isinstance(before, tuple):
                all_of[key] = tuple(sorted({*before, *item}))
            elif isinstance(item, int) and isinstance(before, int) and not isinstance(item, bool):
                all_of[key] = max(before, item)
            else:
                all_of[key] = item
    return MappingProxyType(all_of)


HEADS = ("lm_head", "embed_out", "output")
_MATRIX = 2
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFacts:
    """The few facts about a base that rules need; None if unknown.

    `vocabulary` is the number of rows of the token embedding. `is_tied`: the output head is that embedding.
    """

    model_type: str | None = None
    vocabulary: int | None = None
    is_tied: bool | None = None

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> BaseFacts:
        """From a base's `config.json`; for a multimodal model, from its language model."""
        inner = values.get("text_config")
        holders = [inner, values] if isinstance(inner, Mapping) else [values]

        def first(key: str, kind: type[_T]) -> _T | None:
            value: _T | None = next((holder[key] for holder in holders if type(holder.get(key)) is kind), None)
            return value

        return cls(
            model_type=first("model_type", str),
            vocabulary=first("vocab_size", int),
            is_tied=first("tie_word_embeddings", bool),
        )


@dataclass(frozen=True, kw_only=True)
class Traits:
    """One adapter, as rules see it."""

    config: AdapterConfig
    weights: TensorFile
    base: BaseFacts
    keys: AdapterKeys

    @classmethod
    def of(cls, config: AdapterConfig, weights: TensorFile, base: BaseFacts, keys: AdapterKeys | None = None) -> Traits:
        """The traits of an adapter; sorts its tensors unless `keys` has them."""
        return cls(config=config, weights=weights, base=base, keys=keys or sort_keys(weights, config))

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The modules that have a pair, by their names in the base."""
        return tuple(pair.module for pair in self.keys.pairs)

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """The last parts of the names of `modules`, sorted."""
        return tuple(sorted({module.rpartition(".")[2] for module in self.modules}))

    @cached_property
    def rank(self) -> int:
        """The largest rank in the config or a tensor; 0 for a method without rank."""
        if not self.config.is_lora:
            return self.config.r or 0
        in_config = (self.config.r or 0, *self.config.rank_pattern.values())
        return max([*in_config, *(pair.rank for pair in self.keys.pairs if not self.is_expert(pair.module))])

    @cached_property
    def scales(self) -> Mapping[str, float]:
        """The factor on B @ A, by module."""
        if not self.config.is_lora:
            return {}
        return {module: self.config.scaling_of(owner(module)) for module in self.modules}

    def is_expert(self, module: str) -> bool:
        """Whether the pair is for a bare parameter (`target_parameters`)."""
        return self.config.holds_parameters(module)

    def of_kind(self, kind: str) -> tuple[str, ...]:
        """The modules whose pair is for an `embedding`, a `conv` or an output `head`."""
        if kind == "embedding":
            return tuple(pair.module for pair in self.keys.pairs if pair.kind == "embedding")
        if kind == "head":
            return tuple(m for m in self.modules if m.rpartition(".")[2] in HEADS)
        return tuple(p.module for p in self.keys.pairs if p.a is not None and len(p.a.shape) > _MATRIX)


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
