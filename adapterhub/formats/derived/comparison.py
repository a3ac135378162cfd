"""Compares adapters module by module and forecasts their merge, from small matrices and never a dense one.

The factors of all adapters in a module are stacked, A on A and B beside B, and a QR reduces both stacks to triangles
[R, R] for a summed rank of R. The triangles keep every inner product of the factors (they are the Cholesky factors of
the Gram matrices A A.T and B.T B, without the digits that squaring loses), so norms, cosines, spectra and subspaces
follow exactly. Signs have no such form and are counted on a sample.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated, Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import MergeRefused, UsageProblem, shown
from adapterhub.formats.derived.algebra import Update
from adapterhub.formats.derived.forecasting import DTYPES, Forecast, Sum, forecast
from adapterhub.formats.derived.modules import ModuleComparison, Pair, compare_module, norm_of
from adapterhub.formats.derived.shares import SAMPLED, Share
from adapterhub.formats.documented import Documented
from adapterhub.formats.peft.config import owner
from adapterhub.formats.peft.layouts import Layout
from adapterhub.formats.peft.pairs import Factors
from adapterhub.formats.safetensors.header import TensorSpec

LARGEST: Final = 1e100
"""The largest product of entries that is measured; sums of its squares stay far below the float64 limit."""

CompareProgress = Callable[[int, int], None]
"""Called with the modules done and the modules in all."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """An adapter of a comparison: its name in messages, its weight, its modules, and what reads the parts of one."""

    label: str
    weight: float
    modules: Mapping[str, Factors]
    parts: Callable[[str], Sequence[Update]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a merge of the weighted adapters writes: the modules that share a rank, and the tensors beside them.

    With `has_bias`, each module gets a bias of B, too.
    """

    units: tuple[tuple[str, ...], ...]
    others: tuple[TensorSpec, ...] = ()
    has_bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFigures(Documented):
    """The figures of one adapter over all compared modules; `rank` is the largest, `parameters` counts its factors."""

    label: str
    weight: float
    modules: int
    rank: int
    parameters: int
    norm: Annotated[float, "Frobenius norm of its whole update"]
    digest: Annotated[Digest | None, "of its manifest; null for a folder"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Documented, keys="adapters pairs forecast obstacles unlike partial sampled modules plot?"):
    """The similarity of adapters, and the expected result of merging them.

    `unlike` describes the modules whose shapes differ; no figure includes them. `obstacles` lists the reasons against a
    merge of these adapters, and there is no forecast then. Signs were counted on at most `sampled` rows and columns of
    each module.
    """

    adapters: tuple[AdapterFigures, ...]
    pairs: tuple[Pair, ...]
    modules: tuple[ModuleComparison, ...]
    unlike: Annotated[dict[str, str], "modules whose shapes differ, and how they differ"] = field(hash=False)
    obstacles: Annotated[tuple[str, ...], "why they cannot be merged"]
    forecast: Annotated[Forecast | None, "null if they cannot be merged"]
    sampled: Annotated[int, "maximal number of rows and columns sampled for signs"]
    plot: Annotated[Path | None, "with --plot: the image file"] = None

    @property
    def partial(
        self,
    ) -> Annotated[dict[str, tuple[int, ...]], "modules that only some adapters have, with the positions of those"]:
        """The modules that only some adapters have, with the positions of those."""
        return {
            m.module: tuple(i for i, update in enumerate(m.updates) if update is not None)
            for m in self.modules
            if not m.is_shared
        }


def compare_sides(
    sides: Sequence[Side],
    *,
    stored: Stored | None,
    obstacles: tuple[str, ...] = (),
    dtype: str = "float32",
    sampled: int = SAMPLED,
    progress: CompareProgress | None = None,
) -> Comparison:
    """Compare updates `scale * B A` in every module. A single adapter gets its spectra, and the forecast of itself.

    Weights affect only the forecast, which leaves out adapters of weight 0; `stored` says what a merge writes, None
    where `obstacles` forbid one. `dtype` is that of its file. Memory is that of the largest module. Time per module is
    O((in + out) R² + R³) for a summed rank of R.

    Raises:
        UsageProblem: no adapter, a weight that is not finite, or an unknown dtype.
        MergeRefused: numbers that are not finite, or no module to compare; lists every reason.
    """
    if not sides:
        raise UsageProblem("nothing to compare: no adapters given")
    if dtype not in DTYPES:
        raise UsageProblem(f"dtype `{shown(dtype)}`, expected one of {', '.join(DTYPES)}")
    if not all(math.isfinite(side.weight) for side in sides):
        raise UsageProblem("a weight is not finite; expected finite numbers")
    layouts, unlike = _layouts(sides)
    if not layouts:
        _raise_for([f"`{shown(module)}` differs: {each}" for module, each in unlike.items()])
    compared: list[ModuleComparison] = []
    refusals: list[str] = []
    for done, (module, layout) in enumerate(layouts.items(), 1):
        updates = [side.parts(module) if module in side.modules else None for side in sides]
        refusals += [f"`{shown(module)}` {reason}" for reason in _unmeasurable(sides, updates)]
        if not refusals:
            compared.append(compare_module(module, layout, updates, [side.weight for side in sides], sampled))
        if progress is not None:
            progress(done, len(layouts))
    _raise_for(refusals)
    adapters = tuple(_adapter(i, side, compared) for i, side in enumerate(sides))
    return Comparison(
        adapters=adapters,
        pairs=tuple(_over_all(compared, adapters, at) for at in combinations(range(len(sides)), 2)),
        modules=tuple(compared),
        unlike=unlike,
        obstacles=obstacles,
        forecast=_forecast(sides, compared, stored, dtype),
        sampled=sampled,
    )


