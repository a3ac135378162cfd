"""LoHa and LoKr of LyCORIS: the same formulas as PEFT's, if PEFT would choose the same layout of factors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.errors import shown
from adapterhub.core.limits import limits
from adapterhub.formats.foreign.reading import MATRIX, Cut, Method, Module, Source, lora_module
from adapterhub.formats.safetensors.dtypes import FACTOR_DTYPES
from adapterhub.formats.safetensors.header import TensorSpec

_METHODS: Final[Mapping[str, Method]] = MappingProxyType({"hada": "LOHA", "lokr": "LOKR"})
_LOHA: Final = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LARGEST_SIDE: Final = 1 << 20
_KERNEL: Final = 9


def method_of(source: Source, groups: Mapping[str, Iterable[str]]) -> Method:
    """The one method of all modules, by the ends of their tensors.

    Raises:
        MalformedTensorFile: E_UNSUPPORTED for a mixture.
    """
    kinds: dict[Method, str] = {}
    for name, slots in groups.items():
        here = {_METHODS.get(slot.partition("_")[0], "LORA") for slot in slots if slot not in ("alpha", "magnitude")}
        for kind in here or {"LORA"}:
            kinds.setdefault(kind, name)
    if len(kinds) > 1:
        which = ", ".join(f"{kind} on `{shown(name)}`" for kind, name in kinds.items())
        source.refuse("E_UNSUPPORTED", f"mixes methods: {which}", "a PEFT adapter has one method")
    return next(iter(kinds))


def module_of(
    source: Source,
    part: str,
    name: str,
    found: Mapping[str, TensorSpec],
    *,
    method: Method,
    alpha: float | None,
    label: str,
) -> Module:
    """One module of `method` from its tensors; arguments as for `lora_module`.

    Raises:
        MalformedTensorFile: E_PAIR, E_SHAPE, E_RANK, E_DTYPE, or E_UNSUPPORTED for what PEFT has no place for.
    """
    if method == "LORA":
        return lora_module(source, part, name, found, alpha=alpha, label=label)
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
    is_whole = dimension(slots) is None  # LyCORIS writes an alpha then, too, and no program reads it
    own = Module(part=part, name=name, slots=slots, rank=rank, alpha=None if is_whole else alpha, unused_alpha=alpha)
    weight, (out, numbers) = source.shape_of(part, name), _size(own)
    if weight is not None and (out, numbers) != (weight[0], math.prod(weight)):
        text = f"`{label}` updates {out} x {numbers // out} numbers, and the base has {list(weight)}"
        source.refuse("E_SHAPE", text)
    return own


def _size(module: Module) -> tuple[int, int]:
    """The outputs of the layer with this update, and the numbers of its weight."""
    slots = module.slots
    if "hada_w1_a" in slots:
        out = slots["hada_w1_a"].shape[1 if "hada_t1" in slots else 0]
        kernel = slots["hada_t1"].shape[MATRIX:] if "hada_t1" in slots else ()
    else:
        out = math.prod(_sides(module)[0])
        kernel = next((slots[slot].shape[MATRIX:] for slot in ("lokr_w2", "lokr_t2") if slot in slots), ())
    return out, out * width_of(module) * math.prod(kernel)


def dimension(slots: Mapping[str, Cut]) -> int | None:
    """The rank that LyCORIS divides alpha by; None for a LoKr with both sides whole, whose scale is 1."""
    found = next((slots[slot] for slot in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b") if slot in slots), None)
    return found.shape[0] if found is not None else None


def width_of(module: Module) -> int:
    """The inputs of a linear layer with this update."""
    slots = module.slots
    if "lora_A.weight" in slots:
        return slots["lora_A.weight"].shape[1]
    if "hada_w1_b" in slots:
        return slots["hada_w1_b"].shape[1]
    first, second = _sides(module)[1]
    return first * second


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


# ---------------------------------------------------------------- PEFT's settings
def settings_of(source: Source, method: Method, modules: Sequence[Module]) -> dict[str, Any]:
    """The settings with which PEFT makes factors of these shapes, because it chooses the shapes itself.

    Raises:
        MalformedTensorFile: E_UNSUPPORTED where no single setting gives the sides of every LoKr.
    """
    slots = {slot for module in modules for slot in module.slots}
    settings: dict[str, Any] = {"use_effective_conv2d": bool(slots & {"hada_t1", "lokr_t2"})}
    if method == "LOHA":
        return settings
    sides = {module.name: _sides(module) for module in modules}
    largest = max(first for both in sides.values() for first, _ in both)
    unfit = ""
    for factor in (-1, largest):
        unfit = next((name for name, both in sides.items() if not _fits(both, factor)), "")
        if not unfit:
            return settings | {"decompose_both": "lokr_w1_a" in slots, "decompose_factor": factor}
    text = f"the factors of `{shown(unfit)}` have sides that no `decompose_factor` gives every module"
    return source.refuse("E_UNSUPPORTED", text, "PEFT's LoKr has one for all modules")


def _sides(module: Module) -> tuple[tuple[int, int], tuple[int, int]]:
    """Outputs and inputs of a LoKr, each as the sides of its two factors."""
    shapes = {slot.removeprefix("lokr_"): cut.shape for slot, cut in module.slots.items()}
    one = shapes["w1"] if "w1" in shapes else (shapes["w1_a"][0], shapes["w1_b"][1])
    if "w2" in shapes:
        return (one[0], shapes["w2"][0]), (one[1], shapes["w2"][1])
    return (one[0], shapes["w2_a"][1 if "t2" in shapes else 0]), (one[1], shapes["w2_b"][1])


def _fits(sides: tuple[tuple[int, int], tuple[int, int]], factor: int) -> bool:
    (out, out_rest), (width, width_rest) = sides
    rests = [width_rest] + ([width_rest // _KERNEL] if width_rest % _KERNEL == 0 else [])  # a 3x3 in one matrix
    return _side(out * out_rest, factor) == out and any(_side(width * rest, factor) == width for rest in rests)


@cache
def _side(total: int, factor: int) -> int:
    """The first side of a number of outputs or inputs: `factor` if it divides it, else the largest below the root.

    -1 stands for any. 0 for what no layer has.
    """
    if total > _LARGEST_SIDE:
        return 0
    if factor > 0 and total % factor == 0:
        return factor
    most = math.isqrt(total) if factor < 0 else min(math.isqrt(total), factor)
    return next(side for side in range(most, 0, -1) if total % side == 0)
