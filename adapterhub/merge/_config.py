"""The `adapter_config.json` of a merge: scale 1 in every module, and exactly the merged modules as targets."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from adapterhub.errors import shown
from adapterhub.factors import AdapterFactors


def merged_config(
    adapters: Sequence[AdapterFactors], ranks: Mapping[str, int], saved_modules: Iterable[str]
) -> tuple[dict[str, object], list[str]]:
    """The config of a merge of `adapters` whose module m has rank `ranks[m]`; and warnings.

    The scale of a module is alpha / rank, so alpha equals the rank everywhere, in the patterns too. A merge of
    adapters that name different bases or tasks says so in a warning; whether the bases are one is not known here.
    """
    r = common_rank(ranks.values())
    pattern = rank_pattern(ranks, r)
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
        "target_modules": target_modules(adapters, ranks),
        "modules_to_save": sorted(set(saved_modules)) or None,
        "fan_in_fan_out": any(c.fan_in_fan_out for c in configs),
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return config, warnings


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


def target_modules(adapters: Sequence[AdapterFactors], modules: Collection[str]) -> list[str]:
    """PEFT's `target_modules` for exactly `modules`: short names where they are safe, else in full.

    A short name is safe if one of the adapters targets it in every layer and has all of the merged modules that it
    matches: PEFT then found no others in the base. Otherwise the name could reach modules that no adapter has.
    """
    safe: set[str] = set()
    for adapter in adapters:
        config = adapter.config
        if isinstance(config.target_modules, str) or config.layers_to_transform or config.exclude_modules:
            continue
        for entry in config.target_modules or ():
            reached = [m for m in modules if _ends_with(m, entry)]
            if reached and all(m in adapter.modules for m in reached):
                safe.add(entry)
    chosen = safe | {m for m in modules if not _has_end_in(m, safe)}
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