def _layouts(sides: Sequence[Side]) -> tuple[dict[str, Layout], dict[str, str]]:
    """The layouts of the modules in which the adapters agree, and the differences in the other modules."""
    layouts: dict[str, Layout] = {}
    unlike: dict[str, str] = {}
    pairs = [Counter(owner(module) for module in side.modules) for side in sides]
    for module in sorted({module for side in sides for module in side.modules}):
        holders = [i for i, side in enumerate(sides) if module in side.modules]
        factors = [sides[i].modules[module] for i in holders]
        if len({one.layout for one in factors}) > 1:
            described = [str(one.layout) for one in factors]
        # PEFT names pairs on parameters by their depth, so names agree only between adapters with the same targets.
        elif (
            len(
                {
                    (one.parameters, pairs[i][owner(module)] if one.parameters else 0)
                    for i, one in zip(holders, factors, strict=True)
                }
            )
            > 1
        ):
            described = [f"on one of {', '.join(map(shown, one.parameters))}" for one in factors]
        else:
            layouts[module] = factors[0].layout
            continue
        each = zip(described, holders, strict=True)
        unlike[module] = ", ".join(f"{what} in `{shown(sides[i].label)}`" for what, i in each)
    return layouts, unlike


def _unmeasurable(sides: Sequence[Side], updates: Sequence[Sequence[Update] | None]) -> list[str]:
    """A reason for each update with numbers that cannot be measured."""
    reasons = []
    for side, parts in zip(sides, updates, strict=True):
        for part in parts or ():
            reason = unmeasurable(part, abs(side.weight))
            if reason:
                reasons.append(f"in `{shown(side.label)}` {reason}")
                break
    return reasons


def unmeasurable(part: Update, weight: float = 1.0) -> str:
    """Why the numbers of an update cannot be measured; empty for most."""
    largest = [max(-float(factor.min()), float(factor.max())) for factor in (part.a, part.b)]
    if not all(map(math.isfinite, [*largest, part.scale])):
        return "holds NaN or infinite numbers"
    if math.prod(largest) * abs(part.scale) * max(1.0, weight) * part.rank > LARGEST:
        return "holds numbers that are too large to be measured"
    return ""


def _raise_for(reasons: Sequence[str]) -> None:
    if reasons:
        raise MergeRefused("these adapters cannot be compared", reasons)


def _adapter(position: int, side: Side, compared: Sequence[ModuleComparison]) -> AdapterFigures:
    modules = side.modules.values()
    return AdapterFigures(
        label=side.label,
        weight=side.weight,
        modules=len(modules),
        rank=max(module.rank for module in modules),
        parameters=sum(module.a.elements + module.b.elements for module in modules),
        norm=norm_of([module.updates[position] for module in compared]),
    )


def _over_all(compared: Sequence[ModuleComparison], adapters: Sequence[AdapterFigures], at: tuple[int, int]) -> Pair:
    """The pair over all modules: the cosine of the whole updates, mean overlaps, and shares of the common modules."""
    first, second = at
    dot, pairs = 0.0, list[Pair]()
    for module in compared:
        norms = norm_of([module.updates[first]]) * norm_of([module.updates[second]])
        for pair in module.pairs:
            if (pair.first, pair.second) == at:
                pairs.append(pair)
                dot += (pair.cosine or 0.0) * norms
    norms = adapters[first].norm * adapters[second].norm

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known else None

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
    sides: Sequence[Side], compared: Sequence[ModuleComparison], stored: Stored | None, dtype: str
) -> Forecast | None:
    """The forecast over the modules of the weighted adapters; None if they cannot be merged."""
    used = [i for i, side in enumerate(sides) if side.weight]
    if stored is None or not used:
        return None
    sums = {m.module: Sum(module=m.module, layout=m.layout, parts=m.total) for m in compared}
    modules = [module for unit in stored.units for module in unit]
    if not sums.keys() >= set(modules):
        return None  # an adapter of weight 0 has another shape there
    others = list(stored.others)
    if stored.has_bias:
        layouts = {module: sums[module].layout for module in modules}
        biases = [(layout.bias_name(module), (layout.out,)) for module, layout in layouts.items()]
        others += [TensorSpec.planned(name, DTYPES[dtype], shape) for name, shape in biases]
    return forecast(
        [[sums[module] for module in unit] for unit in stored.units],
        sum((module.cancelled for module in compared), Share()),
        rank=max(module.rank for i in used for module in sides[i].modules.values()),
        others=others,
        dtype=dtype,
    )
