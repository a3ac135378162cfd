"""The `adapter_config.json` of a merge: scale 1 in every module, and exactly the merged modules as targets."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from adapterhub.core.errors import shown
from adapterhub.formats.peft.config import owner
from adapterhub.formats.peft.methods import ADALORA_MARGIN
from adapterhub.weights.lowrank.factors import AdapterFactors
from adapterhub.weights.merge._carried import config_of
from adapterhub.weights.merge.plan import MergePlan


def merged_config(
    adapters: Sequence[AdapterFactors], plan: MergePlan, ranks: Mapping[str, int]
) -> tuple[dict[str, object], list[str]]:
    """The config of a merge of `adapters` in which module m has the rank `ranks[m]`, and warnings.

    The scale of a module is alpha / rank, so alpha equals the rank everywhere, also in the patterns. Adapters that name
    different bases or tasks give a warning; the names alone do not show whether the bases are equal.
    """
    by_name = {name: rank for module, rank in ranks.items() for name in _names(module, plan)}
    # PEFT wrongly warns that a pattern for a parameter is unused, so parameters get the common rank.
    of_parameters = [ranks[module] for module in plan.parameters]
    r = common_rank(of_parameters or by_name.values())
    pattern = rank_pattern(by_name, r)
    configs = [adapter.config for adapter in adapters]
    warnings: list[str] = []
    base = _agreed("base", [c.base_model_name_or_path for c in configs], warnings)
    task = _agreed("task_type", [c.task_type for c in configs], warnings)
    revisions = {c.revision for c in configs if c.base_model_name_or_path == base}
    config: dict[str, object] = {
        "task_type": task,
        "base_model_name_or_path": base,
        "revision": revisions.pop() if len(revisions) == 1 else None,
        "target_modules": target_modules(adapters, [m for m in ranks if m not in plan.parameters]),
        "inference_mode": True,
        **config_of(plan.carried),
    }
    kinds = {layout.kind for layout in plan.layouts.values()}
    if kinds == {"loha"}:
        own: dict[str, object] = {"peft_type": "LOHA", "r": r, "alpha": r, "init_weights": True}
        return config | own | {"rank_pattern": pattern, "alpha_pattern": pattern}, warnings
    fan_in_fan_out = any(c.fan_in_fan_out for c in configs) or any(c.extra.get("fan_in_fan_out") for c in configs)
    if kinds == {"adalora"}:
        most = max(ranks.values())
        own = {"peft_type": "ADALORA", "init_r": most, "target_r": most, "total_step": 1}
        own["lora_alpha"] = most + ADALORA_MARGIN  # so that the scale is 1
        others = {
            f"{module}.lora_E": [True] * rank + [False] * (most - rank)
            for module, rank in ranks.items()
            if rank != most
        }
        return config | own | {"rank_pattern": others or None, "fan_in_fan_out": fan_in_fan_out}, warnings
    config |= {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": r,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "use_rslora": False,
        "use_dora": False,
        "lora_bias": plan.has_bias,
        "target_parameters": target_parameters(adapters, plan.parameters) or None,
        # PEFT rejects target parameters together with fan_in_fan_out, and no base with such layers has any.
        "fan_in_fan_out": fan_in_fan_out and not plan.parameters,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        **plan.settings,
    }
    return config, warnings


def _names(module: str, plan: MergePlan) -> tuple[str, ...]:
    """The names that PEFT matches against the patterns of a config for the rank of a pair."""
    return plan.parameters.get(module) or (owner(module),)


def common_rank(ranks: Iterable[int]) -> int:
    """The rank of most modules; the larger of two equally common ranks."""
    return max(Counter(ranks).items(), key=lambda item: (item[1], item[0]))[0]


def rank_pattern(ranks: Mapping[str, int], r: int) -> dict[str, int]:
    """PEFT's `rank_pattern` for modules whose rank is not `r`: by last name where such modules agree, else in full.

    PEFT matches each key as a regular expression against the end of a module's name, at a dot, and takes the first
    match. Here no module matches two keys, so their order does not matter.
    """
    by_leaf: defaultdict[str, list[str]] = defaultdict(list)
    for module in ranks:
        by_leaf[_leaf(module)].append(module)
    pattern: dict[str, int] = {}
    for leaf, modules in sorted(by_leaf.items()):
        if len({ranks[m] for m in modules}) == 1:
            if ranks[modules[0]] != r:
                pattern[_literal(leaf)] = ranks[modules[0]]
            continue
        for module in sorted(modules):
            if ranks[module] != r:
                # One full name may be the end of another: `layers.0.q` and `decoder.layers.0.q`.
                is_an_end = any(other.endswith("." + module) for other in modules)
                pattern["^" * is_an_end + _literal(module)] = ranks[module]
    return pattern


def target_modules(adapters: Sequence[AdapterFactors], modules: Iterable[str]) -> list[str]:
    """PEFT's `target_modules` for exactly `modules`: short names where they are safe, else full names.

    A short name is safe if one of the adapters targets it in every layer and has all merged modules that it matches:
    PEFT then found no others in the base. Any other short name might match modules that no adapter has.
    """
    wanted = {owner(module) for module in modules}
    safe: set[str] = set()
    for adapter in adapters:
        config = adapter.config
        if isinstance(config.target_modules, str) or config.layers_to_transform or config.exclude_modules:
            continue
        safe |= _safe(config.target_modules or (), wanted, {owner(module) for module in adapter.modules})
    return _shortest(safe, wanted)


def target_parameters(adapters: Sequence[AdapterFactors], parameters: Mapping[str, tuple[str, ...]]) -> list[str]:
    """PEFT's `target_parameters` for exactly the `parameters`, shortened under the same rule."""
    wanted = {name for names in parameters.values() for name in names}
    safe: set[str] = set()
    for adapter in adapters:
        available = {name for factors in adapter.modules.values() for name in factors.parameters}
        safe |= _safe(adapter.config.target_parameters, wanted, available)
    return _shortest(safe, wanted)


def _safe(entries: Iterable[str], wanted: Collection[str], available: Collection[str]) -> set[str]:
    """The entries that match names in `wanted`, all of which are in `available`."""
    reached = {entry: [name for name in wanted if _ends_with(name, entry)] for entry in entries}
    return {entry for entry, names in reached.items() if names and all(name in available for name in names)}


def _shortest(safe: Collection[str], wanted: Collection[str]) -> list[str]:
    """The safe entries and the full names that they do not match, less those that another entry matches."""
    chosen = {*safe, *(name for name in wanted if not _has_end_in(name, safe))}
    return sorted(entry for entry in chosen if not _has_end_in(entry, chosen - {entry}))


def _has_end_in(name: str, ends: Collection[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[i:]) in ends for i in range(len(parts)))


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _literal(name: str) -> str:
    """`name` as a pattern that matches it; an ordinary module name needs no escapes."""
    return name if re.fullmatch(r"[\w.-]+", name) else re.escape(name)


def _agreed(what: str, values: Sequence[str | None], warnings: list[str]) -> str | None:
    """The common value of the adapters that have one; if they differ, the first value, with a warning."""
    named = list(dict.fromkeys(v for v in values if v is not None))
    if len(named) > 1:
        each = ", ".join(f"`{shown(v)}`" for v in named)
        warnings.append(f"the adapters differ in their {what}: {each}; the merge keeps the first")
    return named[0] if named else None
