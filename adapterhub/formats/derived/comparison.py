"""Compares adapters module by module and forecasts their merge, from small matrices and never a dense one.

The factors of all adapters in a module are stacked, A on A and B beside B, and a QR reduces both stacks to triangles
[R, R] for a summed rank of R. The triangles keep every inner product of the factors (they are the Cholesky factors of
the Gram matrices A A.T and B.T B, without the digits that squaring loses), so norms, cosines, spectra and subspaces
follow exactly. Signs have no such form and are counted on a sample.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

import numpy as np

from adapterhub.core.digests import Digest
from adapterhub.core.errors import MergeRefused, UnsupportedAdapter, UsageProblem, shown
from adapterhub.formats.derived.algebra import (
    ENERGIES,
    SAMPLED,
    ArraySpectrum,
    ArrayUpdate,
    Energies,
    Floats,
    Sample,
    Share,
    spectrum,
    stack,
)
from adapterhub.formats.derived.reading import MOST_RANK, AdapterUpdates
from adapterhub.formats.documented import Documented
from adapterhub.formats.peft.config import owner
from adapterhub.formats.peft.methods import VARIANTS
from adapterhub.formats.peft.pairs import FactorLayout, Factors
from adapterhub.formats.safetensors.file import header_bytes
from adapterhub.formats.safetensors.header import DTYPES as FORMATS
from adapterhub.formats.safetensors.header import FACTOR_DTYPES, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedPair(Documented, title="ComparedPair"):
    """Two adapters in one module, or in all of them; `first` and `second` are their positions.

    `cosine` is that of the updates as vectors, None if one is zero. `overlap_left` and `overlap_right` compare the
    spaces that the updates write (columns) and read (rows): ‖Q1.T Q2‖_F² / min(r1, r2), 0 for orthogonal spaces, 1 if
    one contains the other, None if one is zero; this is φ of the LoRA paper (arXiv:2106.09685 §7.2) at full rank.
    `chance_left` and `chance_right` are the means for random spaces of those ranks. `opposite` is the share of the
    entries changed by both that change in opposite directions (the sign conflicts of TIES, arXiv:2306.01708), and
    `cancelled` the share of the summed magnitudes that cancels in the plain sum.

    Over all modules the cosine is also exact; overlaps are means over the modules in which neither update is zero.
    """

    first: Annotated[int, "position of the first adapter"]
    second: Annotated[int, "position of the second adapter"]
    cosine: Annotated[float | None, "cosine between the updates"]
    overlap_left: Annotated[float | None, "overlap of the spaces they write to"]
    overlap_right: Annotated[float | None, "overlap of the spaces they read from"]
    chance_left: Annotated[float | None, "mean `overlap_left` of random spaces of those ranks"]
    chance_right: Annotated[float | None, "mean `overlap_right` of random spaces of those ranks"]
    opposite: Annotated[Share, "share of numbers with opposite signs"]
    cancelled: Annotated[Share, "share of the magnitudes that the sum loses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleComparison(
    Documented,
    keys="module kind=layout.kind out=layout.out in=layout.width parts=layout.parts updates pairs sum",
    title="ComparedModule",
):
    """One module: `updates` holds a spectrum for each adapter, None if it lacks the module.

    `pairs` are the pairs of adapters that both have the module. `total` has the spectra of the weighted sum, one for
    each part of the layout; `cancelled` is the share of the weighted magnitudes that cancels in it.
    """

    module: str
    layout: FactorLayout
    updates: Annotated[tuple[Energies | None, ...], "one per adapter; null if it lacks the module"]
    pairs: tuple[ComparedPair, ...]
    total: tuple[Energies, ...]
    cancelled: Share

    @property
    def sum(self) -> dict[str, Any]:
        """The spectrum of the sum, and `cancelled`."""
        return Energies.together(self.total).to_json() | {"cancelled": self.cancelled.to_json()}

    @property
    def is_shared(self) -> bool:
        """Whether every adapter has it."""
        return None not in self.updates


@dataclass(frozen=True, slots=True, kw_only=True)
class _Both:
    """Two updates of one part; every figure adds up over parts.

    `dot` is their inner product; `left` and `right` are ‖Q1.T Q2‖_F² of their column and row spaces, `random_left` and
    `random_right` are their means for random spaces; shares are as in `ComparedPair`.
    """

    dot: float
    left: float
    right: float
    random_left: float
    random_right: float
    opposite: Share
    cancelled: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModulePart:
    """One part of a module, in the adapters that have the module."""

    spectra: tuple[Energies, ...]
    both: tuple[_Both, ...]
    total: Energies
    cancelled: Share


def compare_module(
    module: str,
    layout: FactorLayout,
    updates: Sequence[Sequence[ArrayUpdate] | None],
    weights: Sequence[float],
    sampled: int,
) -> ModuleComparison:
    """Return the comparison of one module from the parts of its updates; None stands for an adapter that lacks it.

    The parts act on different outputs or experts, so together they form one update with the singular values of all
    parts. Factors must be finite, and their products must have finite squares in float64.
    """
    here = [(i, parts) for i, parts in enumerate(updates) if parts is not None]
    factors = [weights[i] for i, _ in here]
    size = max(2, int(sampled / math.sqrt(layout.parts)))
    compared = [
        _compare_part(f"{module}#{index}" if layout.parts > 1 else module, deltas, factors, size)
        for index, deltas in enumerate(zip(*(parts for _, parts in here), strict=True))
    ]
    spectra: list[Energies | None] = [None] * len(updates)
    for at, (i, _) in enumerate(here):
        spectra[i] = Energies.together([part.spectra[at] for part in compared])
    pairs = [
        _pair(first, second, (spectra[first], spectra[second]), [part.both[at] for part in compared])
        for at, (first, second) in enumerate(combinations([i for i, _ in here], 2))
    ]
    return ModuleComparison(
        module=module,
        layout=layout,
        updates=tuple(spectra),
        pairs=tuple(pairs),
        total=tuple(part.total for part in compared),
        cancelled=sum((part.cancelled for part in compared), Share()),
    )


def _pair(
    first: int, second: int, spectra: tuple[Energies | None, Energies | None], parts: Sequence[_Both]
) -> ComparedPair:
    """Return the pair over all parts of a module."""
    norms, smaller = 1.0, math.inf
    for one in spectra:
        norms *= one.norm if one else 0.0
        smaller = min(smaller, one.numerical_rank if one else 0)

    def share(total: float) -> float | None:
        return min(1.0, total / smaller) if smaller else None

    return ComparedPair(
        first=first,
        second=second,
        cosine=min(1.0, max(-1.0, math.fsum(part.dot for part in parts) / norms)) if norms else None,
        overlap_left=share(math.fsum(part.left for part in parts)),
        overlap_right=share(math.fsum(part.right for part in parts)),
        chance_left=share(math.fsum(part.random_left for part in parts)),
        chance_right=share(math.fsum(part.random_right for part in parts)),
        opposite=sum((part.opposite for part in parts), Share()),
        cancelled=sum((part.cancelled for part in parts), Share()),
    )


def _compare_part(name: str, deltas: Sequence[ArrayUpdate], weights: Sequence[float], size: int) -> _ModulePart:
    out, width = deltas[0].shape
    blocks = _blocks([delta.rank for delta in deltas])
    stacked = stack(deltas, [1.0] * len(deltas))
    cores = _in_common_space(stacked, blocks)
    spectra = [spectrum(core) for core in cores]
    spaces = [_directions(one) for one in spectra]
    sample = Sample.of(name, out, width, size)
    entries = _entries(stacked, blocks, sample)
    both = []
    for x, y in combinations(range(len(deltas)), 2):
        ranks = spectra[x].numerical_rank * spectra[y].numerical_rank
        left, right = (float(np.square(p.T @ q).sum()) for p, q in zip(spaces[x], spaces[y], strict=True))
        both.append(
            _Both(
                dot=float(((cores[x].b.T @ cores[y].b) * (cores[x].a @ cores[y].a.T)).sum()),
                left=left,
                right=right,
                random_left=ranks / out,
                random_right=ranks / width,
                opposite=sample.opposite(entries[x], entries[y]),
                cancelled=sample.cancelled([entries[x], entries[y]]),
            )
        )
    used = [i for i, weight in enumerate(weights) if weight]
    total = spectrum(stack([cores[i] for i in used], [weights[i] for i in used])) if used else None
    return _ModulePart(
        spectra=tuple(one.energies for one in spectra),
        both=tuple(both),
        total=total.energies if total else Energies(values=()),
        cancelled=sample.cancelled([weights[i] * entries[i] for i in used]) if used else Share(),
    )


def _blocks(ranks: Sequence[int]) -> list[slice]:
    """Return the place of each adapter's rows in the stacked A, and of its columns in the stacked B."""
    ends = [sum(ranks[: i + 1]) for i in range(len(ranks))]
    return [slice(end - rank, end) for rank, end in zip(ranks, ends, strict=True)]


