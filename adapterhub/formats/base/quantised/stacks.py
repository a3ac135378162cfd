"""The experts of a source in a copy that keeps them under other names, apart, or stacked.

transformers 5 stacks the experts of a layer, and quantisers take them apart again or give them the names of today.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from adapterhub.formats.base.quantised.weight import Gathered, Numbers, Places, Ranges, Reader, Weight
from adapterhub.formats.base.stacking import LEAVES, TRANSPOSED, WOVEN

_NAME: Final = re.compile(
    r"(?:.*\.)?layers\.(?P<layer>\d+)\..*?experts\.(?:(?P<expert>\d+)\.)?(?P<leaf>\w+?)(?P<bias>[._]bias)?(?:\.weight)?"
)
_LEAVES: Final = {**LEAVES, "gate_up_proj": "gate_up"}
_PARTS: Final = {"gate_up": ("gate", "up"), "down": ("down",), "gate": ("gate",), "up": ("up",)}


class _ExpertPlace(NamedTuple):
    """A tensor of the experts of a layer: of one expert, or of all where `expert` is None."""

    layer: int
    leaf: str
    is_bias: bool
    expert: int | None

    @classmethod
    def of(cls, name: str) -> _ExpertPlace | None:
        found = _NAME.fullmatch(name)
        leaf = _LEAVES.get(found["leaf"]) if found else None
        if found is None or leaf is None:
            return None
        expert = None if found["expert"] is None else int(found["expert"])
        return cls(int(found["layer"]), leaf, found["bias"] is not None, expert)


def experts_for(
    shapes: Mapping[str, tuple[int, ...]], copy: Mapping[str, Weight], model_type: str
) -> dict[str, Weight]:
    """Return the weights of a copy for experts of a source, by the source's names; those without a place are left out.

    `shapes`: of the source. Stacks are [experts, out, in] or [experts, in, out], as their shapes say, and for square
    matrices `model_type`.
    """
    is_turned, is_woven = model_type in TRANSPOSED, model_type in WOVEN
    orders = ((is_turned, is_woven), (not is_turned, is_woven))
    here = {place: weight for name, weight in copy.items() if (place := _ExpertPlace.of(name)) is not None}
    found: dict[str, Weight] = {}
    for name, shape in shapes.items():
        place = _ExpertPlace.of(name)
        if place is None:
            continue
        if place in here:
            found[name] = here[place]
            continue
        made: list[Weight | None] = []
        if place.expert is None:
            made += [_stacked(name, shape, place, here, _order(shape, place.leaf, *one)) for one in orders]
        elif (stack := _stack_of(place, here)) is not None:
            leaf, whole = stack
            made += [_member(name, shape, place, whole, _order(whole.shape, leaf, *one)) for one in orders]
        fitting = [weight for weight in made if weight is not None and weight.may_have_shape(shape)]
        if fitting:
            found[name] = fitting[0]
    return found


def _stack_of(place: _ExpertPlace, here: Mapping[_ExpertPlace, Weight]) -> tuple[str, Weight] | None:
    for leaf in (place.leaf, "gate_up"):
        weight = here.get(place._replace(leaf=leaf, expert=None))
        if weight is not None and place.leaf in _PARTS[leaf]:
            return leaf, weight
    return None


class _Order(NamedTuple):
    """How a stack of a source holds one matrix [outputs, inputs] of each part of each expert; a bias has no inputs."""

    leaf: str
    outputs: int
    inputs: int
    is_turned: bool
    is_woven: bool

    @property
    def parts(self) -> int:
        """The matrices of one expert."""
        return len(_PARTS[self.leaf])

    @property
    def size(self) -> int:
        """Numbers of one expert."""
        return self.parts * self.outputs * self.inputs

    def split(self, at: Places) -> tuple[Places, Places, Places]:
        """Of places in a stack: the expert, the part, and the place in the part's own matrix."""
        expert, rest = np.divmod(at, self.size)
        if self.is_turned:
            column, output = np.divmod(rest, self.parts * self.outputs)
        else:
            output, column = np.divmod(rest, self.inputs)
        if self.is_woven:
            row, part = np.divmod(output, self.parts)
        else:
            part, row = np.divmod(output, self.outputs)
        return expert, part, row * self.inputs + column

    def joined(self, expert: int, part: int, at: Places) -> Places:
        """Of places in the matrix of one part: those in the stack."""
        row, column = np.divmod(at, self.inputs)
        output = row * self.parts + part if self.is_woven else part * self.outputs + row
        inner = column * self.parts * self.outputs + output if self.is_turned else output * self.inputs + column
        return expert * self.size + inner


