"""The tensors of an adapter's file as views of one piece of memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from functools import lru_cache
from mmap import mmap

import torch
from torch import Tensor

from adapterhub.core.disk.held_file import HeldFile
from adapterhub.core.errors import RefusedAdapter, shown
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.bank.engine import no_memory
from adapterhub.weights.dtypes import TENSOR_DTYPES

_MUCH_UNUSED = 0.1


@lru_cache(maxsize=256)
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class FileMemory:
    """The bytes of a checked file, read into memory once and hashed there.

    A memory map would cost nothing until it is used. But it shows later writes to the file, and kills the process when
    the file is truncated. `reference` leads to that memory as long as something uses it.

    Raises:
        DigestMismatch, OSError: the file has changed since it was checked.
    """

    def __init__(self, weights: HeldFile) -> None:
        memory = weights.load()
        self.reference = weakref.ref(memory.obj) if isinstance(memory.obj, mmap) else no_memory
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self._views: dict[torch.dtype, tuple[Tensor | None, int]] = {}

    def tensor(self, spec: TensorSpec, label: str) -> Tensor:
        """One tensor, without a copy if its alignment permits.

        Raises:
            RefusedAdapter: torch does not have the dtype.
        """
        dtype = TENSOR_DTYPES.get(spec.dtype)
        if dtype is None:
            found = ("E_DTYPE", f"`{shown(spec.name)}` is stored as {shown(spec.dtype)}")
            raise RefusedAdapter(f"`{shown(label)}` cannot be read", [found])
        whole, size = self._views.get(dtype) or self._whole(dtype)
        place, rest = divmod(spec.start, size)
        if rest or whole is None:
            return self._bytes[spec.start : spec.end].clone().view(dtype).reshape(spec.shape)
        return whole.as_strided(spec.shape, _strides(spec.shape), place)  # a tenth of the time of slices

    def _whole(self, dtype: torch.dtype) -> tuple[Tensor | None, int]:
        """All bytes in that dtype, None if they do not begin at a multiple of its size; and its size."""
        is_aligned = self._bytes.data_ptr() % dtype.itemsize == 0
        full = len(self._bytes) // dtype.itemsize * dtype.itemsize
        self._views[dtype] = found = self._bytes[:full].view(dtype) if is_aligned else None, dtype.itemsize
        return found

    def is_wasteful(self, used: Iterable[TensorSpec]) -> bool:
        """Whether views of `used` alone would keep much unused memory alive."""
        return sum(spec.size_bytes for spec in used) < (1 - _MUCH_UNUSED) * len(self._bytes)
