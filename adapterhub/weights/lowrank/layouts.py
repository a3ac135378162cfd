"""The layout of a module's low-rank update in a PEFT file: names, shapes and parts of its factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from adapterhub.formats.peft.config import owner
from adapterhub.weights.lowrank.algebra import LowRank

__all__ = ["NESTED", "PEFT_PREFIX", "ROWS", "Kind", "Layout", "Names", "is_finite", "owner", "plain_name"]

PEFT_PREFIX = "base_model.model."
"""PEFT's prefix before the name of a module in the base."""

NESTED = "base_layer"
"""PEFT's name for the wrapped module inside its wrapper."""

ROWS = ".token_adapter.trainable_tokens_delta"
"""PEFT's name, after that of an embedding, for the rows of it that were trained (`trainable_token_indices`)."""

Kind = Literal["linear", "conv", "embedding", "experts", "loha", "adalora"]


class Names(NamedTuple):
    """The tensor names of one module's two factors."""

    a: str
    b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The layout of a module's update in a file; updates with equal layouts can be added up.

    `linear`: A [r, in], B [out, r]; `embedding`: A [r, entries], B [width, r]; `conv`: A [r, in, *kernel], B [out, r,
    1, …], which are matrices once the trailing dimensions are flattened. `a_shape` is A's shape without r.

    Two kinds have several `parts`: separate low-rank pairs that act on different outputs. A grouped `conv` has one for
    each group: A [groups * r, in, *kernel] and B [out, r, 1, …], group by group. `experts`, a bare parameter of the
    base (PEFT's `target_parameters`) of shape [experts, …], has one for each expert: A [experts * r, in], expert by
    expert, but B [out, r * experts], in which the columns of one expert are `experts` apart.

    `loha` and `adalora` are pairs on a flattened weight, [out, everything else], in a file of that method, with
    `constants` beside them.
    """

    kind: Kind
    out: int
    a_shape: tuple[int, ...]
    parts: int = 1

    @property
    def width(self) -> int:
        """The columns of the flattened A."""
        return math.prod(self.a_shape)

    @property
    def part_out(self) -> int:
        """The outputs of one part."""
        return self.out // self.parts if self.kind == "conv" else self.out

    @property
    def full_rank(self) -> int:
        """The largest rank that a part can need."""
        return min(self.part_out, self.width)

    def names(self, module: str) -> Names:
        """PEFT's tensor names for the factors of the module."""
        if self.kind == "embedding":
            return Names(f"{PEFT_PREFIX}{module}.lora_embedding_A", f"{PEFT_PREFIX}{module}.lora_embedding_B")
        if self.kind == "loha":
            return Names(f"{PEFT_PREFIX}{module}.hada_w1_b", f"{PEFT_PREFIX}{module}.hada_w1_a")
        tail = "" if self.kind == "adalora" else ".weight"
        return Names(f"{PEFT_PREFIX}{module}.lora_A{tail}", f"{PEFT_PREFIX}{module}.lora_B{tail}")

    def constants(self, module: str, rank: int, *, device: str = "cpu") -> dict[str, Tensor]:
        """The float32 tensors that the method needs beside a pair of that rank and scale 1, by their names."""
        if self.kind == "adalora":
            return {f"{PEFT_PREFIX}{module}.lora_E": torch.ones(rank, 1, device=device)}
        if self.kind != "loha":
            return {}
        left, right = torch.zeros(self.out, rank, device=device), torch.zeros(rank, self.width, device=device)
        left[:, 0], right[0] = 1, 1  # a second product of ones, which changes nothing
        return {f"{PEFT_PREFIX}{module}.hada_w2_a": left, f"{PEFT_PREFIX}{module}.hada_w2_b": right}

    def bias_name(self, module: str) -> str:
        """PEFT's tensor name for the bias of B (`lora_bias`)."""
        return f"{PEFT_PREFIX}{module}.lora_B.bias"

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B in the file, for parts of that rank."""
        columns = rank * self.parts if self.kind == "experts" else rank
        return (rank * self.parts, *self.a_shape), (self.out, columns, *(1 for _ in self.a_shape[1:]))

    def config_rank(self, rank: int) -> int:
        """The rank in a config of a module whose parts have that rank."""
        return rank * self.parts if self.kind == "conv" else rank

    def part_rank(self, rank: int) -> int:
        """The rank of each part for a rank in a config: the inverse of `config_rank`, at least 1."""
        return max(1, rank // self.parts) if self.kind == "conv" else rank

    def split(self, a: Tensor, b: Tensor, scale: float) -> tuple[LowRank, ...]:
        """The parts of a module whose factors are `a` and `b`, as views of them."""
        a, b = a.flatten(1), b.flatten(1)
        if self.parts == 1:
            return (LowRank(a=a, b=b, scale=scale),)
        of_a = a.view(self.parts, -1, self.width)
        if self.kind == "experts":
            of_b = b.view(self.out, -1, self.parts).permute(2, 0, 1)
        else:
            of_b = b.view(self.parts, self.part_out, -1)
        return tuple(LowRank(a=part_a, b=part_b, scale=scale) for part_a, part_b in zip(of_a, of_b, strict=True))

    def join(self, parts: Sequence[LowRank], rank: int) -> tuple[Tensor, Tensor]:
        """A and B as in the file, from parts of scale 1 and one dtype; zeros fill parts of a lower rank than `rank`."""
        shape_a, shape_b = self.shapes(rank)
        if self.parts == 1 and parts[0].rank == rank:
            return parts[0].a.reshape(shape_a), parts[0].b.reshape(shape_b)
        a = parts[0].a.new_zeros(self.parts, rank, self.width)
        b = parts[0].b.new_zeros(self.parts, self.part_out, rank)
        for part, of_a, of_b in zip(parts, a, b, strict=True):
            of_a[: part.rank] = part.a
            of_b[:, : part.rank] = part.b
        if self.kind == "experts":
            b = b.permute(1, 2, 0)
        return a.reshape(shape_a), b.reshape(shape_b)

    def __str__(self) -> str:
        parts = f", {self.parts} parts" if self.parts > 1 else ""
        return f"{self.kind} {self.out} x {' x '.join(map(str, self.a_shape))}{parts}"


def plain_name(name: str) -> str:
    """The name of a module or tensor in the base, from its name inside PEFT's wrappers."""
    return ".".join(part for part in name.split(".") if part != NESTED)


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; 8-bit floats are widened first."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    low, high = wide.aminmax()
    return bool(torch.isfinite(low) & torch.isfinite(high))
