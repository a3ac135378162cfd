"""torch's side of the dtype table (`formats.safetensors.dtypes`): the only place where the two meet."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import torch

from adapterhub.formats.safetensors.header import CHOICES, DTYPES, FACTOR_DTYPES, READ_DTYPES

TENSOR_DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {name: getattr(torch, dtype.torch) for name, dtype in DTYPES.items() if dtype.torch}
)
"""Every dtype that is read into tensors, by the format's name."""

FORMAT_DTYPES: Final[Mapping[torch.dtype, str]] = MappingProxyType({it: name for name, it in TENSOR_DTYPES.items()})
"""The format's names, by torch's dtype."""

TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType({name: TENSOR_DTYPES[name] for name in FACTOR_DTYPES})
"""What a factor is written in, and what a base may be stored in whose weights change."""

READABLE: Final[Mapping[str, torch.dtype]] = MappingProxyType({name: TENSOR_DTYPES[name] for name in READ_DTYPES})
"""What a factor may be stored in."""

CHOSEN_DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {choice: TENSOR_DTYPES[name] for choice, name in CHOICES.items()}
)
"""What users may ask for with `--dtype`."""
