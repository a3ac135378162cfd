"""The singular values of one update: the spread of its energy, and the loss of a cut to a rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from adapterhub.formats.documented import Documented

ENERGIES: Final = (0.9, 0.99, 0.999)
"""The shares of the energy (squared Frobenius norm) whose ranks are reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energies(
    Documented,
    keys="norm numerical_rank effective_rank stable_rank rank_of_energy=ranks_of_energies singular_values=values",
    title="Spectrum",
):
    """The singular values of an update that a float32 file can hold, descending; none for a zero update."""

    values: tuple[float, ...]

    @classmethod
    def together(cls, parts: Sequence[Energies]) -> Energies:
        """The singular values of an update whose parts act on different outputs."""
        if len(parts) == 1:
            return parts[0]
        return cls(values=tuple(sorted((value for part in parts for value in part.values), reverse=True)))

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return math.hypot(*self.values)

    @property
    def numerical_rank(self) -> int:
        """The number of directions."""
        return len(self.values)

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy of the singular values divided by their sum (Roy and Vetterli, 2007).

        Equals the numerical rank when all are equal, and is near 1 when one dominates; 0 for a zero update.
        """
        whole = math.fsum(self.values)
        shares = [value / whole for value in self.values]
        return math.exp(-math.fsum(p * math.log(p) for p in shares if p > 0)) if self.values else 0.0

    @property
    def stable_rank(self) -> float:
        """‖·‖_F² / ‖·‖₂², insensitive to small singular values (arXiv:2407.21594); 0 for a zero update."""
        return math.fsum((value / self.values[0]) ** 2 for value in self.values) if self.values else 0.0

    def lost_at(self, rank: int) -> float:
        """Frobenius norm of the error of the best approximation of that rank (Eckart and Young, 1936)."""
        return math.hypot(*self.values[rank:])

    def rank_within(self, max_error: float) -> int:
        """Smallest rank whose error, relative to the whole, is at most `max_error`."""
        lost = 0.0
        for rank in range(self.numerical_rank, 0, -1):
            lost = math.hypot(lost, self.values[rank - 1])
            if lost > max_error * self.norm:
                return rank
        return 0

    def rank_of_energy(self, energy: float) -> int:
        """Smallest rank that holds this share of the energy; `energy` is at most 1."""
        return self.rank_within(math.sqrt(1 - energy))

    @property
    def ranks_of_energies(self) -> dict[str, int]:
        """The rank that keeps each share of the squared norm."""
        return {f"{energy:g}": self.rank_of_energy(energy) for energy in ENERGIES}
