"""What a fusion wrote, and what rounding lost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from adapterhub.core.digests import Digest
from adapterhub.formats.safetensors.dtypes import DTYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedAdapter:
    """An adapter in a fused model; `digest` is that of its manifest, None for a folder outside of the library."""

    label: str
    weight: float
    digest: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedTensor:
    """How the update of one tensor landed.

    `error` is ‖stored - (W + ΔW)‖ and `update` is ‖ΔW‖, Frobenius. `moved` counts the entries with an update, `lost`
    those of them that are stored as if they had none.
    """

    name: str
    error: float
    update: float
    moved: int
    lost: int

    @property
    def relative_error(self) -> float:
        """‖stored - (W + ΔW)‖ / ‖ΔW‖; 0 for an update of nothing."""
        return self.error / self.update if self.update else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """What was written: `files` weight files of `size_bytes` together.

    `tensors` are those that changed, by name; `copied` counts those whose bytes are the base's. `dtypes` are what the
    changed ones are stored as, in torch's names.
    """

    out_folder: Path
    base: str
    base_weights: Digest
    adapters: tuple[FusedAdapter, ...]
    files: int
    size_bytes: int
    tensors: tuple[FusedTensor, ...]
    copied: int
    dtypes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def relative_error(self) -> float:
        """What rounding lost of the whole update: ‖stored - (W + ΔW)‖ / ‖ΔW‖ over all tensors."""
        update = math.hypot(*(tensor.update for tensor in self.tensors))
        return math.hypot(*(tensor.error for tensor in self.tensors)) / update if update else 0.0

    @property
    def worst(self) -> FusedTensor:
        """The tensor whose update rounding hurt most."""
        return max(self.tensors, key=lambda tensor: tensor.relative_error)

    @property
    def unchanged(self) -> float:
        """Share of the entries with an update that are stored as if they had none."""
        moved = sum(tensor.moved for tensor in self.tensors)
        return sum(tensor.lost for tensor in self.tensors) / moved if moved else 0.0


def torch_name(dtype: str) -> str:
    """The name that torch gives to one of the format's floating dtypes."""
    return DTYPES[dtype].torch
