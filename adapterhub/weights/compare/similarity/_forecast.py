"""What a merge would be before it is made: its norm, its ranks, what each rank loses, how large its file is.

All of it follows from the singular values of the weighted sum in each module (Eckart and Young, 1936: the best
approximation of rank k loses exactly the values beyond the k-th), so nothing is merged and nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from adapterhub.formats.safetensors.dtypes import DTYPES as FORMATS
from adapterhub.formats.safetensors.dtypes import FACTOR_DTYPES
from adapterhub.formats.safetensors.file import header_bytes
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.compare.similarity._signs import Share
from adapterhub.weights.compare.similarity._spectra import ENERGIES, Energies
from adapterhub.weights.lowrank.factors import Layout

DTYPES: Final = MappingProxyType({FORMATS[name].torch: name for name in FACTOR_DTYPES})
"""What a merge may be stored as, as users type it, and the format's name for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """The weighted sum of one module's updates, one spectrum for each part of the layout."""

    module: str
    layout: Layout
    parts: tuple[Energies, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to store the sum: `options` are what `adapt merge` is given for it, `ranks` those of the modules.

    `relative_error` is ‖result - sum‖ / ‖sum‖ over all modules, without the rounding of the dtype; `size_bytes` that of
    the weights file, up to a few spaces in its header.
    """

    options: str
    ranks: tuple[int, ...]
    relative_error: float
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Every figure, of the ranks the smallest, the largest and their mean."""
        return {
            "options": self.options,
            "rank_min": min(self.ranks),
            "rank_mean": math.fsum(self.ranks) / len(self.ranks),
            "rank_max": max(self.ranks),
            "relative_error": self.relative_error,
            "size_bytes": self.size_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Of the weighted sum: its Frobenius norm; the share of the summed magnitudes that cancels; ways to store it."""

    norm: float
    cancelled: Share
    dtype: str
    choices: tuple[Choice, ...]

    def to_json(self) -> dict[str, Any]:
        """Every figure."""
        return {
            "norm": self.norm,
            "cancelled": self.cancelled.to_json(),
            "dtype": self.dtype,
            "choices": [choice.to_json() for choice in self.choices],
        }


def forecast(
    units: Sequence[Sequence[Sum]],
    cancelled: Share,
    *,
    rank: int,
    others: Sequence[TensorSpec] = (),
    dtype: str = "float32",
) -> Forecast:
    """The exact sum, the best approximations at `rank` (the largest of the inputs) and around it, and at each energy.

    `units` are the modules, those together that are stored at one rank. `others` are the tensors that a merge writes
    besides the factors; `dtype` is one of `DTYPES`.
    """
    norm = math.hypot(*(part.norm for unit in units for one in unit for part in one.parts))

    def choice(options: str, rank_of: Callable[[Energies], int]) -> Choice:
        kept = [[[_kept(rank_of, part) for part in one.parts] for one in unit] for unit in units]
        ranks = [max(rank for ranks in of_unit for rank in ranks) for of_unit in kept]
        lost = math.hypot(
            *(
                part.lost_at(rank)
                for unit, of_unit in zip(units, kept, strict=True)
                for one, of_one in zip(unit, of_unit, strict=True)
                for part, rank in zip(one.parts, of_one, strict=True)
            )
        )
        stored = [(one, rank) for unit, rank in zip(units, ranks, strict=True) for one in unit]
        return Choice(
            options=options,
            ranks=tuple(rank for _, rank in stored),
            relative_error=lost / norm if lost else 0.0,
            size_bytes=_file_bytes(stored, others, DTYPES[dtype]),
        )

    exact = choice("--method cat", lambda energies: energies.numerical_rank)
    tried = [r for r in _around(rank) if r < max(exact.ranks)]
    at_ranks = [choice(f"--method svd --rank {r}", partial(_constant, r)) for r in reversed(tried)]
    at_energies = [choice(f"--method svd --energy {e:g}", partial(_for_energy, e)) for e in reversed(ENERGIES)]
    return Forecast(norm=norm, cancelled=cancelled, dtype=dtype, choices=(exact, *at_ranks, *at_energies))


def _kept(rank_of: Callable[[Energies], int], energies: Energies) -> int:
    """Directions that are kept; what is not kept at all is stored as a zero update of rank 1."""
    return max(1, min(rank_of(energies), energies.numerical_rank))


def _constant(rank: int, _energies: Energies) -> int:
    return rank


def _for_energy(energy: float, energies: Energies) -> int:
    return energies.rank_of_energy(energy)


def _around(rank: int) -> list[int]:
    """A quarter of the rank, a half, itself, twice and four times as much."""
    return sorted({max(1, rank // 4), max(1, rank // 2), rank, 2 * rank, 4 * rank})


def _file_bytes(stored: Sequence[tuple[Sum, int]], others: Sequence[TensorSpec], dtype: str) -> int:
    specs = list(others)
    for one, rank in stored:
        pair = zip(one.layout.names(one.module), one.layout.shapes(rank), strict=True)
        specs += [TensorSpec.planned(name, dtype, shape) for name, shape in pair]
    return len(header_bytes(specs, {"format": "pt"})) + sum(spec.size_bytes for spec in specs)
