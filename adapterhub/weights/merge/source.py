"""One adapter of a merge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapterhub.weights.lowrank.factors import AdapterFactors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergeAdapter:
    """One adapter that takes part: its place, its name in messages, its weight (never 0), its open files."""

    folder: Path
    label: str
    weight: float
    factors: AdapterFactors
