"""The `adapter_config.json` of a merge: scale 1 in every module, and exactly the merged modules as targets."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from adapterhub.core.errors import shown
from adapterhub.formats.peft.config import owner
from adapterhub.weights.lowrank.factors import AdapterFactors
from adapterhub.weights.merge._carried import config_of
from adapterhub.weights.merge.plan import MergePlan


def merged_config(
    adapters: Sequence[AdapterFactors], plan: MergePlan, ranks: Mapping[str, int]
) -> tuple[dict[str, object], list[str]]:
    """The config of a merge of `adapters` whose module m has the rank `ranks[m]` in a config; and warnings.

    The scale of a module is alpha / rank, so alpha equals the rank everywhere, in the patterns too. A merge of
    adapters that name different bases or tasks says so in a warning; whether the bases are one is not known here.
    """
    by_name = {name: rank for module, rank in ranks.items() for name in _names(module, plan)}
    # PEFT warns of a pattern for a parameter, as if it were never used; so the rank of those is the common one.
    of_parameters = [ranks[module] for module in plan.parameters]
    r = common_rank(of_parameters or by_name.values())
    pattern = rank_pattern(by_name, r)
    configs = [adapter.config for adapter in adapters]
    warnings: list[str] = []
    base = _agreed("base", [c.base_model_name_or_path for c in configs], warnings)
    task = _agreed("task_type", [c.task_type for c in configs], warnings)
    revisions = {c.revision for c in configs if c.base_model_name_or_path == base}
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "revision": revisions.pop() if len(revisions) == 1 else None,
        "r": r,
        "lora_alpha": r,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "use_rslora": False,
        "use_dora": False,
        "lora_bias": plan.has_bias,
        "target_modules": target_modules(adapters, [m for m in ranks if m not in plan.parameters]),
        "target_parameters": target_parameters(adapters, plan.parameters) or None,
        # PEFT takes no parameters as targets where it is told that; and no base of such layers has any.
        "fan_in_fan_out": any(c.fan_in_fan_out for c in configs) and not plan.parameters,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
        **config_of(plan.carried),
        **plan.settings,
    }
    return config, warnings


def _names(module: str, plan: MergePlan) -> tuple[str, ...]:
    """The names that PEFT matches against the patterns of a config to find the rank of a pair."""
    return plan.parameters.get(module) or (owner(module),)


def common_rank(ranks: Iterable[int]) -> int:
    """The rank that most modules have; of two equally common ones the larger."""
    return max(Counter(ranks).items(), key=lambda item: (item[1], item[0]))[0]


def rank_pattern(ranks: Mapping[str, int], r: int) -> dict[str, int]:
    """PEFT's `rank_pattern` for modules whose rank is not `r`: by last name where all such modules agree, else in full.

    PEFT matches a key as a regular expression against the end of a module's name, at a dot, and takes the first that
    matches. Here no module is matched by two keys, so their order is free.
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
                # A full name may also be the end of another one: `layers.0.q` of `decoder.layers.0.q`.
                is_an_end = any(other.endswith("." + module) for other in modules)
                pattern["^" * is_an_end + _literal(module)] = ranks[module]
    return pattern


def target_modules(adapters: Sequence[AdapterFactors], modules: Iterable[str]) -> list[str]:
    """PEFT's `target_modules` for exactly `modules`: short names where they are safe, else in full.

    A short name is safe if one of the adapters targets it in every layer and has all of the merged modules that it
    matches: PEFT then found no others in the base. Otherwise the name could reach modules that no adapter has.
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
    """PEFT's `target_parameters` for exactly those in `parameters`, on the same terms."""
    wanted = {name for names in parameters.values() for name in names}
    safe: set[str] = set()
    for adapter in adapters:
        available = {name for factors in adapter.modules.values() for name in factors.parameters}
        safe |= _safe(adapter.config.target_parameters, wanted, available)
    return _shortest(safe, wanted)


def _safe(entries: Iterable[str], wanted: Collection[str], available: Collection[str]) -> set[str]:
    """The entries that reach something of `wanted`, and nothing of it that is not in `having`."""
    reached = {entry: [name for name in wanted if _ends_with(name, entry)] for entry in entries}
    return {entry for entry, names in reached.items() if names and all(name in available for name in names)}


def _shortest(safe: Collection[str], wanted: Collection[str]) -> list[str]:
    """The safe entries and the names that they do not reach, without what another one reaches."""
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
    """`name` as a pattern that matches it; the names that Python gives to modules stand for themselves."""
    return name if re.fullmatch(r"[\w.-]+", name) else re.escape(name)


def _agreed(what: str, values: Sequence[str | None], warnings: list[str]) -> str | None:
    """The value that all inputs which have one agree on; with a warning, the first one, if they do not."""
    named = list(dict.fromkeys(v for v in values if v is not None))
    if len(named) > 1:
        each = ", ".join(f"`{shown(v)}`" for v in named)
        warnings.append(f"the adapters name different values of {what}: {each}; the first is kept")
    return named[0] if named else None
