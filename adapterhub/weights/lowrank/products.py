"""AdaLoRA, LoHa and LoKr: methods whose update is a product of their tensors, and so a low-rank pair of a known rank.

Their files do not say whether a module is a linear layer or a convolution: PEFT multiplies the tensors out and gives
the result the shape of the weight. So an update is a pair on the flattened weight here, [out, everything else], and
goes back into a file of the same kind: PEFT's LoHa can hold any such pair, with a second product of ones.

LoHa is the Hadamard product of two low-rank matrices (Hyeon-Woo et al., FedPara, 2022), LoKr a Kronecker product, and
AdaLoRA B diag(E) A (Zhang et al., 2023).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from adapterhub.core.errors import RefusedAdapter, shown
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.layouts import PEFT_PREFIX, Kind, Layout
from adapterhub.formats.peft.pairs import Factors, Pairs
from adapterhub.formats.safetensors.dtypes import FACTOR_DTYPES
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.lowrank.algebra import MATRIX_NDIM, LowRank

Tensors = Mapping[str, Tensor]

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


def multiplied(tensors: Tensors, scale: float) -> LowRank:
    """The update of one module, by PEFT's names of its tensors; float64, of the smallest rank that the names tell."""
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    if "lora_E" in wide:
        return LowRank(a=wide["lora_A"] * wide["lora_E"], b=wide["lora_B"], scale=scale)
    if "hada_w1_a" in wide:
        (left, right), (other_left, other_right) = (_hadamard_side(wide, side) for side in "12")
        b = (left[:, :, None] * other_left[:, None, :]).flatten(1)
        a = (right[:, None, :] * other_right[None, :, :]).flatten(0, 1)
        return _reduced(a, b, scale)
    return _kronecker(wide, scale)


def _hadamard_side(tensors: Tensors, side: str) -> tuple[Tensor, Tensor]:
    """One of the two factors of LoHa as a pair [out, r], [r, width]."""
    left, right = tensors[f"hada_w{side}_a"], tensors[f"hada_w{side}_b"]
    core = tensors.get(f"hada_t{side}")
    if core is None:
        return left, right
    return left.T, torch.einsum("ijkl,jr->irkl", core, right).flatten(1)


def _kronecker(tensors: Tensors, scale: float) -> LowRank:
    first, second = tensors.get("lokr_w1"), tensors.get("lokr_w2")
    if second is not None and second.ndim not in (MATRIX_NDIM, MATRIX_NDIM + 2):
        # PEFT multiplies the kernel of a one-dimensional convolution in another order; its numbers count.
        whole = tensors["lokr_w1_a"] @ tensors["lokr_w1_b"] if first is None else first
        product = torch.kron(whole, second.contiguous())
        return _dense(product.reshape(whole.shape[0] * second.shape[0], -1), scale)
    outer = (tensors["lokr_w1_a"], tensors["lokr_w1_b"]) if first is None else _split(first)
    if second is not None:
        inner = _split(second.flatten(1))
    elif "lokr_t2" in tensors:
        right = torch.einsum("ijkl,jr->irkl", tensors["lokr_t2"], tensors["lokr_w2_b"]).flatten(1)
        inner = tensors["lokr_w2_a"].T, right
    else:
        inner = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
    # `contiguous` keeps the strides of one row or column turned around, which `kron` refuses on meta tensors
    b, a = (torch.kron(one, other.flatten().view(other.shape)) for one, other in zip(outer, inner, strict=True))
    return _reduced(a, b, scale)


def _split(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as a pair of its own smaller size, one of them the identity."""
    rows, columns = matrix.shape
    if rows <= columns:
        return torch.eye(rows, dtype=matrix.dtype, device=matrix.device), matrix
    return matrix, torch.eye(columns, dtype=matrix.dtype, device=matrix.device)


def _reduced(a: Tensor, b: Tensor, scale: float) -> LowRank:
    """The pair without directions of zeros, which a merge leaves; as the product itself where that is smaller."""
    if a.device.type != "meta":
        kept = a.any(1) & b.any(0)
        kept[0] |= not kept.any()  # a file needs a rank
        a, b = a[kept], b[:, kept]
    if a.shape[0] > min(b.shape[0], a.shape[1]):
        return _dense(b @ a, scale)
    return LowRank(a=a, b=b, scale=scale)


def _dense(matrix: Tensor, scale: float) -> LowRank:
    b, a = _split(matrix)
    return LowRank(a=a, b=b, scale=scale)


# ---------------------------------------------------------------- shapes, before any number is read
def _problem(own: Mapping[str, TensorSpec], config: AdapterConfig) -> tuple[str, str] | None:
    odd = next((spec.dtype for spec in own.values() if spec.dtype not in FACTOR_DTYPES), None)
    if odd is not None:
        return "E_DTYPE", f"is stored as {shown(odd)}, expected one of {', '.join(FACTOR_DTYPES)}"
    if frozenset(own) not in {frozenset(names) for names in _SETS[config.peft_type]}:
        return "E_PAIR", f"has the tensors {', '.join(sorted(own))}, which are no set that PEFT writes"
    try:
        multiplied({name: torch.empty(spec.shape, device="meta") for name, spec in own.items()}, 1.0)
    except (RuntimeError, ValueError, IndexError):
        shapes = ", ".join(f"{name} {list(spec.shape)}" for name, spec in sorted(own.items()))
        return "E_SHAPE", f"its tensors do not fit together: {shapes}"
    if any(0 in spec.shape for spec in own.values()):
        return "E_SHAPE", "expected no empty dimension"
    return None


def _factors(module: str, own: Mapping[str, TensorSpec], config: AdapterConfig) -> Factors:
    made = multiplied({name: torch.empty(spec.shape, device="meta") for name, spec in own.items()}, 1.0)
    first, second, *_ = (own[name] for name in sorted(own))
    scale = config.adalora_scaling(made.rank) if config.peft_type == "ADALORA" else config.scaling_of(module)
    out, width = made.shape
    kind: Kind = "adalora" if config.peft_type == "ADALORA" else "loha"
    layout = Layout(kind=kind, out=out, a_shape=(width,))
    return Factors(layout=layout, rank=made.rank, scale=scale, a=first, b=second, tensors=MappingProxyType(dict(own)))