def _order(shape: tuple[int, ...], leaf: str, *how: bool) -> _Order:
    """Return the order of a stack of that shape, turned or not and woven or not; biases are [experts, outputs]."""
    is_turned, is_woven = how
    parts, is_matrix = len(_PARTS[leaf]), len(shape) > 2
    outputs = shape[2 if is_matrix and is_turned else 1] // parts
    inputs = shape[1 if is_turned else 2] if is_matrix else 1
    return _Order(leaf, outputs, inputs, is_matrix and is_turned, is_woven and parts > 1)


def _stacked(
    name: str, shape: tuple[int, ...], place: _ExpertPlace, here: Mapping[_ExpertPlace, Weight], order: _Order
) -> Weight | None:
    """Return the stack of a source whose experts the copy keeps apart; None unless it has all of them."""
    leaves = _PARTS[place.leaf]
    members = [[here.get(place._replace(leaf=leaf, expert=n)) for leaf in leaves] for n in range(shape[0])]
    needed = (order.outputs, order.inputs) if len(shape) > 2 else (order.outputs,)
    whole = tuple(weight for one in members for weight in one if weight is not None and weight.shape == needed)
    if len(whole) < shape[0] * order.parts:
        return None
    return _ExpertStack(
        name=name,
        shape=shape,
        form=whole[0].form,
        parts=tuple(part for weight in whole for part in weight.parts),
        is_rounded=all(weight.is_rounded for weight in whole),
        order=order,
        members=whole,
    )


@dataclass(frozen=True, kw_only=True)
class _ExpertStack(Gathered):
    """All experts of a layer: `members` are their matrices, those of one expert side by side."""

    order: _Order
    members: tuple[Weight, ...] = field(repr=False)

    def inside(self, at: Places) -> Iterator[tuple[Places, Weight, Places]]:
        """Yield the matrices of single experts in which some of the places lie."""
        expert, part, places = self.order.split(at)
        which = expert * self.order.parts + part
        for number in np.unique(which).tolist():
            chosen = np.flatnonzero(which == number)
            yield chosen, self.members[number], places[chosen]


@dataclass(frozen=True, kw_only=True)
class _ExpertMember(Weight):
    """The matrix of one expert, which the copy keeps in a stack."""

    order: _Order
    expert: int
    number: int
    stack: Weight = field(repr=False)

    def may_have_shape(self, shape: tuple[int, ...]) -> bool:
        """Return whether the stack has matrices of this shape, and this expert."""
        own = (self.order.outputs, self.order.inputs)[: len(self.stack.shape) - 1]
        return shape == own and self.expert < self.stack.shape[0]

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """As the stack says."""
        return self.stack.ranges(reader, self.order.joined(self.expert, self.number, at))

    def steps(self, reader: Reader, at: Places) -> Numbers:
        """As the stack says."""
        return self.stack.steps(reader, self.order.joined(self.expert, self.number, at))


def _member(name: str, shape: tuple[int, ...], place: _ExpertPlace, stack: Weight, order: _Order) -> _ExpertMember:
    return _ExpertMember(
        name=name,
        shape=shape,
        form=stack.form,
        parts=stack.parts,
        is_rounded=stack.is_rounded,
        order=order,
        expert=place.expert or 0,
        number=_PARTS[order.leaf].index(place.leaf),
        stack=stack,
    )
