"""Reads the low-rank updates of an adapter as numpy arrays, one module at a time, from bytes that the caller opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.derived.algebra import Update
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.pairs import Factors, pair_up
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import TensorSpec

Read = Callable[[int, int], "bytes | bytearray | memoryview"]
"""The bytes of a weights file from one position up to another."""

MOST_NUMBERS: Final = 1 << 24
"""The most numbers in the factors of one module; float64 copies of them take about 500 MB."""

MOST_RANK: Final = 1024
"""The greatest rank of one module; its singular values take a few seconds."""

MOST_PARTS: Final = 1024
"""The most experts or groups of one module."""


def floats(raw: bytes | bytearray | memoryview, dtype: str) -> NDArray[Any]:
    """The numbers of a tensor in one of `FACTOR_DTYPES`, flat: float64 for F64, float32 for all others."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    numbers = np.frombuffer(raw, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])
    return numbers.astype("f8" if dtype == "F64" else "f4")


def why_not(config: AdapterConfig) -> str:
    """Why the update of a module is not `scale * B A` on the unchanged base; empty where it is."""
    if not config.is_lora:
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

    `others` are the tensors that are not factors; `unclear` gives a reason for each pair of unclear meaning.

    Raises:
        UnsupportedAdapter: its updates are not `scale * B A`.
        RefusedAdapter: factors have no partner, or do not fit each other or the config.
        MalformedConfig: E_REGEX, because the patterns of the config take too long.
    """

    def __init__(self, config: AdapterConfig, file: TensorFile, read: Read) -> None:
        reason = why_not(config)
        if reason:
            raise UnsupportedAdapter(reason)
        self.config = config
        self.modules, self.others, self.unclear = pair_up(file.tensors, config, Path("adapter"))
        self._read = read

    def too_large(self, module: str) -> str:
        """Why a module is not computed; empty for one within bounds."""
        factors = self.modules[module]
        if factors.rank > MOST_RANK:
            return f"rank {factors.rank}, computed up to {MOST_RANK}"
        if factors.layout.parts > MOST_PARTS:
            return f"{factors.layout.parts} parts, computed up to {MOST_PARTS}"
        numbers = factors.a.elements + factors.b.elements
        return f"{numbers} numbers, computed up to {MOST_NUMBERS}" if numbers > MOST_NUMBERS else ""

    def parts(self, module: str) -> tuple[Update, ...]:
        """The updates of the module's parts (see `Layout`), one for most modules.

        Raises:
            KeyError: the adapter has no such module.
            UnsupportedAdapter: the module is too large to compute.
        """
        reason = self.too_large(module)
        if reason:
            raise UnsupportedAdapter(f"`{shown(module)}` is too large: {reason}")
        factors: Factors = self.modules[module]
        pairs = factors.layout.split(self._array(factors.a), self._array(factors.b))
        return tuple(Update(a=a, b=b, scale=factors.scale) for a, b in pairs)

    def _array(self, spec: TensorSpec) -> NDArray[Any]:
        return floats(self._read(spec.start, spec.end), spec.dtype).reshape(spec.shape)
