"""`adapter_config.json` as PEFT writes it: read strictly, kept whole, and matched to modules as in PEFT 0.21.

Two other programs use the same file name (Apple's MLX, AdapterHub's `adapters`); their configs are recognised and
refused. Configs of other PEFT methods are read as well: settings that they share with LoRA have a field, and the others
stay in `extra`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.errors import MalformedConfig, shown
from adapterhub.formats.peft.fields import Note
from adapterhub.formats.peft.methods import (
    ADALORA_MARGIN,
    BASE_CHANGING_STARTS,
    HARMLESS_STARTS,
    METHODS,
    VARIANTS,
    Method,
    Variant,
)
from adapterhub.formats.peft.names import base_is_path
from adapterhub.formats.peft.patterns import AnyPattern, Budget, FullPattern, KeyPatterns, PatternTooSlow
from adapterhub.formats.peft.reading import ALL_LINEAR, DEFAULT_INIT_RANK, TASK_TYPES, read_config

__all__ = ["ALL_LINEAR", "TASK_TYPES", "AdapterConfig", "endings", "owner", "saved_name"]

_IMPLIED_HEADS: Final[Mapping[str | None, tuple[str, ...]]] = MappingProxyType(
    {
        "SEQ_CLS": ("classifier", "score"),
        "TOKEN_CLS": ("classifier", "score"),
        "QUESTION_ANS": ("qa_outputs",),
    }
)
_CONTAINER: Final = re.compile(r"\.modules_to_save(?:\.default)?(?=\.)")


def saved_name(tensor: str) -> str:
    """The name of a saved module's tensor as PEFT writes it, without the container that some writers leave in it."""
    return _CONTAINER.sub("", tensor) if ".modules_to_save" in tensor else tensor


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """One adapter config. Fields are named as in the file; a `str` in `target_modules` is a pattern or `all-linear`.

    `r` and `lora_alpha` are never None for LoRA (PEFT's defaults are filled in, with a note). Module names are those of
    the base model, without the prefix `base_model.model.`.
    """

    peft_type: str
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: int | None = None
    lora_alpha: float | None = None
    target_modules: tuple[str, ...] | str | None = None
    exclude_modules: tuple[str, ...] | str | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=_nothing)
    alpha_pattern: Mapping[str, float] = field(default_factory=_nothing)
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    fan_in_fan_out: bool = False
    init_lora_weights: bool | str = True
    target_parameters: tuple[str, ...] = ()
    trainable_token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None
    layer_replication: tuple[tuple[int, int], ...] = ()
    alora_invocation_tokens: tuple[int, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=_nothing)
    unknown_keys: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    _match: _Matchers | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, raw: bytes, where: str) -> AdapterConfig:
        """The config in the bytes of an `adapter_config.json`; `where` names the file in errors.

        Raises:
            MalformedConfig: with code E_CONFIG, E_REGEX, E_CODE or E_UNSUPPORTED; the reason lists every problem.
        """
        return cls(**read_config(raw, where))

    @property
    def is_lora(self) -> bool:
        """Whether this is plain LoRA or one of its variants."""
        return self.peft_type == "LORA"

    @property
    def method(self) -> Method:
        """The row of its `peft_type`."""
        return METHODS[self.peft_type]

    @property
    def adds(self) -> bool:
        """Whether its update is added to a module's output, so that several can be added up with weights."""
        return self.method.adds and not self.use_dora

    @property
    def variants(self) -> Mapping[str, Variant]:
        """The variants of LoRA that it uses, by key."""
        return {key: one for key, one in VARIANTS.items() if self._value(key) not in (None, False, (), [], {})}

    def _value(self, key: str) -> object:
        return getattr(self, key, None) or self.extra.get(key)

    def is_of_variant(self, tensor: str) -> bool:
        """Whether a tensor belongs to a variant that it uses, beside the factors of a plain LoRA."""
        marks = self._matchers().marks
        return bool(marks) and any(part.startswith(marks) for part in tensor.split("."))

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why it can never be attached here, whatever the base; each is the end of a sentence, after "it"."""
        if not self.method.factors:
            return (f"has the type {self.peft_type}",)
        reasons = [variant.what for variant in self.variants.values() if not variant.attaches]
        start = shown(self.init_lora_weights)
        if self.start_changes_base:
            reasons.append(
                f"was initialised from the base weights (init_lora_weights {start}), which also changed them: its"
                " update is relative to the changed weights. Convert it to plain LoRA with PEFT's"
                " `path_initial_model_for_weight_conversion`"
            )
        elif self.start_is_unknown:
            reasons.append(f"started from {start}, which is unknown here and may have changed the base")
        return tuple(reasons)

    @property
    def start_changes_base(self) -> bool:
        """Whether its initialisation changed the base weights, so that the update is relative to the changed ones."""
        start = self.init_lora_weights
        return isinstance(start, str) and start.lower().startswith(BASE_CHANGING_STARTS)

    @property
    def start_is_unknown(self) -> bool:
        """Whether its initialisation is unknown, so that it may have changed the base weights."""
        start = self.init_lora_weights
        return isinstance(start, str) and not self.start_changes_base and start.lower() not in HARMLESS_STARTS

    def trained_rows(self, module: str) -> tuple[int, ...]:
        """The rows of the embedding `module` that the adapter trained (`trainable_token_indices`)."""
        indices = self.trainable_token_indices
        if isinstance(indices, Mapping):
            return next((rows for name, rows in indices.items() if module.endswith(name)), ())
        return indices or ()

    @property
    def saved_modules(self) -> tuple[str, ...]:
        """`modules_to_save`, and the heads that PEFT's classes add for a task without writing them to the config."""
        return (*self.modules_to_save, *_IMPLIED_HEADS.get(self.task_type, ()))

    @property
    def base_is_path(self) -> bool:
        """Whether the base is named by a folder of the author's machine, which exists nowhere else."""
        return self.base_model_name_or_path is not None and base_is_path(self.base_model_name_or_path)

    @property
    def targets_all(self) -> bool:
        """Whether the targets depend on the model: `all-linear`, or none at all (PEFT then uses the model type)."""
        if isinstance(self.target_modules, str):
            return self.target_modules.lower() == ALL_LINEAR
        return self.target_modules is None and not self.target_parameters

    def rank_of(self, module: str) -> int:
        """Rank of the LoRA pair on `module`.

        Raises:
            MalformedConfig: E_REGEX when the patterns take too long; E_UNSUPPORTED for a method without a rank.
        """
        if self.r is None:
            raise MalformedConfig(module, f"{self.peft_type} has no rank", code="E_UNSUPPORTED")
        return self.rank_pattern.get(self._key(self._matchers().rank, module), self.r) if self.rank_pattern else self.r

    def alpha_of(self, module: str) -> float:
        """`lora_alpha` of the LoRA pair on `module`; raises as `rank_of`."""
        if self.lora_alpha is None:
            raise MalformedConfig(module, f"{self.peft_type} has no lora_alpha", code="E_UNSUPPORTED")
        if not self.alpha_pattern:
            return self.lora_alpha
        return self.alpha_pattern.get(self._key(self._matchers().alpha, module), self.lora_alpha)

    def scaling_of(self, module: str) -> float:
        """The factor on B @ A: alpha / r, or alpha / sqrt(r) for rsLoRA; raises as `rank_of`."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.use_rslora else rank)

    def adalora_scaling(self, rank: int) -> float:
        """The factor on B diag(E) A of an AdaLoRA module of that rank: training prunes ranks and leaves the divisor."""
        alpha, first = self.lora_alpha or 0, self.extra.get("init_r") or DEFAULT_INIT_RANK
        return float((alpha if alpha > 0 else rank) / (first + ADALORA_MARGIN))

    def targets(self, module: str) -> bool:
        """Whether PEFT would put an adapter on `module`, as far as names can tell (see `targets_all`).

        Raises:
            MalformedConfig: E_REGEX when the patterns take too long.
        """
        if module.rpartition(".")[2] in self._matchers().plain_targets:
            return True
        try:
            return self._targets(module)
        except PatternTooSlow:
            raise self._too_slow(module) from None

    def holds_parameters(self, module: str) -> bool:
        """Whether bare parameters of `module` are targets (`target_parameters`), such as the experts of one layer."""
        return bool(self.parameters_of(module))

    def parameters_of(self, module: str) -> tuple[str, ...]:
        """The parameters of `module` that are targets, in full and sorted.

        PEFT nests one wrapper a parameter, so that `experts.base_layer` is `experts` as well; which of the wrappers is
        on which parameter depends on the base.
        """
        if not self.target_parameters:
            return ()
        holder, owners = owner(module), self._matchers().owners
        names = {name for end in endings(holder) for name in owners.get(end, ())}
        return tuple(f"{holder}.{name}" for name in sorted(names))

    def methods(self) -> tuple[str, ...]:
        """The method and every variant of it that changes what the adapter is, e.g. `("LORA", "rslora")`."""
        marks = {
            "rslora": self.use_rslora,
            "dora": self.use_dora,
            "lora_bias": self.lora_bias,
            f"bias={self.bias}": self.is_lora and self.bias != "none",
            "rank_pattern": bool(self.rank_pattern),
            "alpha_pattern": bool(self.alpha_pattern),
            "modules_to_save": bool(self.modules_to_save),
            "trainable_tokens": self.is_lora and self.trainable_token_indices is not None,
            "target_parameters": bool(self.target_parameters),
            "layer_replication": bool(self.layer_replication),
            "alora": self.alora_invocation_tokens is not None,
            **{one.label: bool(self.extra.get(key)) for key, one in VARIANTS.items() if one.label and self.is_lora},
        }
        return (self.peft_type, *(name for name, is_used in marks.items() if is_used))

    def _targets(self, module: str) -> bool:
        match = self._matchers()
        if self._is_excluded(module, match):
            return False
        if self.targets_all:
            return True
        if match.target is not None:
            return match.target.matches(module)
        # A whole name is taken whatever its layer, as PEFT does. No names at all: target_parameters alone.
        return module in match.targets or (_ends_with_one(module, match.targets) and self._in_layers(module, match))

    def _is_excluded(self, module: str, match: _Matchers) -> bool:
        if match.excluded is not None and match.excluded.matches(module):
            return True
        if _ends_with_one(module, match.exclusions):
            return True
        return match.saved is not None and match.saved.first_group(module) is not None

    def _in_layers(self, module: str, match: _Matchers) -> bool:
        if not self.layers_to_transform or match.layers is None:
            return True
        index = match.layers.first_group(module)
        return bool(index) and int(index or 0) in match.chosen_layers

    def _key(self, keys: KeyPatterns, module: str) -> str:
        try:
            return keys.first(module) or module
        except PatternTooSlow:
            raise self._too_slow(module) from None

    @staticmethod
    def _too_slow(module: str) -> MalformedConfig:
        reason = f"matching its patterns against `{shown(module, 60)}` takes too long"
        return MalformedConfig("adapter_config.json", reason, code="E_REGEX", hint="list the module names instead")

    def _matchers(self) -> _Matchers:
        if self._match is None:
            object.__setattr__(self, "_match", _Matchers(self))
        assert self._match is not None
        return self._match


class _Matchers:
    """The patterns of one config, compiled on first use, with one time budget for all."""

    def __init__(self, config: AdapterConfig) -> None:
        budget = Budget()
        self.rank = KeyPatterns(config.rank_pattern, budget)
        self.alpha = KeyPatterns(config.alpha_pattern, budget)
        target, excluded = config.target_modules, config.exclude_modules
        is_pattern = isinstance(target, str) and not config.targets_all
        self.target = FullPattern(str(target), budget) if is_pattern else None
        self.excluded = FullPattern(excluded, budget) if isinstance(excluded, str) else None
        self.targets = frozenset(target) if isinstance(target, tuple) else frozenset()
        self.exclusions = frozenset(excluded) if isinstance(excluded, tuple) else frozenset()
        self.chosen_layers = frozenset(config.layers_to_transform or ())
        self.marks = tuple(mark for variant in config.variants.values() for mark in variant.marks)
        self.owners: dict[str, list[str]] = {}
        for parameter in config.target_parameters:
            holder, _, name = parameter.rpartition(".")
            self.owners.setdefault(holder, []).append(name)
        saved = config.modules_to_save
        self.saved = AnyPattern(r"(^|.*\.){}($|\..*)", saved, budget) if saved else None
        # Lazy, so that the first number is the layer and not, say, an expert inside it.
        wrapped = r"(?:^|.*?\.){}\.(?P<idx>\d+)\." if config.layers_pattern else r".*?\.[^.]*\.(?P<idx>\d+)\."
        needed = config.layers_pattern or config.layers_to_transform
        self.layers = AnyPattern(wrapped, config.layers_pattern or ("",), budget) if needed else None
        limited = self.excluded or self.exclusions or self.saved or self.layers or config.targets_all
        self.plain_targets: frozenset[str] = frozenset() if limited else self.targets


def _ends_with_one(module: str, names: frozenset[str]) -> bool:
    """Whether `module` is one of `names` or ends with one after a dot; the time does not grow with the names."""
    return module.rpartition(".")[2] in names or (bool(names) and not names.isdisjoint(endings(module)))


def owner(module: str) -> str:
    """The module of the base that a pair belongs to.

    PEFT wraps a module once for each target parameter, so the pairs are on `experts`, `experts.base_layer` and so on.
    Where a layer consists of layers, PEFT puts pairs inside the wrapped one (`attn.base_layer.out_proj` belongs to
    `attn`).
    """
    return module.partition(".base_layer")[0]


def endings(module: str) -> list[str]:
    """A module's name and its endings after each dot."""
    return [module, *(module[at + 1 :] for at, character in enumerate(module) if character == ".")]
