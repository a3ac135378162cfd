"""AdaLoRA, LoHa and LoKr: methods whose update is a product of their tensors, and so a low-rank pair of a known rank.

Their files do not say whether a module is a linear layer or a convolution: PEFT multiplies the tensors out and gives
the result the shape of the weight. So an update is a pair on the flattened weight here, [out, everything else], and
goes back into a file of the same kind: PEFT's LoHa can hold any such pair, with a second product of ones.

LoHa is the Hadamard product of two low-rank matrices (Hyeon-Woo et al., FedPara, 2022), LoKr a Kronecker product, and
AdaLoRA B diag(E) A (Zhang et al., 2023). The arithmetic is that of torch or of numpy, as `xp` says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from adapterhub.core.errors import RefusedAdapter, shown
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.layouts import PEFT_PREFIX, Kind, Layout
from adapterhub.formats.peft.pairs import MATRIX_NDIM, Factors, Pairs
from adapterhub.formats.safetensors.dtypes import FACTOR_DTYPES
from adapterhub.formats.safetensors.header import TensorSpec

Array: TypeAlias = Any
"""An array of torch or of numpy."""
Arrays: TypeAlias = Mapping[str, Array]
Sizes: TypeAlias = Mapping[str, tuple[int, ...]]

_SETS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = MappingProxyType(
    {
        "ADALORA": (("lora_A", "lora_B", "lora_E"),),
        "LOHA": (
            ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
            ("hada_t1", "hada_t2", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        ),
        "LOKR": tuple(
            (*first, *second)
            for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
            for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_t2", "lokr_w2_a", "lokr_w2_b"))
        ),
    }
)
"""The tensors of one module, by method: each set that PEFT writes."""

PRODUCTS: Final = frozenset(_SETS)
"""The methods that this module reads."""
_KERNEL_NDIM: Final = 4
_KRONECKER_NDIMS: Final = (MATRIX_NDIM, _KERNEL_NDIM)


def pair_up_products(specs: Iterable[TensorSpec], config: AdapterConfig, folder: Path) -> Pairs:
    """The updates among the tensors `specs` of an AdaLoRA, LoHa or LoKr adapter; raises as `pairs.pair_up`."""
    pattern = re.compile(rf"{re.escape(PEFT_PREFIX)}(.+)\.({'|'.join(config.method.factors)})")
    tensors: dict[str, dict[str, TensorSpec]] = {}
    others = []
    for spec in specs:
        match = pattern.fullmatch(spec.name)
        if match is None:
            others.append(spec)
        else:
            tensors.setdefault(match[1], {})[match[2]] = spec
    modules: dict[str, Factors] = {}
    findings: list[tuple[str, str]] = []
    for module, own in sorted(tensors.items()):
        problem = _problem(own, config)
        if problem:
            findings.append((problem[0], f"`{shown(module)}`: {problem[1]}"))
        else:
            modules[module] = _factors(module, own, config)
    if findings:
        raise RefusedAdapter(f"`{shown(str(folder), 200)}` has factors that do not fit together", findings)
    return Pairs(MappingProxyType(modules), tuple(others), MappingProxyType({}))


def multiplied(xp: Any, tensors: Arrays) -> tuple[Array, Array]:  # noqa: ANN401 - torch or numpy
    """A [r, width] and B [out, r] of one module, by PEFT's names of its tensors, which are float64.

    Their product is the update without its scale. The rank is the smallest that the shapes tell, or lower where a merge
    left directions of zeros.
    """
    if "lora_E" in tensors:
        return tensors["lora_A"] * tensors["lora_E"], tensors["lora_B"]
    if "hada_w1_a" in tensors:
        (right, left), (other_right, other_left) = (_kept(*_hadamard_side(xp, tensors, side)) for side in "12")
        out, width = left.shape[0], right.shape[1]
        if left.shape[1] * other_left.shape[1] > min(out, width):
            return _split(xp, (left @ right) * (other_left @ other_right))
        b = (left[:, :, None] * other_left[:, None, :]).reshape(out, -1)
        return (right[:, None, :] * other_right[None, :, :]).reshape(-1, width), b
    sides = kronecker_sides(xp, tensors)
    if sides is None:
        whole = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
        second = tensors["lokr_w2"]
        return _split(xp, xp.kron(whole, second).reshape(whole.shape[0] * second.shape[0], -1))
    (outer_a, outer_b), (inner_a, inner_b) = sides
    rank, full = (
        outer_a.shape[0] * inner_a.shape[0],
        (outer_b.shape[0] * inner_b.shape[0], outer_a.shape[1] * inner_a.shape[1]),
    )
    if rank > min(full):
        return _split(xp, xp.kron(outer_b @ outer_a, inner_b @ inner_a))
    return xp.kron(outer_a, inner_a), xp.kron(outer_b, inner_b)


def kronecker_sides(xp: Any, tensors: Arrays) -> tuple[tuple[Array, Array], tuple[Array, Array]] | None:  # noqa: ANN401 - torch or numpy
    """A and B of each of the two matrices whose Kronecker product is the update of a LoKr module, as in `multiplied`.

    None where it is not that of two matrices: PEFT orders the kernel of a one-dimensional convolution otherwise.
    """
    parts: list[Array] = [tensors.get(f"lokr_{name}") for name in ("w1", "w2", "t2")]
    first, second, core = parts
    if second is not None and second.ndim not in _KRONECKER_NDIMS:
        return None
    outer = (tensors["lokr_w1_b"], tensors["lokr_w1_a"]) if first is None else _split(xp, first)
    if second is not None:
        inner = _split(xp, second.reshape(second.shape[0], -1))
    elif core is not None:
        inner = _with_core(xp, core, tensors["lokr_w2_b"]), tensors["lokr_w2_a"].T
    else:
        inner = tensors["lokr_w2_b"], tensors["lokr_w2_a"]
    return _kept(*outer), _kept(*inner)


def _hadamard_side(xp: Any, tensors: Arrays, side: str) -> tuple[Array, Array]:  # noqa: ANN401 - torch or numpy
    """One of the two factors of LoHa as a pair [r, width], [out, r]."""
    left, right = tensors[f"hada_w{side}_a"], tensors[f"hada_w{side}_b"]
    core = tensors.get(f"hada_t{side}")
    return (right, left) if core is None else (_with_core(xp, core, right), left.T)


def _with_core(xp: Any, core: Array, right: Array) -> Array:  # noqa: ANN401 - torch or numpy
    made = xp.einsum("ijkl,jr->irkl", core, right)
    return made.reshape(made.shape[0], -1)


def _split(xp: Any, matrix: Array) -> tuple[Array, Array]:  # noqa: ANN401 - torch or numpy
    """A matrix as a pair of its own smaller size, one of them the identity."""
    rows, columns = matrix.shape
    one = xp.eye(min(rows, columns), dtype=matrix.dtype)
    return (matrix, one) if rows <= columns else (one, matrix)


def _kept(a: Array, b: Array) -> tuple[Array, Array]:
    """The pair without directions of zeros, which a merge leaves."""
    kept = a.any(1) & b.any(0)
    kept[0] |= not kept.any()  # a file needs a rank
    return a[kept], b[:, kept]


# ---------------------------------------------------------------- shapes, before any number is read
def _problem(own: Mapping[str, TensorSpec], config: AdapterConfig) -> tuple[str, str] | None:
    odd = next((spec.dtype for spec in own.values() if spec.dtype not in FACTOR_DTYPES), None)
    if odd is not None:
        return "E_DTYPE", f"is stored as {shown(odd)}, expected one of {', '.join(FACTOR_DTYPES)}"
    if frozenset(own) not in {frozenset(names) for names in _SETS[config.peft_type]}:
        return "E_PAIR", f"has the tensors {', '.join(sorted(own))}, which are no set that PEFT writes"
    try:
        _size({name: spec.shape for name, spec in own.items()})
    except ValueError:
        shapes = ", ".join(f"{name} {list(spec.shape)}" for name, spec in sorted(own.items()))
        return "E_SHAPE", f"its tensors do not fit together: {shapes}"
    if any(0 in spec.shape for spec in own.values()):
        return "E_SHAPE", "expected no empty dimension"
    return None


def _factors(module: str, own: Mapping[str, TensorSpec], config: AdapterConfig) -> Factors:
    out, width, rank = _size({name: spec.shape for name, spec in own.items()})
    first, second, *_ = (own[name] for name in sorted(own))
    scale = config.adalora_scaling(rank) if config.peft_type == "ADALORA" else config.scaling_of(module)
    kind: Kind = "adalora" if config.peft_type == "ADALORA" else "loha"
    layout = Layout(kind=kind, out=out, a_shape=(width,))
    return Factors(layout=layout, rank=rank, scale=scale, a=first, b=second, tensors=MappingProxyType(dict(own)))


def _size(shapes: Sizes) -> tuple[int, int, int]:
    """Outputs, width and rank of what `multiplied` makes of tensors of these shapes.

    Raises:
        ValueError: they do not fit together.
    """
    if "lora_E" in shapes:
        (rank, width), (out, columns) = shapes["lora_A"], shapes["lora_B"]
        _ensure(columns == rank and shapes["lora_E"] == (rank, 1))
        return out, width, rank
    if "hada_w1_a" in shapes:
        (out, width, rank), other = (
            _pair_size(shapes[f"hada_w{side}_a"], shapes[f"hada_w{side}_b"], shapes.get(f"hada_t{side}"))
            for side in "12"
        )
        _ensure((out, width) == other[:2])
        return out, width, min(out, width, rank * other[2])
    sides = kronecker_sizes(shapes)
    (out, width, rank), (inner_out, inner_width, inner_rank) = sides or (_lokr_size(shapes, side) for side in "12")
    full = min(out * inner_out, width * inner_width)
    return out * inner_out, width * inner_width, min(full, rank * inner_rank) if sides else full


def kronecker_sizes(shapes: Sizes) -> tuple[tuple[int, int, int], ...]:
    """Outputs, width and rank of each of `kronecker_sides`; empty where there are none.

    Raises:
        ValueError: the tensors do not fit together.
    """
    is_lokr = any(name.startswith("lokr_") for name in shapes)
    if not is_lokr or len(shapes.get("lokr_w2", (0, 0))) not in _KRONECKER_NDIMS:
        return ()
    return tuple(_lokr_size(shapes, side) for side in "12")


def _lokr_size(shapes: Sizes, side: str) -> tuple[int, int, int]:
    whole = shapes.get(f"lokr_w{side}")
    if whole is None:
        return _pair_size(shapes[f"lokr_w{side}_a"], shapes[f"lokr_w{side}_b"], shapes.get(f"lokr_t{side}"))
    _ensure(len(whole) == MATRIX_NDIM if side == "1" else MATRIX_NDIM <= len(whole) <= _KERNEL_NDIM + 1)
    out, width = whole[0], math.prod(whole[1:])
    return out, width, min(out, width)


def _pair_size(left: tuple[int, ...], right: tuple[int, ...], core: tuple[int, ...] | None) -> tuple[int, int, int]:
    """Outputs, width and rank of a pair; with a core, `left` is turned around."""
    (out, rank), (rows, width) = left[::-1] if core is not None else left, right
    if core is None:
        _ensure(rank == rows)
        return out, width, rank
    first, second, *kernel = core
    _ensure(len(core) == _KERNEL_NDIM and (first, second) == (rank, rows))
    return out, width * math.prod(kernel), rank


def _ensure(fits: bool) -> None:  # noqa: FBT001 - the condition itself
    if not fits:
        raise ValueError("the tensors do not fit together")
