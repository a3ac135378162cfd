"""The layouts of a PEFT file with torch's tensors: an update back into factors, and what stands beside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapterhub.formats.peft.layouts import PEFT_PREFIX, Layout
from adapterhub.weights.lowrank.algebra import LowRank


def constants(layout: Layout, module: str, rank: int, *, device: str = "cpu") -> dict[str, Tensor]:
    """The float32 tensors that the method needs beside a pair of that rank and scale 1, by their names."""
    if layout.kind == "adalora":
        return {f"{PEFT_PREFIX}{module}.lora_E": torch.ones(rank, 1, device=device)}
    if layout.kind != "loha":
        return {}
    left, right = torch.zeros(layout.out, rank, device=device), torch.zeros(rank, layout.width, device=device)
    left[:, 0], right[0] = 1, 1  # a second product of ones, which changes nothing
    return {f"{PEFT_PREFIX}{module}.hada_w2_a": left, f"{PEFT_PREFIX}{module}.hada_w2_b": right}


def join(layout: Layout, parts: Sequence[LowRank], rank: int) -> tuple[Tensor, Tensor]:
    """A and B as in the file, from parts of scale 1 and one dtype; zeros fill parts of a lower rank than `rank`."""
    shape_a, shape_b = layout.shapes(rank)
    if layout.parts == 1 and parts[0].rank == rank:
        return parts[0].a.reshape(shape_a), parts[0].b.reshape(shape_b)
    a = parts[0].a.new_zeros(layout.parts, rank, layout.width)
    b = parts[0].b.new_zeros(layout.parts, layout.part_out, rank)
    for part, of_a, of_b in zip(parts, a, b, strict=True):
        of_a[: part.rank] = part.a
        of_b[:, : part.rank] = part.b
    if layout.kind == "experts":
        b = b.permute(1, 2, 0)
    return a.reshape(shape_a), b.reshape(shape_b)


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; 8-bit floats are widened first."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    low, high = wide.aminmax()
    return bool(torch.isfinite(low) & torch.isfinite(high))
