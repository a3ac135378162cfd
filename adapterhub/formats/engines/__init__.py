"""Whether an inference engine reads an adapter, and reads it correctly. The rules are one file per engine.

    verdict = judge("vllm@0.32", config, read_header(folder / WEIGHTS_FILE))
    verdict.ok, verdict.reasons, verdict.flags

Engines check little; a part that an engine ignores makes its answers wrong. So a verdict is negative in two cases: the
engine refuses the adapter, or it loads it and reads it as another one. `verify` decides whether the numbers are sound
and the base is the right one.

A new engine is a new file here with `NAME`, `VERSIONS`, `SOURCE` and `RULES`. The file has the name that users type,
with an underscore for a dot. Files that begin with an underscore are not engines. An engine may have `STEPS`, what its
user does before it loads the adapter, `settings(traits)`, the options of its server, and `notes(traits)`, what was not
judged. `rules_of(version)` are the rules of one release, where they differ, and `bound(traits, version)` returns the
pairs that its class of models binds, by the tables that `docs/engine_tables` writes from the engine's source.
"""

from __future__ import annotations

import functools
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
from adapterhub.formats.base.fingerprint import OUTPUT_HEADS
from adapterhub.formats.documented import Documented
from adapterhub.formats.peft.config import AdapterConfig, owner
from adapterhub.formats.peft.keys import AdapterKeys, sort_keys
from adapterhub.formats.safetensors.file import TensorFile

