"""The result of a fusion, and its loss to rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from adapterhub.core.digests import Digest
from adapterhub.formats.safetensors.dtypes import DTYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedAdapter:
    """An adapter in a fused model; `digest` is that of its manifest, None for a folder outside the library."""

    label: str
    weight: float
    digest: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedTensor:
    """The loss of one tensor's update to rounding.

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
        """‖stored - (W + ΔW)‖ / ‖ΔW‖; 0 for a zero update."""
        return self.error / self.update if self.update else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Fused:
    """A written model: `files` weight files of `size_bytes` together.

    `tensors` are the changed tensors, sorted by name; `copied` counts the tensors with the base's bytes. `dtypes` are
    those of the changed tensors, in torch's names.
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

    def __repr__(self) -> str:
        added = " + ".join(f"{one.weight:g} x {one.label}" for one in self.adapters)
        return f"<Fused {self.out_folder} = {self.base} + {added}, rounding lost {self.relative_error:.2g}>"

    @property
    def relative_error(self) -> float:
        """The loss of the whole update to rounding: ‖stored - (W + ΔW)‖ / ‖ΔW‖ over all tensors."""
        update = math.hypot(*(tensor.update for tensor in self.tensors))
        return math.hypot(*(tensor.error for tensor in self.tensors)) / update if update else 0.0

    @property
    def worst(self) -> FusedTensor:
        """The tensor with the largest relative error."""
        return max(self.tensors, key=lambda tensor: tensor.relative_error)

    @property
    def unchanged(self) -> float:
        """The share of the updated entries that are stored as if they had no update."""
        moved = sum(tensor.moved for tensor in self.tensors)
        return sum(tensor.lost for tensor in self.tensors) / moved if moved else 0.0


def torch_name(dtype: str) -> str:
    """Torch's name for a floating dtype of the format."""
    return DTYPES[dtype].torch
