"""The tensors of an adapter's file as views of one piece of memory."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from adapterhub.core.disk.held_file import HeldFile
from adapterhub.core.errors import RefusedAdapter, shown
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.dtypes import TENSOR_DTYPES

_MUCH_UNUSED = 0.1


class FileMemory:
    """The bytes of a checked file, read once and hashed where they lie.

    A mapping of the file would cost nothing until it is used, but shows whatever is written into the file later, and
    kills the process when the file is cut short.

    Raises:
        DigestMismatch, OSError: the file is not what was checked any more.
    """

    def __init__(self, weights: HeldFile) -> None:
        self._bytes = torch.frombuffer(weights.load(), dtype=torch.uint8)

    def tensor(self, spec: TensorSpec, label: str) -> Tensor:
        """One tensor, without a copy where its place allows it.

        Raises:
            RefusedAdapter: a dtype that torch does not have.
        """
        dtype = TENSOR_DTYPES.get(spec.dtype)
        if dtype is None:
            found = ("E_DTYPE", f"`{shown(spec.name)}` is stored as {shown(spec.dtype)}")
            raise RefusedAdapter(f"`{shown(label)}` cannot be read", [found])
        room = self._bytes[spec.start : spec.end]
        if room.data_ptr() % dtype.itemsize:
            room = room.clone()
        return room.view(dtype).reshape(spec.shape)

    def is_wasteful(self, used: Iterable[TensorSpec]) -> bool:
        """Whether views of `used` alone would keep much memory that nobody needs."""
        return sum(spec.size_bytes for spec in used) < (1 - _MUCH_UNUSED) * len(self._bytes)
