"""What is known of an adapter once it was checked against a model: for programs, and in lines for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from adapterhub.core.errors import shown
from adapterhub.distribution.finding import Found
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.inference.loader.base_check import Verdict
from adapterhub.inference.loader.injection import Ready
from adapterhub.inference.loader.methods import Scale


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleGroup:
    """Modules whose update has the same scale; `scaling` is the adapter's own, without the weight in a mixture."""

    rank: int
    alpha: float
    scaling: float
    modules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedAdapter:
    """What is known of one attached adapter. `compared` says in words how its base stands to the model."""

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


def facts(found: Found, ready: Ready, verdict: Verdict, pinned: tuple[str, ...]) -> AttachedAdapter:
    """What is known of one adapter, gathered from the checks it went through."""
    contents = ready.contents
    tensors = [*contents.factors.values(), *contents.saved.values(), contents.shared]
    groups: Counter[Scale] = Counter(ready.setup.scales.values())
    whole = "its weight does not change the modules it replaces whole" if contents.saved and found.weight != 1 else ""
    return AttachedAdapter(
        label=found.label,
        folder=found.folder,
        weight=found.weight,
        method=contents.config.methods(),
        verdict=verdict.comparison.verdict,
        compared=verdict.comparison.differences,
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
            *verdict.warnings,
            *([whole] if whole else []),
            *pinned,
        ),
    )


def lines(adapter: AttachedAdapter) -> list[str]:
    """The same in lines for people."""
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
