"""LoHa and LoKr of LyCORIS: the same formulas as PEFT's, if PEFT would choose the same layout of factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.core.limits import limits
from adapterhub.formats.foreign.reading import MATRIX, Cut, Method, Module, Source
from adapterhub.formats.safetensors.dtypes import FACTOR_DTYPES
from adapterhub.formats.safetensors.header import TensorSpec

_LOHA: Final = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def product_module(
    source: Source,
    part: str,
    name: str,
    found: Mapping[str, TensorSpec],
    *,
    method: Method,
    alpha: float | None,
    label: str,
) -> Module:
    """One LoHa or LoKr module from its tensors; arguments as for `lora_module`.

    Raises:
        MalformedTensorFile: E_PAIR, E_SHAPE, E_RANK, E_DTYPE, or E_UNSUPPORTED for what PEFT has no place for.
    """
    label = shown(label)
    if "magnitude" in found:
        source.refuse("E_UNSUPPORTED", f"`{label}` has a `dora_scale`, which PEFT's {method} has no place for")
    for spec in found.values():
        if spec.dtype not in FACTOR_DTYPES:
            source.refuse("E_DTYPE", f"`{shown(spec.name)}` is {spec.dtype}, expected {', '.join(FACTOR_DTYPES)}")
        if len(spec.shape) < MATRIX or not all(spec.shape):
            source.refuse("E_SHAPE", f"`{shown(spec.name)}` has shape {list(spec.shape)}, expected a matrix")
    rank = _loha(source, found, label) if method == "LOHA" else _lokr(source, found, label)
    if rank > limits().rank:
        source.refuse("E_RANK", f"`{label}` has rank {rank}, expected at most {limits().rank}")
    slots = {slot: Cut(source=spec, shape=spec.shape) for slot, spec in found.items()}
    is_whole = method == "LOKR" and {"lokr_w1", "lokr_w2"} <= found.keys()
    return Module(part=part, name=name, slots=slots, rank=rank, alpha=None if is_whole else alpha)


def _loha(source: Source, found: Mapping[str, TensorSpec], label: str) -> int:
    missing = [slot for slot in _LOHA if slot not in found]
    strange = found.keys() - {*_LOHA, "hada_t1", "hada_t2"}
    if missing or strange or ("hada_t1" in found) != ("hada_t2" in found):
        there = ", ".join(f"`{slot}`" for slot in sorted(found))
        source.refuse("E_PAIR", f"`{label}` has {there}, expected the four factors of a LoHa")
    w1_a, w1_b, w2_a, w2_b = (found[slot].shape for slot in _LOHA)
    has_core = "hada_t1" in found
    rank = w1_b[0]
    sides = (w1_a[0], w2_a[0]) if has_core else (w1_a[1], w2_a[1])
    if {rank, w2_b[0], *sides} != {rank}:
        source.refuse("E_RANK", f"`{label}` has factors of ranks {sorted({rank, w2_b[0], *sides})}")
    if w1_a != w2_a or w1_b != w2_b:
        source.refuse("E_SHAPE", f"`{label}` multiplies updates of different sizes")
    if has_core and not found["hada_t1"].shape[:2] == found["hada_t2"].shape[:2] == (rank, rank):
        source.refuse("E_SHAPE", f"`{label}` has cores that are not of rank {rank}")
    return rank


def _lokr(source: Source, found: Mapping[str, TensorSpec], label: str) -> int:
    one, two = "lokr_w1" in found, "lokr_w2" in found
    parts = set(found) - {"lokr_t2"}
    expected = ({"lokr_w1"} if one else {"lokr_w1_a", "lokr_w1_b"}) | (
        {"lokr_w2"} if two else {"lokr_w2_a", "lokr_w2_b"}
    )
    if parts != expected or ("lokr_t2" in found and two):
        there = ", ".join(f"`{slot}`" for slot in sorted(found))
        source.refuse("E_PAIR", f"`{label}` has {there}, expected both sides of a LoKr, each whole or in two factors")
    ranks = set()
    if not one:
        ranks |= {found["lokr_w1_a"].shape[1], found["lokr_w1_b"].shape[0]}
    if not two:
        is_core = "lokr_t2" in found
        ranks |= {found["lokr_w2_a"].shape[0 if is_core else 1], found["lokr_w2_b"].shape[0]}
        if is_core and found["lokr_t2"].shape[:2] != (found["lokr_w2_b"].shape[0],) * 2:
            source.refuse("E_SHAPE", f"`{label}` has a core of shape {list(found['lokr_t2'].shape)}")
    if len(ranks) > 1:
        source.refuse("E_RANK", f"`{label}` has factors of ranks {sorted(ranks)}")
    if ranks:
        return ranks.pop()
    return max(1, math.ceil(max(found["lokr_w2"].shape[:2]) / 2))
