"""Compares one module of several adapters, from the triangles of its stacked factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any

import numpy as np

from adapterhub.formats.derived.algebra import Floats, Spectrum, Update, spectrum, stack
from adapterhub.formats.derived.energies import Energies
from adapterhub.formats.derived.shares import Sample, Share
from adapterhub.formats.documented import Documented
from adapterhub.formats.peft.layouts import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Documented, title="ComparedPair"):
    """Two adapters in one module, or in all of them; `first` and `second` are their positions.

    `cosine` is that of the updates as vectors, None if one is zero. `overlap_left` and `overlap_right` compare the
    spaces that the updates write (columns) and read (rows): ‖Q1.T Q2‖_F² / min(r1, r2), 0 for orthogonal spaces, 1 if
    one contains the other, None if one is zero; this is φ of the LoRA paper (arXiv:2106.09685 §7.2) at full rank.
    `chance_left` and `chance_right` are the means for random spaces of those ranks. `opposite` is the share of the
    entries changed by both that change in opposite directions (the sign conflicts of TIES, arXiv:2306.01708), and
    `cancelled` the share of the summed magnitudes that cancels in the plain sum.

    Over all modules the cosine is exact, too; overlaps are means over the modules in which neither update is zero.
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
    """One module: `updates` holds a spectrum for each adapter, None where it lacks the module.

    `pairs` are the pairs of adapters that both have the module. `total` has the spectra of the weighted sum, one for
    each part of the layout; `cancelled` is the share of the weighted magnitudes that cancels in it.
    """

    module: str
    layout: Layout
    updates: Annotated[tuple[Energies | None, ...], "one per adapter; null if it lacks the module"]
    pairs: tuple[Pair, ...]
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
    `random_right` are their means for random spaces; shares are as in `Pair`.
    """

    dot: float
    left: float
    right: float
    random_left: float
    random_right: float
    opposite: Share
    cancelled: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One part of a module, in the adapters that have the module."""

    spectra: tuple[Energies, ...]
    both: tuple[_Both, ...]
    total: Energies
    cancelled: Share


def compare_module(
    module: str,
    layout: Layout,
    updates: Sequence[Sequence[Update] | None],
    weights: Sequence[float],
    sampled: int,
) -> ModuleComparison:
    """The comparison of one module from the parts of its updates; None stands for an adapter that lacks it.

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


def _pair(first: int, second: int, spectra: tuple[Energies | None, Energies | None], parts: Sequence[_Both]) -> Pair:
    """The pair over all parts of a module."""
    norms, smaller = 1.0, math.inf
    for one in spectra:
        norms *= one.norm if one else 0.0
        smaller = min(smaller, one.numerical_rank if one else 0)

    def share(total: float) -> float | None:
        return min(1.0, total / smaller) if smaller else None

    return Pair(
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


def _compare_part(name: str, deltas: Sequence[Update], weights: Sequence[float], size: int) -> _Part:
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
                dot=_dot(cores[x], cores[y]),
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
    return _Part(
        spectra=tuple(one.energies for one in spectra),
        both=tuple(both),
        total=total.energies if total else Energies(values=()),
        cancelled=sample.cancelled([weights[i] * entries[i] for i in used]) if used else Share(),
    )


def _blocks(ranks: Sequence[int]) -> list[slice]:
    """The place of each adapter's rows in the stacked A, and of its columns in the stacked B."""
    ends = [sum(ranks[: i + 1]) for i in range(len(ranks))]
    return [slice(end - rank, end) for rank, end in zip(ranks, ends, strict=True)]


def _in_common_space(stacked: Update, blocks: Sequence[slice]) -> list[Update]:
    """The updates in coordinates of the spaces that they span together, at most [R, R].

    With b = Qb Tb and a.T = Qa Ta these are the blocks of Tb and of Ta.T. Qb and Qa preserve lengths and angles, so
    they are never formed.
    """
    triangle_a: Any = np.linalg.qr(stacked.a.T, mode="r")
    triangle_b: Any = np.linalg.qr(stacked.b, mode="r")
    return [Update(a=triangle_a[:, block].T, b=triangle_b[:, block]) for block in blocks]


def _entries(stacked: Update, blocks: Sequence[slice], sample: Sample) -> list[Floats]:
    """The sampled entries of each update, [rows, columns]."""
    a, b = stacked.a[:, sample.columns], stacked.b[sample.rows]
    return [b[:, block] @ a[block] for block in blocks]


def _dot(first: Update, second: Update) -> float:
    """<b1 a1, b2 a2>."""
    return float(((first.b.T @ second.b) * (first.a @ second.a.T)).sum())


def _directions(update: Spectrum) -> tuple[Floats, Floats]:
    """Orthonormal columns that span the outputs and the inputs of the update; none for a zero update."""
    kept = update.numerical_rank
    return update.left[:, :kept], update.right[:kept].T


def norm_of(energies: Sequence[Energies | None]) -> float:
    """Frobenius norm over several modules; None counts as zero."""
    return math.hypot(*(one.norm for one in energies if one is not None))
