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
from functools import cached_property
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import MalformedConfig, UnsupportedAdapter, shown
from adapterhub.core.limits import limits
from adapterhub.formats.peft.fields import (
    Fields,
    Note,
    auto_mapping_note,
    base_is_path,
    base_problem,
    code_problem,
    is_number,
    is_rank,
    nearest,
)
from adapterhub.formats.peft.methods import (
    ADALORA_MARGIN,
    BASE_CHANGING_STARTS,
    HARMLESS_STARTS,
    METHODS,
    VARIANTS,
    PeftMethod,
    Variant,
)
from adapterhub.formats.peft.patterns import (
    AnyPattern,
    Budget,
    FullPattern,
    KeyPatterns,
    PatternTooSlow,
    is_name,
    pattern_problem,
)

MAX_PATTERNS = 256
MAX_SAVED_MODULES = 64
MAX_TARGET_PARAMETERS = 512
MAX_REPLICATED_LAYERS = 4096
_LEAST_ALPHA = 1e-30  # smaller values vanish in every dtype of weights
_UNKNOWN_NOTED = 20
DEFAULT_RANK = 8
DEFAULT_ALPHA = 8
DEFAULT_INIT_RANK = 12  # of AdaLoRA
ALL_LINEAR = "all-linear"

TASK_TYPES: Final = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")

_LORA_KEYS: Final = frozenset(
    {
        "arrow_config",
        "auto_mapping",
        "corda_config",
        "enable_lora",
        "ensure_weight_tying",
        "eva_config",
        "inference_mode",
        "kasa_config",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "merge_weights",
        "monteclora_config",
        "peft_version",
        "qalora_group_size",
        "runtime_config",
        "use_bdlora",
        "use_qalora",
        "velora_config",
    }
)
"""LoRA settings of PEFT 0.21 (and two of 2023) that have no field of their own here."""

_HINT_BASE = "write the Hub id of the base, or null, into that field"


def _check_not_foreign(value: Mapping[str, Any], where: str) -> None:
    """Raise for configs of other programs that use this file name."""
    if {"fine_tune_type", "lora_parameters", "adapter_path"} & set(value) or {"lora_layers", "iters"} <= set(value):
        raise MalformedConfig(
            where,
            "is a config of Apple's MLX, not of PEFT",
            code="E_UNSUPPORTED",
            hint="convert it to PEFT first: `lora_a` and `lora_b` are PEFT's A and B transposed, alpha is scale * rank",
        )
    version = value.get("version")
    if (isinstance(version, str) and version.startswith("adapters.")) or {"model_class", "config"} <= set(value):
        raise MalformedConfig(
            where,
            "is a config of AdapterHub's `adapters` library, not of PEFT",
            code="E_UNSUPPORTED",
            hint="these are bottleneck layers or another layout than PEFT's; train or export the adapter with PEFT",
        )


