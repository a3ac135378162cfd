"""The facts about an attached adapter: as a value for programs, and in lines for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from adapterhub.core.errors import shown
from adapterhub.distribution.finding import FoundAdapter
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.inference.loader.base_check import BaseCheckResult
from adapterhub.inference.loader.injection import ReadyAdapter
from adapterhub.inference.loader.methods import Scale


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleGroup:
    """Modules whose updates have the same scale; `scaling` is the adapter's own, without its weight in a mixture."""

    rank: int
    alpha: float
    scaling: float
    modules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedAdapter:
    """The facts about one attached adapter. `compared` says in words how its base compares with the model."""

    label: str
    folder: Path
    weight: float
    method: tuple[str, ...]
    verdict: BaseVerdict
    compared: tuple[str, ...]
    scales: tuple[ScaleGroup, ...]
    saved_modules: tuple[str, ...]
    parameters: int
    warnings: tuple[str, ...]


def facts(found: FoundAdapter, ready: ReadyAdapter, base: BaseCheckResult, pinned: tuple[str, ...]) -> AttachedAdapter:
    """The facts about one adapter, collected from its checks."""
    contents = ready.contents
    tensors = [*contents.factors.values(), *contents.saved.values(), contents.shared, contents.biases, contents.rows]
    groups: Counter[Scale] = Counter(ready.setup.scales.values())
    replaces = {"modules": contents.saved, "biases": contents.biases, "rows of embeddings": contents.rows}
    replaced = " and ".join(what for what, tensors in replaces.items() if tensors)
    whole = f"its weight does not apply to {replaced} that it replaces" if replaced and found.weight != 1 else ""
    return AttachedAdapter(
        label=found.label,
        folder=found.folder,
        weight=found.weight,
        method=contents.config.methods(),
        verdict=base.comparison.verdict,
        compared=base.comparison.differences,
        scales=tuple(
            ScaleGroup(rank=scale.rank, alpha=scale.alpha, scaling=scale.scaling, modules=count)
            for scale, count in sorted(groups.items(), key=lambda group: (-group[1], group[0].rank, group[0].alpha))
        ),
        saved_modules=tuple(contents.saved),
        parameters=sum(spec.elements for specs in tensors for spec in specs.values()),
        warnings=(
            *found.warnings,
            *contents.warnings,
            *ready.setup.warnings,
            *base.warnings,
            *([whole] if whole else []),
            *pinned,
        ),
    )


def lines(adapter: AttachedAdapter) -> list[str]:
    """The facts in lines for people."""
    weight = f"  weight {adapter.weight:g}" if adapter.weight != 1 else ""
    text = [f"{shown(adapter.label, 200)}  {', '.join(adapter.method)}{weight}"]
    text.append(f"  base: {adapter.verdict.value}; {'; '.join(adapter.compared)}")
    text += [
        f"  scale {group.scaling:g} (rank {group.rank}, alpha {group.alpha:g}) in {group.modules} modules"
        for group in adapter.scales
    ]
    if adapter.saved_modules:
        text.append(f"  replaced whole: {', '.join(adapter.saved_modules)}")
    return [*text, *(f"  warning: {warning}" for warning in adapter.warnings)]