__all__ = [
    "FEATURES",
    "NOTES",
    "SETTINGS",
    "BaseFacts",
    "Effect",
    "Feature",
    "Pairs",
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


@functools.cache
def names() -> tuple[str, ...]:
    """Return the names of all engines, as users type them; imports none."""
    return tuple(m.name.replace("_", ".") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def parse_target(target: str) -> tuple[str, str | None]:
    """Return the name and the version in `vllm@0.32` or `llama.cpp`.

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
    """Return the rules of one of `names()`."""
    return importlib.import_module(f"adapterhub.formats.engines.{name.replace('.', '_')}")


def judge(
    target: str,
    config: AdapterConfig,
    weights: TensorFile,
    *,
    base: BaseFacts | None = None,
    keys: AdapterKeys | None = None,
    dialect: str = "peft",
) -> Verdict:
    """Judge an adapter of this config and tensor header for the engine `target` (`vllm@0.32`, `llama.cpp`).

    Reads names and shapes only: microseconds a module. Rules that depend on the base apply as far as `base` is known;
    a note names those that were not judged. `keys`: the tensors as `sort_keys` sorts them, if they are sorted already.
    `dialect` is the layout of stacked experts in the file (`formats.dialects`).

    Raises:
        UsageProblem: no such engine.
        MalformedConfig: E_REGEX when the patterns of the config take too long.
    """
    name, version = parse_target(target)
    rules = engine(name)
    sorted_keys = keys or sort_keys(weights, config)
    traits = Traits(config=config, weights=weights, base=base or BaseFacts(), keys=sorted_keys, dialect=dialect)
    own: Sequence[Rule] = rules.rules_of(version) if hasattr(rules, "rules_of") else rules.RULES
    pairs: Pairs | None = None
    if hasattr(rules, "bound"):
        pairs, more = rules.bound(traits, version)
        own = (*own, *more)
    found = [(rule, detail) for rule in own if (detail := rule.detail(traits))]
    reasons = tuple(
        Reason(feature=rule.feature, effect=rule.effect, says=rule.says, detail=detail, source=rule.source)
        for rule, detail in found
        if rule.effect != NOTES
    )
    notes = [f"{detail}: {rule.says}" for rule, detail in found if rule.effect == NOTES]
    notes += [*(rules.notes(traits) if hasattr(rules, "notes") else ()), *_version_notes(rules, version)]
    settings: Settings = rules.settings(traits) if hasattr(rules, "settings") else {}
    return Verdict(
        target=target,
        engine=name,
        version=version,
        reasons=reasons,
        pairs=pairs,
        steps=getattr(rules, "STEPS", ()),
        notes=tuple(notes),
        settings=settings,
        flags=as_flags(settings),
    )


def together(verdicts: Iterable[Verdict]) -> tuple[str, ...]:
    """Return the flags of one server for all adapters that the engine reads correctly."""
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
class Pairs(Documented, keys="bound dropped refused unknown", title="EnginePairs"):
    """How many pairs of an adapter the engine's class of models binds.

    `dropped` are loaded without effect. One that is `refused` keeps the adapter from loading. Of `unknown` nothing is
    known.
    """

    bound: int
    dropped: int
    refused: int
    unknown: int

    @property
    def all(self) -> int:
        """How many there are."""
        return self.bound + self.dropped + self.refused + self.unknown

    def __str__(self) -> str:
        others = {"dropped": self.dropped, "refused": self.refused, "not judged": self.unknown}
        counts = [f"{number} {name}" for name, number in others.items() if number]
        return f"{self.bound} of {self.all} pairs bound, {', '.join(counts)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Documented, keys="target engine version ok reasons pairs notes settings flags", title="EngineVerdict"):
    """The verdict of one engine on one adapter. `flags` are `settings` as words of a command line.

    `steps` are what somebody who starts the engine by hand does first. `adapt serve` does it itself.
    """

    target: Annotated[str, "as given, such as `vllm@0.32`"]
    engine: str
    version: Annotated[str | None, "as given; null: none was given"]
    reasons: tuple[Reason, ...]
    pairs: Annotated[Pairs | None, "null: the base is unknown, or the engine has no table"]
    steps: tuple[str, ...]
    notes: Annotated[tuple[str, ...], "what was not judged, and what is worth knowing"]
    settings: Annotated[Settings, "options that a server needs, by name; a number is a minimum"] = field(hash=False)
    flags: Annotated[tuple[str, ...], "`settings` as words of a command line"]

    @property
    def ok(self) -> bool:
        """Whether the engine loads the adapter and reads it as PEFT does."""
        return not self.reasons


def as_flags(settings: Settings) -> tuple[str, ...]:
    """Return the words of a command line, such as `--max-lora-rank`, `16`; options that are false are left out."""
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
    """Return settings that suit every adapter: the largest number, every name."""
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


_MATRIX = 2
_EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def _main_class(model_type: str | None) -> str | None:
    from adapterhub.formats.naming.table import table

    return table().main.get(model_type) if model_type else None


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFacts:
    """The few facts about a base that rules need; None if unknown.

    `vocabulary` is the number of rows of the token embedding. `is_tied`: the output head is that embedding. `experts`
    is their number in a layer. `architecture` is the class of models that the base's config names, `outer_type` its
    model type. Both differ from those of the language model, which `model_type` is, where a wrapper also sees or hears.
    """

    model_type: str | None = None
    vocabulary: int | None = None
    is_tied: bool | None = None
    experts: int | None = None
    architecture: str | None = None
    outer_type: str | None = None

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> BaseFacts:
        """From a base's `config.json`; for a multimodal model, from its language model."""
        inner = values.get("text_config")
        holders = [inner, values] if isinstance(inner, Mapping) else [values]

        def first(key: str, kind: type[_T]) -> _T | None:
            value: _T | None = next((holder[key] for holder in holders if type(holder.get(key)) is kind), None)
            return value

        listed = values.get("architectures")
        named = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else None
        outer = values.get("model_type")
        return cls(
            model_type=first("model_type", str),
            vocabulary=first("vocab_size", int),
            is_tied=first("tie_word_embeddings", bool),
            experts=next((n for key in _EXPERTS if (n := first(key, int)) is not None), None),
            architecture=named,
            outer_type=outer if isinstance(outer, str) else None,
        )

    @property
    def class_name(self) -> str | None:
        """The class of models: as the config names it, or the main one of the model type."""
        return self.architecture or _main_class(self.outer_type or self.model_type)

    @property
    def inner_class(self) -> str | None:
        """The class of the language model in a wrapper, by its model type."""
        return _main_class(self.model_type)


@dataclass(frozen=True, kw_only=True)
class Traits:
    """One adapter, as rules see it."""

    config: AdapterConfig
    weights: TensorFile
    base: BaseFacts
    keys: AdapterKeys
    dialect: str = "peft"

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
        """Return whether the pair is for a bare parameter (`target_parameters`)."""
        return self.config.holds_parameters(module)

    def of_kind(self, kind: str) -> tuple[str, ...]:
        """Return the modules whose pair is for an `embedding`, a `conv` or an output `head`."""
        if kind == "embedding":
            return tuple(pair.module for pair in self.keys.pairs if pair.kind == "embedding")
        if kind == "head":
            return tuple(m for m in self.modules if m.rpartition(".")[2] in OUTPUT_HEADS)
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
    test: Test = lambda _traits: ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What an engine does with a feature. `when` replaces the feature's own test."""

    feature: str
    effect: Effect
    says: str
    source: str = ""
    when: Test | None = None

    def detail(self, traits: Traits) -> str:
        """Return the place of the feature in the adapter; "" if it has none."""
        return (self.when or FEATURES[self.feature].test)(traits)


def rules(effect: Effect, says: str, *features: str, source: str = "", when: Test | None = None) -> tuple[Rule, ...]:
    """Return the verdict that an engine gives alike on each of some features."""
    return tuple(Rule(feature=name, effect=effect, says=says, source=source, when=when) for name in features)


def some(names: Sequence[str]) -> str:
    """Return the first few of several names."""
    listed = ", ".join(f"`{shown(name)}`" for name in names[:_FEW])
    return f"{listed} and {len(names) - _FEW} more" if len(names) > _FEW else listed


def on(what: str, names: Sequence[str]) -> str:
    """Return `what` and the first few of several names; empty without names."""
    return f"{what} {some(names)}" if names else ""


def set_to(name: str, value: object) -> str:
    """Return a setting with its value, such as `use_dora: true`."""
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
    return on("a scale of its own on", odd)


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
    return on("`modules_to_save` with", names)


def _tokens(traits: Traits) -> str:
    wanted = traits.config.trainable_token_indices is not None or traits.keys.tokens
    return "`trainable_token_indices`" if wanted and traits.config.is_lora else ""


def _kind(kind: str, what: str) -> Test:
    return lambda traits: on(what, traits.of_kind(kind))


def _start(traits: Traits) -> str:
    start = traits.config.init_lora_weights
    changed = isinstance(start, str) and start.lower().startswith(CHANGES_BASE)
    return set_to("init_lora_weights", start) if changed else ""


def _parameters(traits: Traits) -> str:
    return on("`target_parameters` on", [module for module in traits.modules if traits.is_expert(module)])


def _experts(traits: Traits) -> str:
    return on("experts", [m for m in traits.modules if ".experts." in f".{m}." and not traits.is_expert(m)])


def _nested(traits: Traits) -> str:
    names = [m for m in traits.modules if ".base_layer." in f"{m}." and not traits.is_expert(m)]
    return on("a layer inside a layer,", names)


def _layout(traits: Traits) -> str:
    return f"experts as `{shown(traits.dialect)}` lays them out" if traits.dialect != "peft" else ""


def _others(traits: Traits) -> str:
    names = [spec.name for spec in traits.keys.others] if traits.config.is_lora else []
    return on("tensors that belong to no pair,", names)


def _copies(traits: Traits) -> str:
    return on("copies of base weights,", [spec.name for _, spec in traits.keys.copies])


FEATURES: Final[Mapping[str, Feature]] = MappingProxyType(
    {
        "method": Feature(title="a PEFT method other than LoRA", test=_method),
        "scale": Feature(title="a scale other than `lora_alpha / r` on some module", test=_scale),
        "scale_pattern": Feature(title="a scale of its own on some module (`alpha_pattern`)", test=_scale_past_rslora),
        "ranks": Feature(title="several ranks (`rank_pattern`)", test=_ranks),
        "rank": Feature(title="a large rank"),
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
        "targets": Feature(title="target modules that the engine does not support"),
        "layers": Feature(title="pairs in some layers only"),
        "names": Feature(title="names of modules that the base's class has not"),
        "layout": Feature(title="another program's layout of stacked experts", test=_layout),
        "defaults": Feature(title="settings left out of the config"),
        "copies": Feature(title="copies of base weights in the file", test=_copies),
        "others": Feature(title="tensors that belong to no module", test=_others),
        "base": Feature(title="a base for which the engine has no LoRA"),
        "vocabulary": Feature(title="a large or changed vocabulary"),
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
