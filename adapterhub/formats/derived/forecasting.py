"""Forecasts a merge: its norm, its ranks, the loss at each rank, and the size of its file.

Everything follows from the singular values of the weighted sum in each module (Eckart and Young, 1936: the best
approximation of rank k loses exactly the values beyond the k-th), so nothing is merged or written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Annotated, Final

from adapterhub.formats.derived.energies import ENERGIES, Energies
from adapterhub.formats.derived.shares import Share
from adapterhub.formats.documented import Documented
from adapterhub.formats.peft.layouts import Layout
from adapterhub.formats.safetensors.dtypes import DTYPES as FORMATS
from adapterhub.formats.safetensors.dtypes import FACTOR_DTYPES
from adapterhub.formats.safetensors.file import header_bytes
from adapterhub.formats.safetensors.header import TensorSpec

DTYPES: Final = MappingProxyType({FORMATS[name].torch: name for name in FACTOR_DTYPES})
"""The dtypes of a merge: the names that users type, and those of safetensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """The weighted sum of the updates of one module: a spectrum for each part of the layout."""

    module: str
    layout: Layout
    parts: tuple[Energies, ...]


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
    units: Sequence[Sequence[Sum]],
    cancelled: Share,
    *,
    rank: int,
    others: Sequence[TensorSpec] = (),
    dtype: str = "float32",
) -> Forecast:
    """The exact sum, and the best approximations at ranks around `rank` (the largest input's) and at each energy.

    `units` groups the modules that are stored at one rank. `others` are the tensors that a merge writes besides the
    factors; `dtype` is one of `DTYPES`.
    """
    norm = math.hypot(*(part.norm for unit in units for one in unit for part in one.parts))

    def option(options: str, rank_of: Callable[[Energies], int]) -> StorageOption:
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
        return StorageOption(
            options=options,
            ranks=tuple(rank for _, rank in stored),
            relative_error=lost / norm if lost else 0.0,
            size_bytes=_file_bytes(stored, others, DTYPES[dtype]),
        )

    exact = option("--method cat", lambda energies: energies.numerical_rank)
    tried = [r for r in _around(rank) if r < max(exact.ranks)]
    at_ranks = [option(f"--method svd --rank {r}", partial(_constant, r)) for r in reversed(tried)]
    at_energies = [option(f"--method svd --energy {e:g}", partial(_for_energy, e)) for e in reversed(ENERGIES)]
    return Forecast(norm=norm, cancelled=cancelled, dtype=dtype, choices=(exact, *at_ranks, *at_energies))


def _kept(rank_of: Callable[[Energies], int], energies: Energies) -> int:
    """The rank to store, at least 1: a file holds a zero update at rank 1."""
    return max(1, min(rank_of(energies), energies.numerical_rank))


def _constant(rank: int, _energies: Energies) -> int:
    return rank


def _for_energy(energy: float, energies: Energies) -> int:
    return energies.rank_of_energy(energy)


def _around(rank: int) -> list[int]:
    """A quarter, a half, once, twice and four times the rank."""
    return sorted({max(1, rank // 4), max(1, rank // 2), rank, 2 * rank, 4 * rank})


def _file_bytes(stored: Sequence[tuple[Sum, int]], others: Sequence[TensorSpec], dtype: str) -> int:
    specs = list(others)
    for one, rank in stored:
        pair = zip(one.layout.names(one.module), one.layout.shapes(rank), strict=True)
        specs += [TensorSpec.planned(name, dtype, shape) for name, shape in pair]
    return len(header_bytes(specs, {"format": "pt"})) + sum(spec.size_bytes for spec in specs)
