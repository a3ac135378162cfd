"""The arguments of a call with other contents in some rows of the batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

SHORT: Final = -1
"""The version of a row that has one entry and padding."""

_PLACEHOLDERS: Final = ("image", "video", "vision", "audio", "speech", "modal")


def changed_arguments(
    model: nn.Module, given: Mapping[str, Any], inputs: Mapping[str, Tensor], versions: Sequence[int]
) -> dict[str, Any]:
    """The arguments with the rows in these versions; 0 is the row itself. Caches are copied, which calls write to."""
    changed: dict[str, Any] = {}
    short = [row for row, version in enumerate(versions) if version == SHORT]
    for name, value in given.items():
        if name not in inputs:
            changed[name] = value if isinstance(value, Tensor) else copy.deepcopy(value)
            if short and name.endswith("attention_mask") and isinstance(value, Tensor) and value.ndim == 2:  # noqa: PLR2004 - [rows, tokens]
                changed[name] = value.clone()
                changed[name][short, 1:] = 0
            continue
        tensor = inputs[name].detach()
        rows = (_floats if tensor.is_floating_point() else _numbers)(model, tensor, versions)
        if isinstance(value, Tensor):
            changed[name] = rows
        elif isinstance(value, Mapping):
            made: Any = copy.copy(value)
            made[next(iter(value))] = rows
            changed[name] = made
        else:
            changed[name] = type(value)((rows, *value[1:]))
    return changed


def _floats(_model: nn.Module, tensor: Tensor, versions: Sequence[int]) -> Tensor:
    changed = tensor.clone()
    size = float(tensor.float().std()) if tensor.numel() > 1 else 0.0
    for row, version in enumerate(versions):
        if version == SHORT:
            changed[row, 1:] = 0
        elif version:
            noise = torch.randn(tensor[row].shape, generator=_of(version, row))
            changed[row] += (noise * (size or 1.0)).to(changed)
    return changed


def _of(version: int, row: int) -> torch.Generator:
    return torch.Generator().manual_seed(version << 32 | row)


def _numbers(model: nn.Module, tensor: Tensor, versions: Sequence[int]) -> Tensor:
    """Token ids with others instead of ordinary ones; those that stand for images and the like stay."""
    if tensor.dtype == torch.bool:
        return tensor.clone()
    special, held = _special(getattr(model, "config", None))
    entries = max(int(tensor.max()) + 1, 2)
    ordinary = torch.tensor([i for i in range(entries) if i not in special][-4096:] or [0, 1], device=tensor.device)
    changed = tensor.clone()
    for row, version in enumerate(versions):
        if not version:
            continue
        own = tensor[row]
        may = ~torch.isin(own, torch.tensor(sorted(special), device=own.device, dtype=own.dtype)) & (own >= 0)
        if not bool(may.any()):
            may = ~torch.isin(own, torch.tensor(sorted(held), device=own.device, dtype=own.dtype)) & (own >= 0)
        if version == SHORT:
            may[:1] = False
            changed[row] = own.masked_fill(may, getattr(getattr(model, "config", None), "pad_token_id", None) or 0)
            continue
        drawn = torch.randint(len(ordinary), own.shape, generator=_of(version, row)).to(own.device)
        other = ordinary[drawn].to(own.dtype)
        other = torch.where(other == own, ordinary[(drawn + 1) % len(ordinary)].to(own.dtype), other)
        changed[row] = torch.where(may, other, own)
    return changed


def _special(config: object) -> tuple[set[int], set[int]]:
    """The ids of special tokens in a model's config, and those among them that hold the place of something else."""
    special, held = set[int](), set[int]()
    written = getattr(config, "to_dict", dict)
    left: list[dict[str, Any]] = [written()]
    while left:
        for key, value in left.pop().items():
            if isinstance(value, dict):
                left.append(value)
            elif type(value) is int and key.endswith(("_token_id", "_token_index", "_id")):
                special.add(value)
                if any(word in key for word in _PLACEHOLDERS):
                    held.add(value)
    return special, held
