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
        self._views: dict[str, tuple[Tensor | None, int]] = {}

    def tensor(self, spec: TensorSpec, label: str) -> Tensor:
        """One tensor, without a copy if its alignment permits.

        Raises:
            RefusedAdapter: torch does not have the dtype.
        """
        name, stored, shape, start, end = spec
        whole, size = self._views.get(stored) or self._whole(stored)
        if start % size == 0 and whole is not None:
            return whole.as_strided(shape, _strides(shape), start // size)  # a tenth of the time of slices
        dtype = TENSOR_DTYPES.get(stored)
        if dtype is None:
            found = ("E_DTYPE", f"`{shown(name)}` is stored as {shown(stored)}")
            raise RefusedAdapter(f"`{shown(label)}` cannot be read", [found])
        return self._bytes[start:end].clone().view(dtype).reshape(shape)

    def _whole(self, stored: str) -> tuple[Tensor | None, int]:
        """All bytes in that dtype, None if torch lacks it or they begin at no multiple of its size; and its size."""
        dtype = TENSOR_DTYPES.get(stored)
        if dtype is None:
            return None, 1
        full = len(self._bytes) // dtype.itemsize * dtype.itemsize
        whole = self._bytes[:full].view(dtype) if self._bytes.data_ptr() % dtype.itemsize == 0 else None
        self._views[stored] = found = whole, dtype.itemsize
        return found

    def is_wasteful(self, used: Iterable[TensorSpec]) -> bool:
        """Whether views of `used` alone would keep much unused memory alive."""
        return sum([spec.end - spec.start for spec in used]) < (1 - _MUCH_UNUSED) * len(self._bytes)
