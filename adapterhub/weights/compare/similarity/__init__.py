"""How alike adapters are, module by module, and what their merge would be: from small matrices, never a dense one.

The factors of all adapters in a module are stacked, A on A and B beside B, and both stacks are reduced by QR. The
triangles, [R, R] for a summed rank of R, keep every inner product of the factors (they are the Cholesky factors of the
Gram matrices A A.T and B.T B, without the digits that squaring loses), so norms, cosines, spectra and subspaces are
read off them exactly. Only signs have no such form: those are counted on a sample.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import torch

from adapterhub.core.errors import MergeRefused, UsageProblem, shown
from adapterhub.formats.peft.config import owner
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.compare.similarity._forecast import DTYPES, Choice, Forecast, Sum, forecast
from adapterhub.weights.compare.similarity._module import ModuleComparison, Pair, compare_module, norm_of
from adapterhub.weights.compare.similarity._signs import SAMPLED, Estimate, Share
from adapterhub.weights.compare.similarity._spectra import ENERGIES, Energies
from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.lowrank.factors import AdapterFactors, Layout
from adapterhub.weights.merge.methods import cat
from adapterhub.weights.merge.plan import Plan, plan
from adapterhub.weights.merge.source import MergeAdapter

__all__ = [
    "ENERGIES",
    "SAMPLED",
    "Adapter",
    "Choice",
    "Comparison",
    "Energies",
    "Estimate",
    "Forecast",
    "ModuleComparison",
    "Pair",
    "Share",
    "Side",
    "compare_adapters",
]

LARGEST: Final = 1e100
"""Sums of squares of updates whose entries are at most this are far from the end of float64."""

CompareProgress = Callable[[int, int], None]
"""Called with the number of modules done and the number of all modules."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """An adapter to compare: its name in messages, its open files, its weight in the forecast of a merge."""

    label: str
    factors: AdapterFactors
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One adapter over all the modules that were compared; `rank` is its largest, `parameters` count its factors."""

    label: str
    weight: float
    modules: int
    rank: int
    parameters: int
    norm: float

    def to_json(self) -> dict[str, Any]:
        """Every figure."""
        return {name: getattr(self, name) for name in ("label", "weight", "modules", "rank", "parameters", "norm")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What comparing found.

    `unlike` tells, for modules whose shapes differ, how; they are in no figure. `obstacles` are the reasons why these
    adapters cannot be merged as they are although their updates can be compared; there is no forecast then. `sampled`
    rows and columns of each module at most were looked at for signs.
    """

    adapters: tuple[Adapter, ...]
    pairs: tuple[Pair, ...]
    modules: tuple[ModuleComparison, ...]
    unlike: dict[str, str]
    obstacles: tuple[str, ...]
    forecast: Forecast | None
    sampled: int

    @property
    def partial(self) -> dict[str, tuple[int, ...]]:
        """Modules that only some adapters have, and the positions of those."""
        return {
            m.module: tuple(i for i, update in enumerate(m.updates) if update is not None)
            for m in self.modules
            if not m.is_shared
        }

    def to_json(self) -> dict[str, Any]:
        """Everything; adapters are named by their position in `adapters`."""
        return {
            "adapters": [adapter.to_json() for adapter in self.adapters],
            "pairs": [pair.to_json() for pair in self.pairs],
            "forecast": self.forecast.to_json() if self.forecast else None,
            "obstacles": list(self.obstacles),
            "unlike": self.unlike,
            "partial": {module: list(having) for module, having in self.partial.items()},
            "sampled": self.sampled,
            "modules": [module.to_json() for module in self.modules],
        }


def compare_adapters(
    sides: Sequence[Side], *, dtype: str = "float32", sampled: int = SAMPLED, progress: CompareProgress | None = None
) -> Comparison:
    """Compare adapters in every module; one alone has its spectra, and the forecast of storing it anew.

    Weights count for the forecast only, and adapters of weight 0 take no part in it; `dtype` is that of the files it
    speaks of. Memory is that of the largest module. Time per module is O((in + out) R² + R³) for a summed rank of R.

    Raises:
        UsageProblem: no adapter, a weight that is not finite, or an unknown dtype.
        MergeRefused: an adapter whose updates are not its factors (DoRA and others), numbers that are not finite, or
            no module that can be compared; every reason is listed.
    """
    if not sides:
        raise UsageProblem("nothing to compare: no adapters given")
    if dtype not in DTYPES:
        raise UsageProblem(f"dtype `{shown(dtype)}`, expected one of {', '.join(DTYPES)}")
    if not all(math.isfinite(side.weight) for side in sides):
        raise UsageProblem("a weight is not finite")
    merging, obstacles = _plan(sides)
    layouts, unlike = _layouts(sides)
    if not layouts:
        _refuse([f"`{shown(module)}` differs: {each}" for module, each in unlike.items()])
    # glibc keeps a module's buffers for the next one only once it has seen a block of this size freed; without that a
    # third of the time goes into fresh pages. Elsewhere this line does nothing.
    torch.empty(31 << 20, dtype=torch.uint8)
    found: list[ModuleComparison] = []
    refusals: list[str] = []
    for done, (module, layout) in enumerate(layouts.items(), 1):
        updates = [side.factors.parts(module) if module in side.factors.modules else None for side in sides]
        refusals += [f"`{shown(module)}` {reason}" for reason in _unmeasurable(sides, updates)]
        if not refusals:
            found.append(compare_module(module, layout, updates, [side.weight for side in sides], sampled))
        if progress is not None:
            progress(done, len(layouts))
    _refuse(refusals)
    adapters = tuple(_adapter(i, side, found) for i, side in enumerate(sides))
    return Comparison(
        adapters=adapters,
        pairs=tuple(_over_all(found, adapters, at) for at in combinations(range(len(sides)), 2)),
        modules=tuple(found),
        unlike=unlike,
        obstacles=obstacles,
        forecast=_forecast(sides, found, merging, dtype),
        sampled=sampled,
    )


def _plan(sides: Sequence[Side]) -> tuple[Plan | None, tuple[str, ...]]:
    """What a merge would do, or why it would refuse; refuses only what makes comparing meaningless, in its words."""
    sources = [MergeAdapter(folder=s.factors.folder, label=s.label, weight=s.weight, factors=s.factors) for s in sides]
    for source in sources:
        if not _is_its_factors(source.factors):
            plan([source], cat)
    try:
        return plan([source for source in sources if source.weight], cat), ()
    except MergeRefused as refused:
        return None, refused.reasons


def _is_its_factors(factors: AdapterFactors) -> bool:
    """Whether the update of each module is `scale * B A`, and of the base as it is named."""
    config = factors.config
    changed = any(variant.changes_update for variant in config.variants.values())
    starts_from_base = not (config.start_changes_base or config.start_is_unknown)
    return config.method.merges and bool(factors.modules) and not changed and starts_from_base


def _layouts(sides: Sequence[Side]) -> tuple[dict[str, Layout], dict[str, str]]:
    """Layouts of the modules in which all that have one agree, by name; how the others differ."""
    layouts: dict[str, Layout] = {}
    unlike: dict[str, str] = {}
    pairs = [Counter(owner(module) for module in side.factors.modules) for side in sides]
    for module in sorted({module for side in sides for module in side.factors.modules}):
        having = [i for i, side in enumerate(sides) if module in side.factors.modules]
        factors = [sides[i].factors.modules[module] for i in having]
        if len({one.layout for one in factors}) > 1:
            described = [str(one.layout) for one in factors]
        # PEFT names the pairs on parameters by their depth: the same name is the same one only among the same targets.
        elif (
            len(
                {
                    (one.parameters, pairs[i][owner(module)] if one.parameters else 0)
                    for i, one in zip(having, factors, strict=True)
                }
            )
            > 1
        ):
            described = [f"on one of {', '.join(map(shown, one.parameters))}" for one in factors]
        else:
            layouts[module] = factors[0].layout
            continue
        each = zip(described, having, strict=True)
        unlike[module] = ", ".join(f"{what} in `{shown(sides[i].label)}`" for what, i in each)
    return layouts, unlike


def _unmeasurable(sides: Sequence[Side], updates: Sequence[Sequence[LowRank] | None]) -> list[str]:
    """Which updates hold no numbers that can be computed with."""
    reasons = []
    for side, parts in zip(sides, updates, strict=True):
        for part in parts or ():
            if not part.is_finite():
                reasons.append(f"in `{shown(side.label)}` holds NaN or infinite numbers")
                break
            largest = [max(-float(low), float(high)) for low, high in (part.a.aminmax(), part.b.aminmax())]
            if math.prod(largest) * abs(part.scale) * max(1.0, abs(side.weight)) * part.rank > LARGEST:
                reasons.append(f"in `{shown(side.label)}` holds numbers that are too large to be measured")
                break
    return reasons


def _refuse(reasons: Sequence[str]) -> None:
    if reasons:
        raise MergeRefused("these adapters cannot be compared", reasons)


def _adapter(position: int, side: Side, found: Sequence[ModuleComparison]) -> Adapter:
    modules = side.factors.modules.values()
    return Adapter(
        label=side.label,
        weight=side.weight,
        modules=len(modules),
        rank=max(module.rank for module in modules),
        parameters=sum(module.a.elements + module.b.elements for module in modules),
        norm=norm_of([module.updates[position] for module in found]),
    )


def _over_all(found: Sequence[ModuleComparison], adapters: Sequence[Adapter], at: tuple[int, int]) -> Pair:
    """The pair over all modules: the cosine of the whole updates, mean overlaps, shares of the modules both have."""
    first, second = at
    dot, pairs = 0.0, list[Pair]()
    for module in found:
        norms = norm_of([module.updates[first]]) * norm_of([module.updates[second]])
        for pair in module.pairs:
            if (pair.first, pair.second) == at:
                pairs.append(pair)
                dot += (pair.cosine or 0.0) * norms
    norms = adapters[first].norm * adapters[second].norm

    def mean(values: Iterable[float | None]) -> float | None:
        told = [value for value in values if value is not None]
        return math.fsum(told) / len(told) if told else None

    return Pair(
        first=first,
        second=second,
        cosine=min(1.0, max(-1.0, dot / norms)) if norms else None,
        overlap_left=mean(pair.overlap_left for pair in pairs),
        overlap_right=mean(pair.overlap_right for pair in pairs),
        chance_left=mean(pair.chance_left for pair in pairs),
        chance_right=mean(pair.chance_right for pair in pairs),
        opposite=sum((pair.opposite for pair in pairs), Share()),
        cancelled=sum((pair.cancelled for pair in pairs), Share()),
    )


def _forecast(
    sides: Sequence[Side], found: Sequence[ModuleComparison], merging: Plan | None, dtype: str
) -> Forecast | None:
    """The forecast over the modules that the weighted adapters have; None if they do not add up."""
    used = [i for i, side in enumerate(sides) if side.weight]
    if merging is None or not used:
        return None
    sums = {m.module: Sum(module=m.module, layout=m.layout, parts=m.total) for m in found}
    if not sums.keys() >= merging.layouts.keys():
        return None  # an adapter of weight 0 has another shape there
    others = [TensorSpec.planned(name, one.spec.dtype, one.spec.shape) for name, one in merging.carried.items()]
    if merging.has_bias:
        biases = [(layout.bias_name(module), (layout.out,)) for module, layout in merging.layouts.items()]
        others += [TensorSpec.planned(name, DTYPES[dtype], shape) for name, shape in biases]
    return forecast(
        [[sums[module] for module in unit] for unit in merging.units],
        sum((module.cancelled for module in found), Share()),
        rank=max(module.rank for i in used for module in sides[i].factors.modules.values()),
        others=others,
        dtype=dtype,
    )
