"""Copies of base weights that an adapter carries: PEFT saves them beside an embedding that it adapts.

Equal to the base's they change nothing. Any other would take the base's place when PEFT loads it.
"""

from __future__ import annotations

import os

import torch

from adapterhub.weights.dtypes import TORCH_DTYPES
from adapterhub.weights.fuse._change import read_into
from adapterhub.weights.fuse._model import Model
from adapterhub.weights.fuse._places import Taken


def is_copy(taken: Taken, model: Model, name: str) -> bool:
    """Whether a tensor of an adapter, in the base's dtype, is the base's tensor `name`; reads both, piece by piece."""
    file, spec = model.places[name]
    if taken.spec.shape != spec.shape or not {taken.spec.dtype, spec.dtype} <= TORCH_DTYPES.keys():
        return False
    mine, dtype = TORCH_DTYPES[taken.spec.dtype], TORCH_DTYPES[spec.dtype]
    handle, at = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC), spec.start
    try:
        for chunk in taken.source.factors.chunks(taken.spec):
            numbers = torch.frombuffer(chunk, dtype=mine)
            base = torch.empty(numbers.shape, dtype=dtype)
            read_into(base, handle, at, str(file.path))
            if not torch.equal(numbers.to(dtype), base):
                return False
            at += base.nbytes
    finally:
        os.close(handle)
    return True
