"""From the bytes of an `adapter_config.json` to checked fields."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import MalformedConfig, shown
from adapterhub.core.limits import limits
from adapterhub.formats.peft.fields import Fields, is_number, is_rank
from adapterhub.formats.peft.methods import METHODS
from adapterhub.formats.peft.names import auto_mapping_note, base_is_path, base_problem, code_problem, nearest
from adapterhub.formats.peft.patterns import is_name, pattern_problem

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


def read_config(raw: bytes, where: str) -> dict[str, Any]:
    """The fields of `AdapterConfig`, by name, from the bytes of an `adapter_config.json`.

    Raises:
        MalformedConfig: with code E_CONFIG, E_REGEX, E_CODE or E_UNSUPPORTED; the reason lists every problem.
    """
    try:
        value = strict_json(raw, limit_bytes=limits().config_bytes)
    except ValueError as error:
        raise MalformedConfig(where, str(error)) from None
    if not isinstance(value, dict):
        raise MalformedConfig(where, f"holds {shown(value, 40)}, expected an object of settings")
    _check_not_foreign(value, where)
    return _read(value, where)


def _check_not_foreign(value: Mapping[str, Any], where: str) -> None:
    """Raise for configs of other programs that use this file name."""
    if "peft_type" in value:
        return
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
    unknown = tuple(sorted(set(extra) - _LORA_KEYS)) if peft_type == "LORA" else ()
    noted = [f"`{shown(key, 40)}` is not a setting of PEFT 0.21; kept unchanged" for key in unknown[:_UNKNOWN_NOTED]]
    if unknown[_UNKNOWN_NOTED:]:
        noted.append(f"{len(unknown) - _UNKNOWN_NOTED} more are not settings of PEFT 0.21; kept unchanged")
    fields.notes += [("W_CONFIG_UNKNOWN_KEY", text) for text in noted]
    found |= {"peft_type": peft_type, "extra": MappingProxyType(extra), "unknown_keys": unknown}
    return found | {"notes": tuple(fields.notes)}


def _common(fields: Fields) -> dict[str, Any]:
    """The fields that all methods of PEFT share, with the same name and meaning."""
    fields.take("peft_type")
    task = fields.text("task_type", 64)
    if task is not None and task not in TASK_TYPES:
        reason = f"`task_type` is {shown(task, 40)}, which PEFT refuses to load{nearest(task, TASK_TYPES)}"
        fields.notes.append(("W_TASK_TYPE", reason))
    own_class = auto_mapping_note(fields.value)
    if own_class:
        fields.notes.append(("W_AUTO_MAPPING", own_class))
    revision = fields.text("revision", 256)
    if revision is not None and (revision.startswith("-") or ".." in revision):
        fields.wrong("revision", "a branch, tag or commit")
    return {
        "task_type": task,
        "base_model_name_or_path": fields.text("base_model_name_or_path"),
        "revision": revision,
        "target_modules": fields.names_or_pattern("target_modules"),
        "exclude_modules": fields.names_or_pattern("exclude_modules"),
        "modules_to_save": fields.names("modules_to_save", MAX_SAVED_MODULES),
        "layers_to_transform": fields.integers("layers_to_transform"),
        "layers_pattern": _layers_pattern(fields),
    }


def _layers_pattern(fields: Fields) -> tuple[str, ...]:
    if not fields.take("layers_pattern"):
        return ()
    found = fields.names_or_pattern("layers_pattern")
    return (found,) if isinstance(found, str) else found or ()


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
