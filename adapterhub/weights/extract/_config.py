"""The `adapter_config.json` of an extracted LoRA."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from adapterhub.weights.extract._models import Model
from adapterhub.weights.merge.config import common_rank, rank_pattern


def extracted_config(
    base: Model, tuned: Model, ranks: Mapping[str, int], paths: Iterable[str], saved: Iterable[str], *, turned: bool
) -> dict[str, Any]:
    """The config for factors of rank `ranks[module]`: scale 1 everywhere, exactly those modules as targets.

    `paths` are all modules in the files of both models, `saved` the modules that are carried whole. `turned` is true if
    some weights are stored as [in, out]. The config names the base by its Hub id, never by a local folder.
    """
    hints = base.record.hints
    r = common_rank(ranks.values())
    pattern = rank_pattern(ranks, r)
    return {
        "peft_type": "LORA",
        "task_type": tuned.task_type,
        "base_model_name_or_path": hints.hub_id,
        "revision": hints.commit if hints.hub_id else None,
        "r": r,
        "lora_alpha": r,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": short_names(ranks, paths),
        "modules_to_save": sorted(saved) or None,
        "fan_in_fan_out": turned,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def short_names(modules: Collection[str], paths: Iterable[str]) -> list[str]:
    """PEFT's `target_modules` for exactly `modules`: the last name where all modules of that name are targets.

    PEFT targets every module whose name ends with an entry, at a dot.
    """
    apart = {path.rpartition(".")[2] for path in set(paths).difference(modules)}
    leaves = {module: module.rpartition(".")[2] for module in modules}
    return sorted({module if leaf in apart else leaf for module, leaf in leaves.items()})