def _read(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    peft_type = value.get("peft_type")
    if not isinstance(peft_type, str):
        got = "missing" if peft_type is None else shown(peft_type, 40)
        raise MalformedConfig(where, f"`peft_type` is {got}, expected LORA or another method of PEFT")
    if peft_type not in METHODS:
        reason = (
            f"`peft_type` is {shown(peft_type, 40)}, which no release of PEFT has{nearest(peft_type, sorted(METHODS))}"
        )
        raise MalformedConfig(where, reason, code="E_UNSUPPORTED", hint="`LORA` can be attached and merged here")
    if not METHODS[peft_type].released:
        reason = f"`peft_type` is {peft_type}, which no release of PEFT can load"
        raise MalformedConfig(where, reason, code="E_UNSUPPORTED", hint="train it again with a method of a release")
    code = code_problem(value)
    if code:
        raise MalformedConfig(where, code, code="E_CODE", hint="delete that field; an adapter does not need it")
    fields = Fields(value)
    found = _common(fields)
    found |= _lora(fields) if peft_type == "LORA" else _other(fields)
    _check_base(fields, found["base_model_name_or_path"])
    patterns = _pattern_problems(value)
    _check_together(fields, found)
    if fields.problems:
        hint = _HINT_BASE if any("base_model_name_or_path" in p for p in fields.problems) else ""
        raise MalformedConfig(where, "; ".join(fields.problems[:20]), hint=hint)
    if patterns:
        hint = "list the module names instead: PEFT and vLLM would run this pattern without a time limit"
        raise MalformedConfig(where, "; ".join(patterns[:5]), code="E_REGEX", hint=hint)
    extra = {k: v for k, v in value.items() if k not in fields.taken}
    unknown = tuple(sorted(extra.keys() - _LORA_KEYS)) if peft_type == "LORA" else ()
    for key in unknown[:_UNKNOWN_NOTED]:
        text = f"`{shown(key, 40)}` is not a setting of PEFT 0.21; kept unchanged"
        fields.notes.append(("W_CONFIG_UNKNOWN_KEY", text))
    if more := len(unknown[_UNKNOWN_NOTED:]):
        text = f"{more} more are not settings of PEFT 0.21; kept unchanged"
        fields.notes.append(("W_CONFIG_UNKNOWN_KEY", text))
    found |= {"peft_type": peft_type, "extra": MappingProxyType(extra), "unknown_keys": unknown}
    return found | {"notes": tuple(fields.notes)}


def _common(fields: Fields) -> dict[str, Any]:
    """Return the fields that all methods of PEFT share, with the same name and meaning."""
    fields.take("peft_type")
    task = fields.text("task_type", 64)
    if task is not None and task not in TASK_TYPES:
        reason = f"`task_type` is {shown(task, 40)}, which PEFT refuses to load{nearest(task, TASK_TYPES)}"
        fields.notes.append(("W_TASK_TYPE", reason))
    if fields.has("auto_mapping") and (own_class := auto_mapping_note(fields.value)):
        fields.notes.append(("W_AUTO_MAPPING", own_class))
    revision = fields.text("revision", 256)
    if revision is not None and (revision.startswith("-") or ".." in revision):
        fields.wrong("revision", "a branch, tag or commit")
    layers = fields.names_or_pattern("layers_pattern") if fields.take("layers_pattern") else ()
    return {
        "task_type": task,
        "base_model_name_or_path": fields.text("base_model_name_or_path"),
        "revision": revision,
        "target_modules": fields.names_or_pattern("target_modules"),
        "exclude_modules": fields.names_or_pattern("exclude_modules"),
        "modules_to_save": fields.names("modules_to_save", MAX_SAVED_MODULES),
        "layers_to_transform": fields.integers("layers_to_transform"),
        "layers_pattern": (layers,) if isinstance(layers, str) else layers or (),
    }


def _lora(fields: Fields) -> dict[str, Any]:
    rank, alpha = fields.rank("r"), fields.number("lora_alpha")
    for key, default in (("r", DEFAULT_RANK), ("lora_alpha", DEFAULT_ALPHA)):
        if not fields.has(key):
            fields.notes.append(("W_CONFIG_DEFAULT", f"`{key}` is missing; PEFT's default {default} is taken"))
    patterns = _patterns(fields)
    alphas = patterns["alpha_pattern"]
    for name, number in [("lora_alpha", alpha), *((f"alpha_pattern.{k}", v) for k, v in alphas.items())]:
        if is_number(number) and number is not None and number < _LEAST_ALPHA:
            effect = "the adapter has no effect" if number > -_LEAST_ALPHA else "the update is turned around"
            fields.notes.append(("W_ALPHA", f"`{shown(name, 60)}` is {number}: {effect}"))
    dropout, inference = fields.value.get("lora_dropout"), fields.value.get("inference_mode")
    if dropout is not None and not (is_number(dropout) and 0 <= dropout <= 1):
        fields.wrong("lora_dropout", "a number from 0 to 1")
    if inference not in (None, True, False):  # 0 and 1 are these
        fields.wrong("inference_mode", "true or false")
    bias = fields.text("bias", 16)
    if bias not in (None, "none", "all", "lora_only"):
        fields.wrong("bias", "none, all or lora_only")
    return {
        "r": rank or DEFAULT_RANK,
        "lora_alpha": DEFAULT_ALPHA if alpha is None else alpha,
        **patterns,
        "use_rslora": fields.flag("use_rslora"),
        "use_dora": fields.flag("use_dora"),
        "lora_bias": fields.flag("lora_bias"),
        "bias": bias or "none",
        "fan_in_fan_out": fields.flag("fan_in_fan_out"),
        "init_lora_weights": _initialisation(fields),
        "target_parameters": fields.names("target_parameters", MAX_TARGET_PARAMETERS),
        "trainable_token_indices": _token_indices(fields),
        "layer_replication": _replication(fields),
        "alora_invocation_tokens": fields.integers("alora_invocation_tokens"),
    }


def _patterns(fields: Fields) -> dict[str, Mapping[str, Any]]:
    ranks = fields.numbers_by_pattern("rank_pattern", is_rank, f"a whole number from 1 to {limits().rank}")
    alphas = fields.numbers_by_pattern("alpha_pattern", is_number, "a finite number")
    return {"rank_pattern": MappingProxyType(ranks), "alpha_pattern": MappingProxyType(alphas)}


def _alpha(fields: Fields, key: str) -> float:
    alpha = fields.number(key)
    return DEFAULT_ALPHA if alpha is None else alpha


def _initialisation(fields: Fields) -> bool | str:
    if isinstance(fields.value.get("init_lora_weights"), str):
        return fields.text("init_lora_weights", 64) or True
    return fields.flag("init_lora_weights", default=True)


def _token_indices(fields: Fields) -> tuple[int, ...] | Mapping[str, tuple[int, ...]] | None:
    key = "trainable_token_indices"
    value = fields.value.get(key)
    if not isinstance(value, dict):
        return fields.integers(key)
    fields.taken.add(key)
    inner = Fields(value)
    lists = {name: inner.integers(name) or () for name in value}
    if inner.problems:
        fields.wrong(key, "token numbers, or an object from layer names to token numbers")
    return MappingProxyType(lists)


def _replication(fields: Fields) -> tuple[tuple[int, int], ...]:
    value = fields.take("layer_replication")
    if value is None:
        return ()
    pair = 2
    is_pairs = isinstance(value, list) and all(
        isinstance(p, list) and len(p) == pair and all(type(i) is int and i >= 0 for i in p) for p in value
    )
    if not is_pairs:
        fields.wrong("layer_replication", "a list of [start, end] pairs")
        return ()
    if sum(max(last - first, 1) for first, last in value) > MAX_REPLICATED_LAYERS:
        fields.wrong("layer_replication", f"at most {MAX_REPLICATED_LAYERS} layers in all")
        return ()
    return tuple((first, last) for first, last in value)


def _other(fields: Fields) -> dict[str, Any]:
    """Methods other than LoRA: a plain rank, and what they train beside their factors; the rest stays in `extra`."""
    found: dict[str, Any] = {"r": fields.rank("r") if is_rank(fields.value.get("r")) else None}
    peft_type = fields.value["peft_type"]
    if peft_type == "ADALORA":
        found["lora_alpha"] = _alpha(fields, "lora_alpha")
        if fields.has("init_r") and not is_rank(fields.value["init_r"]):
            fields.wrong("init_r", f"a whole number from 1 to {limits().rank}")
    elif peft_type in ("LOHA", "LOKR"):
        found["r"] = found["r"] or DEFAULT_RANK
        found["lora_alpha"] = _alpha(fields, "alpha")
        found |= _patterns(fields)
    if isinstance(fields.value.get("bias"), str):
        found["bias"] = fields.text("bias", 16) or "none"
    if fields.has("trainable_token_indices"):
        found["trainable_token_indices"] = _token_indices(fields)
    return found


def _check_base(fields: Fields, base: str | None) -> None:
    key = "base_model_name_or_path"
    # PEFT writes an empty name for a model that was built from a config.
    if base is None or not base.strip():
        if not fields.has(key) or base is not None:
            fields.notes.append(("W_BASE_MISSING", f"`{key}` is missing; nothing says which base it needs"))
        return
    problem = base_problem(base)
    if problem:
        fields.problems.append(f"`{key}` is {shown(base)}, {problem}; expected a hub id such as org/model")
    elif base_is_path(base):
        fields.notes.append(("W_BASE_PATH", f"`{key}` is {shown(base)}, a folder of its author's machine"))


def _pattern_problems(value: Mapping[str, Any]) -> list[str]:
    """Why patterns of a config must not be run. Names that PEFT puts into a pattern unescaped count as patterns."""
    patterns: list[tuple[str, object]] = []
    for key, setting in value.items():
        if key in ("target_modules", "exclude_modules", "feedforward_modules") and isinstance(setting, str):
            patterns += [(key, setting)] if setting.lower() != ALL_LINEAR else []
        elif key in ("modules_to_save", "layers_pattern") or (key.endswith("_pattern") and isinstance(setting, dict)):
            several = (
                setting if isinstance(setting, list | dict) else [setting]
            )  # of another kind: no text, said elsewhere
            patterns += [(key, item) for item in several]
    texts = [(key, item) for key, item in patterns if isinstance(item, str) and not is_name(item)]
    if len(texts) > MAX_PATTERNS:
        return [f"holds {len(texts)} patterns that are no names, expected at most {MAX_PATTERNS}"]
    problems = []
    for key, pattern in texts:
        problem = pattern_problem(pattern)
        if problem:
            problems.append(f"`{key}` holds the pattern {shown(pattern)}, which {problem}")
    return problems


def _check_together(fields: Fields, found: Mapping[str, Any]) -> None:
    """Record settings that PEFT refuses in combination."""
    target = found["target_modules"]
    if target == () and not found.get("target_parameters"):
        fields.wrong("target_modules", "at least one module")
    if isinstance(target, str) and (found["layers_to_transform"] is not None or found["layers_pattern"]):
        fields.problems.append("`layers_to_transform` and `layers_pattern` need `target_modules` as a list of names")
    if found["layers_pattern"] and found["layers_to_transform"] is None:
        fields.problems.append("`layers_pattern` is given without `layers_to_transform`")
    if found.get("lora_bias") and found.get("use_dora"):
        fields.problems.append("`lora_bias` and `use_dora` exclude each other")


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
    """Return PEFT's name of a saved module's tensor, without the container that some writers leave in it."""
    return _CONTAINER.sub("", tensor) if ".modules_to_save" in tensor else tensor


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
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

    @classmethod
    def parse(cls, raw: bytes, where: str) -> AdapterConfig:
        """Return the config in the bytes of an `adapter_config.json`; `where` names the file in errors.

        Raises:
            MalformedConfig: with code E_CONFIG, E_REGEX, E_CODE or E_UNSUPPORTED; the reason lists every problem.
        """
        try:
            value = strict_json(raw, limit_bytes=limits().config_bytes)
        except ValueError as error:
            raise MalformedConfig(where, str(error)) from None
        if not isinstance(value, dict):
            raise MalformedConfig(where, f"holds {shown(value, 40)}, expected an object of settings")
        if "peft_type" not in value:
            _check_not_foreign(value, where)
        return cls(**_read(value, where))

    @property
    def is_lora(self) -> bool:
        """Whether this is plain LoRA or one of its variants."""
        return self.peft_type == "LORA"

    @property
    def method(self) -> PeftMethod:
        """The row of its `peft_type`."""
        return METHODS[self.peft_type]

    @property
    def adds(self) -> bool:
        """Whether its update is added to a module's output, so that several can be added up with weights."""
        return self.method.adds and not self.use_dora

    @cached_property
    def variants(self) -> Mapping[str, Variant]:
        """The variants of LoRA that it uses, by key."""
        return {key: one for key, one in VARIANTS.items() if getattr(self, key, None) or self.extra.get(key)}

    @property
    def reshapes(self) -> bool:
        """Whether a variant gives its factors other shapes than [r, in] and [out, r]."""
        return any(map(attrgetter("reshapes"), self.variants.values()))

    def is_of_variant(self, tensor: str) -> bool:
        """Return whether a tensor belongs to a variant that it uses, beside the factors of a plain LoRA."""
        marks = self._matchers.marks
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
        """Return the rows of the embedding `module` that the adapter trained (`trainable_token_indices`)."""
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
        keys = self._matchers.rank if self.rank_pattern else None
        return self.r if keys is None else self.rank_pattern.get(self._key(keys, module), self.r)

    def alpha_of(self, module: str) -> float:
        """`lora_alpha` of the LoRA pair on `module`; raises as `rank_of`."""
        if self.lora_alpha is None:
            raise MalformedConfig(module, f"{self.peft_type} has no lora_alpha", code="E_UNSUPPORTED")
        keys = self._matchers.alpha if self.alpha_pattern else None
        return self.lora_alpha if keys is None else self.alpha_pattern.get(self._key(keys, module), self.lora_alpha)

    def scaling_of(self, module: str) -> float:
        """Return the factor on B @ A: alpha / r, or alpha / sqrt(r) for rsLoRA; raises as `rank_of`."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.use_rslora else rank)

    def adalora_scaling(self, rank: int) -> float:
        """Return the factor on B diag(E) A of an AdaLoRA module of that rank: pruning leaves the divisor unchanged."""
        alpha, first = self.lora_alpha or 0, self.extra.get("init_r") or DEFAULT_INIT_RANK
        return float((alpha if alpha > 0 else rank) / (first + ADALORA_MARGIN))

    def targets(self, module: str) -> bool:
        """Return whether PEFT would put an adapter on `module`, as far as names can tell (see `targets_all`).

        Raises:
            MalformedConfig: E_REGEX when the patterns take too long.
        """
        match = self._matchers
        if module.rpartition(".")[2] in match.plain_targets:
            return True
        try:
            if self._is_excluded(module, match):
                return False
            if self.targets_all:
                return True
            if match.target is not None:
                return match.target.matches(module)
            # A whole name is taken whatever its layer, as PEFT does. No names at all: target_parameters alone.
            return module in match.targets or (_ends_with_one(module, match.targets) and self._in_layers(module, match))
        except PatternTooSlow:
            raise self._too_slow(module) from None

    def targets_parameter(self, name: str) -> bool:
        """Return whether the parameter `name` of the base, in full, is a target (`target_parameters`)."""
        return not self._matchers.parameters.isdisjoint(endings(name))

    @property
    def has_bare_parameters(self) -> bool:
        """Whether some targets name a parameter without its module, as `gate_up_proj` does."""
        return "" in self._matchers.owners

    def holds_parameters(self, module: str) -> bool:
        """Whether bare parameters of `module` are targets (`target_parameters`), such as the experts of one layer."""
        return bool(self.parameters_of(module))

    def parameters_of(self, module: str) -> tuple[str, ...]:
        """Return the parameters of `module` that are targets, in full and sorted.

        PEFT nests one wrapper a parameter, so that `experts.base_layer` is `experts` as well; which of the wrappers is
        on which parameter depends on the base. A target without a module (`gate_up_proj`) may be in any that is not
        itself a target, because PEFT refuses a parameter of one that is, and that no other target names.
        """
        if not self.target_parameters:
            return ()
        holder, owners = owner(module), self._matchers.owners
        names = {name for end in endings(holder) for name in owners.get(end, ())}
        if not names and self.has_bare_parameters and not self.targets(holder):
            names.update(owners[""])
        return tuple(f"{holder}.{name}" for name in sorted(names))

    def methods(self) -> tuple[str, ...]:
        """Return the method and every variant of it that changes what the adapter is, e.g. `("LORA", "rslora")`."""
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
        }
        labels = map(attrgetter("label"), self.variants.values() if self.is_lora else ())
        return (self.peft_type, *filter(marks.get, marks), *filter(None, labels))

    def _is_excluded(self, module: str, match: _Matchers) -> bool:
        if match.excluded is not None and match.excluded.matches(module):
            return True
        if match.exclusions and _ends_with_one(module, match.exclusions):
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

    @cached_property
    def _matchers(self) -> _Matchers:
        return _Matchers(self)


class _Matchers:
    """The patterns of one config, compiled on first use, with one time budget for all."""

    def __init__(self, config: AdapterConfig) -> None:
        budget = Budget()
        self.rank = KeyPatterns(config.rank_pattern, budget) if config.rank_pattern else None
        self.alpha = KeyPatterns(config.alpha_pattern, budget) if config.alpha_pattern else None
        target, excluded = config.target_modules, config.exclude_modules
        is_pattern = isinstance(target, str) and not config.targets_all
        self.target = FullPattern(str(target), budget) if is_pattern else None
        self.excluded = FullPattern(excluded, budget) if isinstance(excluded, str) else None
        self.targets = frozenset(target) if isinstance(target, tuple) else frozenset()
        self.exclusions = frozenset(excluded) if isinstance(excluded, tuple) else frozenset()
        self.chosen_layers = frozenset(config.layers_to_transform or ())
        self.marks = tuple(chain.from_iterable(map(attrgetter("marks"), config.variants.values())))
        self.parameters = frozenset(config.target_parameters)
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
    """Return whether `module` is one of `names` or ends with one after a dot; the time does not grow with the names."""
    return module.rpartition(".")[2] in names or (bool(names) and not names.isdisjoint(endings(module)))


def owner(module: str) -> str:
    """Return the module of the base that a pair belongs to.

    PEFT wraps a module once for each target parameter, so the pairs are on `experts`, `experts.base_layer` and so on.
    For a layer that consists of layers, PEFT puts pairs inside the wrapped one (`attn.base_layer.out_proj` belongs to
    `attn`).
    """
    return module.partition(".base_layer")[0]


def endings(module: str) -> list[str]:
    """Return a module's name and its endings after each dot."""
    return [module, *(module[at + 1 :] for at, character in enumerate(module) if character == ".")]


def ensure_attachable(config: AdapterConfig, label: str) -> None:
    """Raise for a method or a setting that can never be attached here; `label` names the adapter.

    Raises:
        UnsupportedAdapter: with every such method or setting.
    """
    obstacles = config.obstacles
    if not config.method.factors:
        raise UnsupportedAdapter(
            f"`{shown(label)}` {obstacles[0]}, which cannot be attached here",
            hint="`adapt resize NAME --to lora` makes a LoRA of it if it is linear; types that can be attached: "
            + ", ".join(name for name, method in METHODS.items() if method.factors),
        )
    if obstacles:
        raise UnsupportedAdapter(f"`{shown(label)}` cannot be attached here", [f"it {one}" for one in obstacles])
