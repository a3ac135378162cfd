"""The result of a fusion, and its loss to rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from adapterhub.core.digests import Digest
from adapterhub.formats.contract.results import Tested
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import Parent
from adapterhub.formats.safetensors.dtypes import DTYPES

LARGE_LOSS: Final = 0.1
"""From this relative error on, users are advised to keep the adapter beside its base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedTensor(Documented, keys="name relative_error moved lost"):
    """The loss of one tensor's update to rounding.

    `error` is ‖stored - (W + ΔW)‖ and `update` is ‖ΔW‖, Frobenius. `moved` counts the entries with an update, `lost`
    those of them that are stored as if they had none.
    """

    name: str
    error: float
    update: float
    moved: Annotated[int, "numbers that have an update"]
    lost: Annotated[int, "those that are stored unchanged"]

    @property
    def relative_error(self) -> float:
        """‖stored - (W + ΔW)‖ / ‖ΔW‖; 0 for a zero update."""
        return self.error / self.update if self.update else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Fused(
    Documented,
    keys="path=out_folder base base_weights adapters files size_bytes dtypes relative_error unchanged"
    " worst_tensor=worst.name worst_error=worst.relative_error copied tensors warnings tests?",
):
    """A model with adapters fused in. It has `files` weight files of `size_bytes` together.

    `tensors` are the changed tensors, sorted by name; `copied` counts the tensors with the base's bytes. `dtypes` are
    those of the changed tensors, in torch's names.
    """

    out_folder: Annotated[Path, "a path on this machine"]
    base: str
    base_weights: Digest
    adapters: tuple[Parent, ...]
    files: Annotated[int, "number of weight files"]
    size_bytes: Annotated[int, "bytes"]
    tensors: tuple[FusedTensor, ...]
    copied: Annotated[int, "number of tensors copied byte for byte"]
    dtypes: tuple[str, ...]
    warnings: tuple[str, ...]
    tests: Annotated[tuple[Tested, ...] | None, "with --test: one for each adapter that has a contract"] = None

    def __repr__(self) -> str:
        added = " + ".join(f"{one.weight:g} x {one.spec}" for one in self.adapters)
        return f"<Fused {self.out_folder} = {self.base} + {added}, rounding lost {self.relative_error:.2g}>"

    @property
    def relative_error(self) -> float:
        """The loss of the whole update to rounding: ‖stored - (W + ΔW)‖ / ‖ΔW‖ over all tensors."""
        update = math.hypot(*(tensor.update for tensor in self.tensors))
        return math.hypot(*(tensor.error for tensor in self.tensors)) / update if update else 0.0

    @property
    def loses_much(self) -> bool:
        """Whether rounding lost so much that the adapter is better used unfused."""
        return self.relative_error > LARGE_LOSS

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
