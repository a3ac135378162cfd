"""Reads the low-rank updates of an adapter as numpy arrays, one module at a time, from bytes that the caller opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from adapterhub.core.errors import RefusedAdapter, UnsupportedAdapter, shown
from adapterhub.formats.derived.algebra import Update
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.layouts import Layout
from adapterhub.formats.peft.pairs import MATRIX_NDIM, Factors, Pairs, pair_up
from adapterhub.formats.safetensors.dtypes import FACTOR_DTYPES
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ADALORA: Final = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_[ABE])")

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
    if not config.is_lora and config.peft_type != "ADALORA":
        return f"not for this method: {shown(config.peft_type)}"
    changed = next((variant.what for variant in config.variants.values() if variant.changes_update), "")
    if changed:
        return f"not for this method: it {changed}"
    if config.start_changes_base or config.start_is_unknown:
        start = shown(config.init_lora_weights)
        return f"not for this initialisation: `{start}` may change the base that the update adds to"
    return ""


def _pair_up_adalora(specs: Iterable[TensorSpec], config: AdapterConfig, _folder: Path) -> Pairs:
    """The updates `scale * B (E * A)` of an AdaLoRA adapter, whose E [r, 1] holds singular values."""
    found: dict[str, dict[str, TensorSpec]] = {}
    others = []
    for spec in specs:
        match = _ADALORA.fullmatch(spec.name)
        if match is None:
            others.append(spec)
        else:
            found.setdefault(match["module"], {})[match["part"]] = spec
    modules = {}
    for module, own in sorted(found.items()):
        a, b, e = (own.get(f"lora_{part}") for part in "ABE")
        if a is None or b is None or e is None:
            raise RefusedAdapter("it has factors that do not fit together", [("E_PAIR", f"`{shown(module)}`")])
        is_triple = len(a.shape) == len(b.shape) == MATRIX_NDIM and e.shape == (a.shape[0], 1) == (b.shape[1], 1)
        if not is_triple or 0 in (*a.shape, *b.shape) or any(t.dtype not in FACTOR_DTYPES for t in (a, b, e)):
            raise RefusedAdapter("it has factors that do not fit together", [("E_SHAPE", f"`{shown(module)}`")])
        layout = Layout(kind="adalora", out=b.shape[0], a_shape=(a.shape[1],))
        scale = config.adalora_scaling(a.shape[0])
        tensors = MappingProxyType(own)
        modules[module] = Factors(layout=layout, rank=a.shape[0], scale=scale, a=a, b=b, tensors=tensors)
    return Pairs(MappingProxyType(modules), tuple(others), MappingProxyType({}))


@final
class AdapterUpdates:
    """The updates of one adapter by module. `read` gives bytes of the file whose checked header is `file`.

    `others` are the tensors that are not factors; `unclear` gives a reason for each pair of unclear meaning. With
    `as_lora`, the pairs of a LoRA variant such as DoRA are read as if they were all of it, and `partial` says why not.

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
        pairing = pair_up if config.is_lora else _pair_up_adalora
        self.modules, self.others, self.unclear = pairing(file.tensors, config, Path("adapter"))
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
        factors = self.modules[module]
        a, b = self._array(factors.a), self._array(factors.b)
        if factors.tensors:
            a = a * self._array(factors.tensors["lora_E"])
        pairs = factors.layout.split(a, b)
        return tuple(Update(a=a, b=b, scale=factors.scale) for a, b in pairs)

    def _array(self, spec: TensorSpec) -> NDArray[Any]:
        return floats(self._read(spec.start, spec.end), spec.dtype).reshape(spec.shape)
