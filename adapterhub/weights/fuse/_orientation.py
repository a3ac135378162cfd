"""Whether a base stores the weight of a pair of factors as [out, in], like PEFT's update, or transposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Final, NamedTuple

from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.layouts import Layout
from adapterhub.formats.peft.pairs import Factors
from adapterhub.weights.lowrank.algebra import MATRIX_NDIM

_CONV1D_MODELS: Final = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"})
_CONV1D: Final = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
"""Modules of these models that are transformers' Conv1D, a linear layer stored as [in, out]."""

_MOST_NESTED: Final = 4


class Unclear(Exception):
    """A pair has no place in this weight; the text ends a sentence that starts with the module."""


class OtherShape(Unclear):
    """A pair was made for a weight of another shape."""


def is_turned(module: str, layout: Layout, shape: tuple[int, ...], config: AdapterConfig, model_type: str) -> bool:
    """Whether a weight of that shape holds the transpose of `B @ A`: an embedding, or a Conv1D as GPT-2 has them.

    Raises:
        OtherShape: the pair was made for another weight.
        Unclear: the weight is square, so that both fit; or a grouped convolution.
    """
    straight = (layout.out, *layout.a_shape)
    if layout.kind == "conv":
        if layout.parts > 1:
            raise Unclear(
                f"is a convolution in {layout.parts} groups: PEFT's update covers every input channel, but each group "
                "of the base's weight only its own channels"
            )
        if shape != straight:
            raise OtherShape(_differs(straight, shape))
        return False
    turned = straight[::-1]
    if layout.kind == "embedding":
        if shape != turned:
            raise OtherShape(_differs(turned, shape))
        return True
    may_be_turned = config.fan_in_fan_out or module.rpartition(".")[2] in _CONV1D
    if shape != straight:
        if shape == turned and may_be_turned:
            return True
        raise OtherShape(_differs(straight, shape))
    if shape != turned or not may_be_turned:
        return False
    if model_type in _CONV1D_MODELS:
        return module.rpartition(".")[2] in _CONV1D
    if model_type and not config.fan_in_fan_out:
        return False
    raise Unclear("is square, and neither config says whether this base stores it as [out, in] or as [in, out]")


class Placed(NamedTuple):
    """The place of a pair: the parameter of the base, and whether each of its matrices is transposed."""

    parameter: str
    is_turned: bool


def place_on_parameters(
    pairs: Mapping[str, Factors], shapes: Mapping[str, tuple[int, ...]], config: AdapterConfig
) -> dict[str, Placed]:
    """The parameter of each pair that PEFT nested on one module (`target_parameters`), by the pair's name.

    `shapes` are those of the parameters. PEFT names the pairs by their depth, in the order in which the module defines
    its parameters; the files do not contain that order. So this tries every assignment, and exactly one must fit. A
    three-dimensional parameter is [experts, out, in], or [experts, in, out] in all parameters of the module.

    Raises:
        Unclear: no assignment fits, or several do.
    """
    if len(pairs) != len(shapes) or len(pairs) > _MOST_NESTED:
        raise Unclear(f"has {len(pairs)} pairs for {len(shapes)} parameters of the base")
    fitting: set[tuple[Placed, ...]] = set()
    for names in permutations(shapes):
        for turned in (False, True):
            placed = [Placed(name, turned and len(shapes[name]) > MATRIX_NDIM) for name in names]
            if all(_fits(f, w, shapes[w.parameter], config) for f, w in zip(pairs.values(), placed, strict=True)):
                fitting.add(tuple(placed))
    if not fitting:
        listed = ", ".join(f"{name.rpartition('.')[2]} {list(shape)}" for name, shape in shapes.items())
        raise Unclear(f"fits no parameter of the base ({listed})")
    if len(fitting) > 1:
        raise Unclear("fits the base's parameters in more than one way, and the files do not say which one applies")
    return dict(zip(pairs, fitting.pop(), strict=True))


def _fits(factors: Factors, placed: Placed, shape: tuple[int, ...], config: AdapterConfig) -> bool:
    layout = factors.layout
    matrix = (layout.width, layout.out) if placed.is_turned else (layout.out, layout.width)
    expected = matrix if len(shape) == MATRIX_NDIM else (layout.parts, *matrix)
    settings = config.rank_of(placed.parameter), config.scaling_of(placed.parameter)
    is_single = layout.parts == 1 or len(shape) > MATRIX_NDIM
    return shape == expected and is_single and (factors.rank, factors.scale) == settings


def _differs(expected: Sequence[int], shape: Sequence[int]) -> str:
    return f"was made for a weight of shape {list(expected)}; the base has {list(shape)}"
