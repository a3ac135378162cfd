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
from adapterhub.inference.bank.updates import View
from adapterhub.weights.dtypes import TENSOR_DTYPES

_MUCH_UNUSED = 0.1


@lru_cache(maxsize=256)
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class FileMemory:
    """The bytes of a checked file, read into memory once and hashed there; takes the tensors `used` out of it.

    A memory map would cost nothing until it is used. But it shows later writes to the file, and kills the process when
    the file is truncated. `reference` leads to that memory as long as something uses it. `size_bytes` adds up what the
    tensors that were taken keep alive. `label` names the adapter in errors.

    Raises:
        DigestMismatch, OSError: the file has changed since it was checked.
    """

    def __init__(self, weights: HeldFile, used: Iterable[TensorSpec], label: str) -> None:
        memory = weights.load()
        self.reference = weakref.ref(memory.obj) if isinstance(memory.obj, mmap) else no_memory
        self.size_bytes = 0
        self._label = label
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self._views: dict[str, tuple[View, torch.dtype, int]] = {}
        # views alone would keep much unused memory alive
        self._copies = sum([spec.end - spec.start for spec in used]) < (1 - _MUCH_UNUSED) * len(memory)

    def later(self, a: TensorSpec, b: TensorSpec, dtype: torch.dtype) -> View | None:
        """Makes either tensor as `take` does on the CPU, where both are views of the file; None where one is not.

        Raises:
            RefusedAdapter: as `take`; what this returns does not raise.
        """
        for spec in (a, b):
            view, own, size = self._views.get(spec.dtype) or self._whole(spec)
            if self._copies or own is not dtype or spec.start % size:
                return None
        self.size_bytes += a.end - a.start + b.end - b.start
        return view  # both are of one dtype

    def take(self, spec: TensorSpec, dtype: torch.dtype, device: torch.device | None) -> Tensor:
        """One tensor in that dtype, on that device (None is the CPU); without a copy if it lies like that in the file.

        Raises:
            RefusedAdapter: torch does not have the dtype of the file.
        """
        _, stored, shape, start, end = spec
        view, own, size = self._views.get(stored) or self._whole(spec)
        read = view(spec) if start % size == 0 else self._bytes[start:end].clone().view(own).reshape(shape)
        if device is not None or own is not dtype:
            read = read.to(device=device, dtype=dtype)
        elif self._copies:
            read = read.clone()
        self.size_bytes += (end - start) // size * dtype.itemsize
        return read

    def _whole(self, spec: TensorSpec) -> tuple[View, torch.dtype, int]:
        """Gives tensors in the dtype of this one out of all bytes; that dtype, and its size in bytes."""
        dtype = TENSOR_DTYPES.get(spec.dtype)
        if dtype is None:
            found = ("E_DTYPE", f"`{shown(spec.name)}` is stored as {shown(spec.dtype)}")
            raise RefusedAdapter(f"`{shown(self._label)}` cannot be read", [found])
        size = dtype.itemsize
        part = self._bytes[: len(self._bytes) // size * size].view(dtype).as_strided

        def view(spec: TensorSpec) -> Tensor:
            shape = spec.shape
            return part(shape, _strides(shape), spec.start // size)  # a tenth of the time of slices

        self._views[spec.dtype] = found_view = view, dtype, size
        return found_view
