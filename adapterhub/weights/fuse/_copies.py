"""Copies of base weights in an adapter: PEFT saves them beside an embedding that it adapts.

A copy that equals the base's weight changes nothing. Any other replaces the base's weight when PEFT loads it.
"""

from __future__ import annotations

import os

import torch

from adapterhub.weights.dtypes import TORCH_DTYPES
from adapterhub.weights.fuse._change import read_into
from adapterhub.weights.fuse._model import Model
from adapterhub.weights.fuse._places import AdapterTensor


def is_copy(tensor: AdapterTensor, model: Model, name: str) -> bool:
    """Whether an adapter's tensor, in the base's dtype, equals the base's tensor `name`; reads both piece by piece."""
    file, spec = model.places[name]
    if tensor.spec.shape != spec.shape or not {tensor.spec.dtype, spec.dtype} <= TORCH_DTYPES.keys():
        return False
    mine, dtype = TORCH_DTYPES[tensor.spec.dtype], TORCH_DTYPES[spec.dtype]
    handle, at = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC), spec.start
    try:
        for chunk in tensor.source.factors.chunks(tensor.spec):
            numbers = torch.frombuffer(chunk, dtype=mine)
            base = torch.empty(numbers.shape, dtype=dtype)
            read_into(base, handle, at, str(file.path))
            if not torch.equal(numbers.to(dtype), base):
                return False
            at += base.nbytes
    finally:
        os.close(handle)
    return True