def _in_common_space(stacked: ArrayUpdate, blocks: Sequence[slice]) -> list[ArrayUpdate]:
    """Return the updates in coordinates of the spaces that they span together, at most [R, R].

    With b = Qb Tb and a.T = Qa Ta these are the blocks of Tb and of Ta.T. Qb and Qa preserve lengths and angles, so
    they are never formed.
    """
    triangle_a: Any = np.linalg.qr(stacked.a.T, mode="r")
    triangle_b: Any = np.linalg.qr(stacked.b, mode="r")
    return [ArrayUpdate(a=triangle_a[:, block].T, b=triangle_b[:, block]) for block in blocks]


def _entries(stacked: ArrayUpdate, blocks: Sequence[slice], sample: Sample) -> list[Floats]:
    """Return the sampled entries of each update, [rows, columns]."""
    a, b = stacked.a[:, sample.columns], stacked.b[sample.rows]
    return [b[:, block] @ a[block] for block in blocks]


def _directions(update: ArraySpectrum) -> tuple[Floats, Floats]:
    """Orthonormal columns that span the outputs and the inputs of the update; none for a zero update."""
    kept = update.numerical_rank
    return update.left[:, :kept], update.right[:kept].T


def norm_of(energies: Sequence[Energies | None]) -> float:
    """Frobenius norm over several modules; None counts as zero."""
    return math.hypot(*(one.norm for one in energies if one is not None))


