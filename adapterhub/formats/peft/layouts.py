"""The layout of a module's low-rank update in a PEFT file: names, shapes and parts of its factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

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
    constants beside them.
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

    def split(self, a: Any, b: Any) -> tuple[tuple[Any, Any], ...]:  # noqa: ANN401 - arrays of torch or of numpy
        """The factors of each part, [r, width] and [part_out, r], from A and B as in the file; views of them."""
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        if self.parts == 1:
            return ((a, b),)
        if self.kind == "experts":
            of_b = b.reshape(self.out, -1, self.parts).swapaxes(0, 2).swapaxes(1, 2)
        else:
            of_b = b.reshape(self.parts, self.part_out, -1)
        return tuple(zip(a.reshape(self.parts, -1, self.width), of_b, strict=True))

    def __str__(self) -> str:
        parts = f", {self.parts} parts" if self.parts > 1 else ""
        return f"{self.kind} {self.out} x {' x '.join(map(str, self.a_shape))}{parts}"


def plain_name(name: str) -> str:
    """The name of a module or tensor in the base, from its name inside PEFT's wrappers."""
    return ".".join(part for part in name.split(".") if part != NESTED)
