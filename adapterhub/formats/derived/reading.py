"""Reads the low-rank updates of an adapter as numpy arrays, one module at a time, from bytes that the caller opened."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.derived.algebra import ArrayUpdate
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.pairs import (
    PRODUCTS,
    kronecker_sides,
    kronecker_sizes,
    multiplied,
    pair_up,
    pair_up_products,
)
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import DTYPES, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

Read = Callable[[int, int], "bytes | bytearray | memoryview"]
"""The bytes of a weights file from one position up to another."""

MOST_NUMBERS: Final = 1 << 24
"""The most numbers in the factors of one module; float64 copies of them take about 500 MB."""

MOST_RANK: Final = 1024
"""The greatest rank of one module; its singular values take a few seconds."""

MOST_PARTS: Final = 1024
"""The most experts or groups of one module."""


def floats(raw: bytes | bytearray | memoryview, dtype: str) -> NDArray[Any]:
    """Return the numbers of a tensor in one of `READ_DTYPES`, flat: float64 for F64, float32 for all others."""
    if dtype.startswith("F8"):
        return _values(dtype).take(np.frombuffer(raw, "u1"))
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    numbers = np.frombuffer(raw, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])
    return numbers.astype("f8" if dtype == "F64" else "f4")


@cache
def _values(dtype: str) -> NDArray[np.float32]:
    """Return the number of each byte in a dtype of 8 bits."""
    layout = DTYPES[dtype].layout
    assert layout is not None  # it is a float
    last = [math.inf] if layout.infinity else []
    sizes = [layout.magnitude(code) for code in range(layout.largest + 1)] + last
    sizes += [math.nan] * (layout.sign_bit - len(sizes))
    return np.array([*sizes, *(-size for size in sizes)], np.float32)


def why_not(config: AdapterConfig) -> str:
    """Return why the update of a module is not `scale * B A` on the unchanged base; empty if it is."""
    if not config.is_lora and config.peft_type not in PRODUCTS:
        return f"not for this method: {shown(config.peft_type)}"
    changed = next((variant.what for variant in config.variants.values() if variant.changes_update), "")
    if changed:
        return f"not for this method: it {changed}"
    if config.start_changes_base or config.start_is_unknown:
        start = shown(config.init_lora_weights)
        return f"not for this initialisation: `{start}` may change the base that the update adds to"
    return ""


@final
class AdapterUpdates:
    """The updates of one adapter by module. `read` gives bytes of the file whose checked header is `file`.

    `others` are the tensors that are not factors; `unclear` gives a reason for each pair of unclear meaning. With
    `as_lora`, the pairs of a LoRA variant such as DoRA are read as if they were its whole update, and `partial` holds
    the reason why they are not.

    Raises:
        UnsupportedAdapter: its updates are not `scale * B A`.
        RefusedAdapter: factors have no partner, or do not fit each other or the config.
        MalformedConfig: E_REGEX, because the patterns of the config take too long.
    """

    def __init__(self, config: AdapterConfig, file: TensorFile, read: Read, *, as_lora: bool = False) -> None:
        self.partial = why_not(config)
        if self.partial and not (as_lora and config.is_lora):
            raise UnsupportedAdapter(self.partial)
        self.config = config
        pairing = pair_up if config.is_lora else pair_up_products
        self.modules, self.others, self.unclear = pairing(file.tensors, config, Path("adapter"))
        self._read = read

    def too_large(self, module: str, *, in_sides: bool = False) -> str:
        """Return why a module is not computed, or with `in_sides` its `sides`; empty for one within bounds."""
        for rank, parts, numbers in self._sizes(module, in_sides=in_sides):
            if rank > MOST_RANK:
                return f"rank {rank}, computed up to {MOST_RANK}"
            if parts > MOST_PARTS:
                return f"{parts} parts, computed up to {MOST_PARTS}"
            if numbers > MOST_NUMBERS:
                return f"{numbers} numbers, computed up to {MOST_NUMBERS}"
        return ""

    def _sizes(self, module: str, *, in_sides: bool) -> Iterator[tuple[int, int, int]]:
        """Yield the rank, the parts and the numbers of the factors of a module, or of each of its sides."""
        factors = self.modules[module]
        if in_sides:
            yield from ((rank, 1, rank * (out + width)) for out, width, rank in self._sides(module))
        elif factors.tensors:
            stored = sum(spec.elements for spec in factors.tensors.values())
            made = factors.rank * (factors.layout.out + factors.layout.width)
            yield factors.rank, 1, max(stored, made)
        else:
            yield factors.rank, factors.layout.parts, factors.a.elements + factors.b.elements

    def parts(self, module: str) -> tuple[ArrayUpdate, ...]:
        """Return the updates of the module's parts (see `Layout`), one for most modules.

        Raises:
            KeyError: the adapter has no such module.
            UnsupportedAdapter: the module is too large to compute.
        """
        self._ensure_small(module, in_sides=False)
        factors = self.modules[module]
        if factors.tensors:
            a, b = multiplied(np, self._arrays(module))
            return (ArrayUpdate(a=a, b=b, scale=factors.scale),)
        pairs = factors.layout.split(self._array(factors.a), self._array(factors.b))
        return tuple(ArrayUpdate(a=a, b=b, scale=factors.scale) for a, b in pairs)

    def sides(self, module: str) -> tuple[ArrayUpdate, ArrayUpdate] | None:
        """Return the two updates whose Kronecker product is that of a LoKr module; None for all others.

        Raises:
            KeyError, UnsupportedAdapter: as for `parts`.
        """
        if not self._sides(module):
            return None
        self._ensure_small(module, in_sides=True)
        found = kronecker_sides(np, self._arrays(module))
        assert found is not None
        (a, b), (inner_a, inner_b) = found
        return ArrayUpdate(a=a, b=b, scale=self.modules[module].scale), ArrayUpdate(a=inner_a, b=inner_b)

    def _sides(self, module: str) -> tuple[tuple[int, int, int], ...]:
        return kronecker_sizes({name: spec.shape for name, spec in self.modules[module].tensors.items()})

    def _ensure_small(self, module: str, *, in_sides: bool) -> None:
        reason = self.too_large(module, in_sides=in_sides)
        if reason:
            raise UnsupportedAdapter(f"`{shown(module)}` is too large: {reason}")

    def _arrays(self, module: str) -> dict[str, NDArray[np.float64]]:
        tensors = self.modules[module].tensors
        return {name: self._array(spec).astype(np.float64) for name, spec in tensors.items()}

    def _array(self, spec: TensorSpec) -> NDArray[Any]:
        return floats(self._read(spec.start, spec.end), spec.dtype).reshape(spec.shape)