DTYPES: Final = MappingProxyType({FORMATS[name].torch: name for name in FACTOR_DTYPES})
"""The dtypes of a merge: the names that users type, and those of safetensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageOption(Documented, keys="options rank_min rank_mean rank_max relative_error size_bytes", title="Choice"):
    """One way to store the sum. The `options` of `adapt merge` and the `ranks` of the modules.

    `relative_error` is ‖result - sum‖ / ‖sum‖ over all modules, without the rounding of the dtype; `size_bytes` is the
    size of the weights file, up to a few spaces in its header.
    """

    options: Annotated[str, "options of `adapt merge`"]
    ranks: tuple[int, ...]
    relative_error: float
    size_bytes: Annotated[int, "bytes"]

    @property
    def rank_min(self) -> int:
        """The smallest rank of a module."""
        return min(self.ranks)

    @property
    def rank_mean(self) -> float:
        """The mean rank of the modules."""
        return math.fsum(self.ranks) / len(self.ranks)

    @property
    def rank_max(self) -> int:
        """The largest rank of a module."""
        return max(self.ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast(Documented):
    """The expected result of a merge.

    `norm` is the Frobenius norm of the weighted sum, `cancelled` the share of the summed magnitudes that cancels.
    """

    norm: Annotated[float, "Frobenius norm of the sum"]
    cancelled: Share
    dtype: str
    choices: Annotated[tuple[StorageOption, ...], "ways to store the sum"]


def forecast(
    units: Sequence[Sequence[ModuleComparison]],
    cancelled: Share,
    *,
    rank: int,
    others: Sequence[TensorSpec] = (),
    dtype: str = "float32",
) -> Forecast:
    """Return the exact sum, and the best approximations at ranks around `rank` (the largest input's) and per energy.

    `units` groups the modules that are stored at one rank. `others` are the tensors that a merge writes besides the
    factors; `dtype` is one of `DTYPES`.
    """
    norm = math.hypot(*(part.norm for unit in units for one in unit for part in one.total))

    def option(options: str, rank_of: Callable[[Energies], int]) -> StorageOption:
        kept = [[[_kept(rank_of, part) for part in one.total] for one in unit] for unit in units]
        ranks = [max(rank for ranks in of_unit for rank in ranks) for of_unit in kept]
        lost = math.hypot(
            *(
                part.lost_at(rank)
                for unit, of_unit in zip(units, kept, strict=True)
                for one, of_one in zip(unit, of_unit, strict=True)
                for part, rank in zip(one.total, of_one, strict=True)
            )
        )
        stored = [(one, rank) for unit, rank in zip(units, ranks, strict=True) for one in unit]
        return StorageOption(
            options=options,
            ranks=tuple(rank for _, rank in stored),
            relative_error=lost / norm if lost else 0.0,
            size_bytes=_file_bytes(stored, others, DTYPES[dtype]),
        )

    exact = option("--method cat", lambda energies: energies.numerical_rank)
    tried = [r for r in _around(rank) if r < max(exact.ranks)]

    def at_rank(rank: int) -> StorageOption:
        return option(f"--method svd --rank {rank}", lambda _: rank)

    def at_energy(energy: float) -> StorageOption:
        return option(f"--method svd --energy {energy:g}", lambda energies: energies.rank_of_energy(energy))

    at_ranks, at_energies = map(at_rank, reversed(tried)), map(at_energy, reversed(ENERGIES))
    return Forecast(norm=norm, cancelled=cancelled, dtype=dtype, choices=(exact, *at_ranks, *at_energies))


def _kept(rank_of: Callable[[Energies], int], energies: Energies) -> int:
    """Return the rank to store, at least 1: a file holds a zero update at rank 1."""
    return max(1, min(rank_of(energies), energies.numerical_rank))


def _around(rank: int) -> list[int]:
    """Return a quarter, a half, once, twice and four times the rank."""
    return sorted({max(1, rank // 4), max(1, rank // 2), rank, 2 * rank, 4 * rank})


def _file_bytes(stored: Sequence[tuple[ModuleComparison, int]], others: Sequence[TensorSpec], dtype: str) -> int:
    specs = list(others)
    for one, rank in stored:
        pair = zip(one.layout.names(one.module), one.layout.shapes(rank), strict=True)
        specs += [TensorSpec.planned(name, dtype, shape) for name, shape in pair]
    return len(header_bytes(specs, {"format": "pt"})) + sum(spec.size_bytes for spec in specs)


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
    parts: Callable[[str], Sequence[ArrayUpdate]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a merge of the weighted adapters writes: the modules that share a rank, and the tensors beside them.

    With `has_bias`, each module also gets a bias of B.
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
    pairs: tuple[ComparedPair, ...]
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

    Weights affect only the forecast, which leaves out adapters of weight 0; `stored` describes what a merge writes,
    None if `obstacles` forbid one. `dtype` is that of its file. Memory is that of the largest module. Time per
    module is O((in + out) R² + R³) for a summed rank of R.

    Raises:
        UsageProblem: no adapter, a weight that is not finite, or an unknown dtype.
        MergeRefused: numbers that are not finite, or no module to compare; lists every reason.
    """
    if not sides:
        raise UsageProblem("nothing to compare: no adapters given", hint="name at least one adapter")
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


def _layouts(sides: Sequence[Side]) -> tuple[dict[str, FactorLayout], dict[str, str]]:
    """Return the layouts of the modules in which the adapters agree, and the differences in the other modules."""
    layouts: dict[str, FactorLayout] = {}
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


def _unmeasurable(sides: Sequence[Side], updates: Sequence[Sequence[ArrayUpdate] | None]) -> list[str]:
    """Return a reason for each update with numbers that cannot be measured."""
    reasons = []
    for side, parts in zip(sides, updates, strict=True):
        for part in parts or ():
            reason = unmeasurable(part, abs(side.weight))
            if reason:
                reasons.append(f"in `{shown(side.label)}` {reason}")
                break
    return reasons


def unmeasurable(part: ArrayUpdate, weight: float = 1.0) -> str:
    """Return why the numbers of an update cannot be measured; empty for most."""
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


def _over_all(
    compared: Sequence[ModuleComparison], adapters: Sequence[AdapterFigures], at: tuple[int, int]
) -> ComparedPair:
    """Compare the pair over all modules: the cosine of whole updates, mean overlaps, shares of common modules."""
    first, second = at
    dot, pairs = 0.0, list[ComparedPair]()
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

    return ComparedPair(
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
    """Return the forecast over the modules of the weighted adapters; None if they cannot be merged."""
    used = [i for i, side in enumerate(sides) if side.weight]
    if stored is None or not used:
        return None
    sums = {m.module: m for m in compared}
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


MOST_NUMBERS: Final = 1 << 28
"""The most numbers in the factors of both adapters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """One of the two: its name in messages, its weight in the merge, and its updates."""

    label: str
    weight: float
    updates: AdapterUpdates


def compare_two(pair: Sequence[Weighted], *, time_s: float) -> Comparison:
    """Return the comparison. `obstacles` holds the reasons for a missing forecast; `adapt compare` has all kinds.

    Raises:
        UnsupportedAdapter: both together are too large, or take longer than `time_s` seconds.
        MergeRefused: numbers that are not finite, or no module to compare; lists every reason.
    """
    numbers = sum(one.a.elements + one.b.elements for side in pair for one in side.updates.modules.values())
    if numbers > MOST_NUMBERS:
        raise UnsupportedAdapter(f"they hold {numbers:,} numbers, compared here up to {MOST_NUMBERS:,}")
    first, second = (side.updates.modules for side in pair)
    for module in sorted(first.keys() & second.keys()):
        if (rank := first[module].rank + second[module].rank) > MOST_RANK:
            raise UnsupportedAdapter(f"`{shown(module)}` has rank {rank} in both together, compared up to {MOST_RANK}")
    end = time.monotonic() + time_s

    def check_time(_done: int, _all: int) -> None:
        if time.monotonic() > end:
            raise UnsupportedAdapter(f"the comparison takes longer than {time_s:g} seconds")

    obstacles = tuple(_obstacles(pair))
    sides = [
        Side(label=one.label, weight=one.weight, modules=one.updates.modules, parts=one.updates.parts) for one in pair
    ]
    stored = None if obstacles else Stored(units=_units(pair))
    return compare_sides(sides, stored=stored, obstacles=obstacles, progress=check_time)


def _obstacles(pair: Sequence[Weighted]) -> Iterator[str]:
    for one in pair:
        config = one.updates.config
        for variant in config.variants.values():
            if variant.merging == "never":
                yield f"`{shown(one.label)}` {variant.what}"
        if one.updates.others or config.lora_bias:
            yield f"`{shown(one.label)}` holds tensors beside its factors, which only `adapt compare` counts"
        if one.updates.unclear:
            yield f"`{shown(one.label)}` holds pairs whose meaning its files leave open"
    for key in (key for key, variant in VARIANTS.items() if variant.merging == "alike"):
        first, second = (getattr(one.updates.config, key) or () for one in pair)
        if first != second:
            yield f"they differ in `{key}`"
    first, second = (one.updates.modules for one in pair)
    for module in sorted(first.keys() & second.keys()):
        if first[module].layout != second[module].layout:
            yield f"`{shown(module)}` has another shape in each"
            return


def _units(pair: Sequence[Weighted]) -> tuple[tuple[str, ...], ...]:
    """Return the modules that a merge stores at one rank: the pairs that PEFT nests on one module of the base."""
    units: dict[str, list[str]] = {}
    for module in sorted({module for one in pair for module in one.updates.modules}):
        units.setdefault(owner(module), []).append(module)
    return tuple(tuple(modules) for modules in units.values())
