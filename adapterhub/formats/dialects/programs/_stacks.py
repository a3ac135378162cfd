"""Pairs on all experts of a layer, A [experts, r, in] and B [experts, out, r], as one pair for each expert.

A side that all experts share has 1 in place of their number, and the other side may be single experts already.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.formats.dialects.experts import MARKS, packed
from adapterhub.formats.dialects.form import Form, Made, numpy_for
from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.formats.peft.keys import PREFIX
from adapterhub.formats.peft.pairs import MATRIX_NDIM, NESTED
from adapterhub.formats.safetensors.header import FACTOR_DTYPES, TensorSpec

STACKED_NDIM: Final = 3
_FACTOR: Final = re.compile(
    r"(?:base_model\.model\.)?(?P<holder>.+\.experts)\.(?:(?P<expert>\d{1,6})\.)?(?P<leaf>\w+)"
    r"\.lora_(?P<side>[AB])\.weight",
    re.ASCII,
)
_MIXTRAL: Final = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def refuse(reason: str, hint: str = "", code: str = "E_UNSUPPORTED") -> NoReturn:
    """Raise for the file.

    Raises:
        MalformedTensorFile: always.
    """
    raise MalformedTensorFile(WEIGHTS_FILE, reason, code=code, hint=hint)


def base_leaf(holder: str, leaf: str) -> str:
    """Return the base's own names of an expert's layers: Mixtral and models like it have `w1`, `w2` and `w3`."""
    return _MIXTRAL.get(leaf, leaf) if holder.endswith(".block_sparse_moe.experts") else leaf


@dataclass(slots=True)
class Stack:
    """The factors of one layer of all experts of a module; `single` are those that have a tensor of their own."""

    holder: str
    leaf: str
    sides: dict[str, TensorSpec] = field(default_factory=dict)
    single: dict[str, dict[int, TensorSpec]] = field(default_factory=lambda: {"A": {}, "B": {}})

    @property
    def label(self) -> str:
        """Its name, for errors."""
        return shown(f"{self.holder}.{self.leaf}")

    def of_expert(self, side: str, expert: int) -> TensorSpec:
        """Return the matrix of one expert."""
        if side not in self.sides:
            return self.single[side][expert]
        spec = self.sides[side]
        at = 0 if spec.shape[0] == 1 else expert
        size = spec.size_bytes // spec.shape[0]
        return TensorSpec(spec.name, spec.dtype, spec.shape[1:], spec.start + at * size, spec.start + (at + 1) * size)

    def pair(self, expert: int) -> tuple[TensorSpec, TensorSpec]:
        """Return a and B of one expert.

        Raises:
            MalformedTensorFile: E_SHAPE or E_RANK.
        """
        a, b = self.of_expert("A", expert), self.of_expert("B", expert)
        if len(a.shape) != MATRIX_NDIM or len(b.shape) != MATRIX_NDIM or not all((*a.shape, *b.shape)):
            shapes = f"{list(a.shape)} and {list(b.shape)}"
            refuse(f"`{self.label}` has factors of shapes {shapes}, expected [r, in] and [out, r]", code="E_SHAPE")
        if a.shape[0] != b.shape[1]:
            refuse(f"`{self.label}` has factors of ranks {a.shape[0]} and {b.shape[1]}", code="E_RANK")
        if a.dtype not in FACTOR_DTYPES or b.dtype not in FACTOR_DTYPES:
            refuse(f"`{self.label}` is {a.dtype} and {b.dtype}, expected {', '.join(FACTOR_DTYPES)}", code="E_DTYPE")
        return a, b

    def parameter(self) -> Parameter:
        """Return the stack as one pair on a stacked parameter.

        Raises:
            MalformedTensorFile: E_PAIR, E_SHAPE or E_RANK.
        """
        pairs = [self.pair(expert) for expert in range(self.experts)]
        if len({(a.shape, b.shape, a.dtype, b.dtype) for a, b in pairs}) > 1:
            refuse(f"`{self.label}` has factors of several shapes", code="E_SHAPE")
        return Parameter(
            holder=self.holder,
            leaf=self.leaf,
            experts=len(pairs),
            rank=pairs[0][0].shape[0],
            a=tuple(a for a, _ in pairs),
            b=tuple(b for _, b in pairs),
        )

    @property
    def experts(self) -> int:
        """The number of experts, which every side that is not shared tells.

        Raises:
            MalformedTensorFile: E_PAIR or E_SHAPE.
        """
        counts = {spec.shape[0] for spec in self.sides.values()}
        for side in ("A", "B"):
            single = self.single[side]
            if (side in self.sides) == bool(single):
                refuse(f"`{self.label}` has {'two factors' if single else 'no factor'} `lora_{side}`", code="E_PAIR")
            if single and sorted(single) != list(range(len(single))):
                refuse(f"`{self.label}` lacks `lora_{side}` of some experts", code="E_PAIR")
            counts |= {len(single)} if single else set()
        told = counts - {1} or {1}
        if len(told) > 1:
            refuse(f"`{self.label}` is for {' and for '.join(map(str, sorted(told)))} experts", code="E_SHAPE")
        if told == {1} and len(self.sides) == len(counts | {0}):
            refuse(f"`{self.label}`: all experts share both factors, so their number is unknown", code="E_SHAPE")
        return told.pop()


def stacks_in(form: Form, leaves: Iterable[str]) -> dict[tuple[str, str], Stack]:
    """Return the stacks of the file by holder and layer, for layers of those names."""
    known = frozenset(leaves)
    found: dict[tuple[str, str], Stack] = {}
    matches = [(spec, match) for spec in form.weights.tensors if (match := _FACTOR.fullmatch(spec.name))]
    for spec, match in matches:
        if len(spec.shape) == STACKED_NDIM and not match["expert"] and match["leaf"] in known:
            key = match["holder"], match["leaf"]
            found.setdefault(key, Stack(*key)).sides[match["side"]] = spec
    for spec, match in matches:
        if match["expert"] and (stack := found.get((match["holder"], match["leaf"]))) is not None:
            stack.single[match["side"]][int(match["expert"])] = spec
    return found


def _ensure_one_number(stacks: Iterable[Stack]) -> None:
    """Raise unless all layers of a module are for the same number of experts."""
    counts: dict[str, int] = {}
    for stack in stacks:
        known = counts.setdefault(stack.holder, stack.experts)
        if known != stack.experts:
            refuse(f"`{shown(stack.holder)}` has layers for {known} and for {stack.experts} experts", code="E_SHAPE")


def spread(form: Form, stacks: Iterable[Stack], names: Mapping[str, str], **renamed: str) -> Form:
    """Return the form with one pair for each expert; `names` gives the layer's name for each of the file's.

    `renamed` are other modules, by the last part of their name.

    Raises:
        MalformedTensorFile: E_PAIR, E_SHAPE or E_RANK.
    """
    made: list[Made] = []
    taken: set[str] = set()
    stacks = tuple(stacks)
    _ensure_one_number(stacks)
    for stack in stacks:
        leaf = base_leaf(stack.holder, names[stack.leaf])
        for expert in range(stack.experts):
            a, b = stack.pair(expert)
            name = f"{PREFIX}{stack.holder}.{expert}.{leaf}"
            made += [Made.of(a, f"{name}.lora_A.weight"), Made.of(b, f"{name}.lora_B.weight")]
        taken |= {spec.name for spec in stack.sides.values()}
        taken |= {spec.name for side in stack.single.values() for spec in side.values()}
    for spec in form.weights.tensors:
        if spec.name not in taken:
            made.append(Made.of(spec, _renamed(spec.name, renamed)))
    return form.remade(made, target_modules=_targets(made))


def fused(form: Form, parameters: Iterable[Parameter]) -> Form:
    """Return the form with one pair on each stacked parameter, as PEFT has `target_parameters`."""
    parameters = tuple(parameters)
    if len({(one.holder, one.experts) for one in parameters}) > len({one.holder for one in parameters}):
        refuse("its parameters of one layer are for several numbers of experts", code="E_SHAPE")
    taken = {spec.name for one in parameters for spec in (*one.a, *one.b)}
    kept = [Made.of(spec) for spec in form.weights.tensors if spec.name not in taken]
    holders: dict[str, list[Parameter]] = {}
    for one in parameters:
        holders.setdefault(one.holder, []).append(one)
    made = list(kept)
    for holder, found in holders.items():
        for depth, one in enumerate(sorted(found, key=lambda one: one.leaf)):  # PEFT wraps in the order of names
            made += one.tensors(f"{PREFIX}{holder}" + f".{NESTED}" * depth)
    named = [f"{one.holder}.{one.leaf}" for one in parameters]
    return form.remade(made, target_modules=_targets(kept), target_parameters=sorted(named), **MARKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """The pair of one stacked parameter; `a` and `b` are a matrix for each expert, or one tensor for all.

    `is_turned`: the matrices are [in, r] and [r, out].
    """

    holder: str
    leaf: str
    experts: int
    rank: int
    a: tuple[TensorSpec, ...]
    b: tuple[TensorSpec, ...]
    is_turned: bool = False

    def tensors(self, name: str) -> Iterable[Made]:
        """Yield a and B as PEFT has them."""
        a, b = self.a[0].shape, self.b[0].shape
        width, out = (a[-2], b[-1]) if self.is_turned else (a[-1], b[-2])
        rows = self.experts * self.rank
        yield Made(
            name=f"{name}.lora_A.weight",
            shape=(rows, width),
            sources=self.a,
            make=lambda arrays: self._stacked(arrays).reshape(rows, width),
        )
        yield Made(
            name=f"{name}.lora_B.weight",
            shape=(out, rows),
            sources=self.b,
            make=lambda arrays: packed(self._stacked(arrays)),
        )

    def _stacked(self, arrays: Sequence[Any]) -> Any:
        array = numpy_for("").stack(arrays) if arrays[0].ndim == MATRIX_NDIM else arrays[0]
        return array.swapaxes(1, 2) if self.is_turned else array


def _renamed(name: str, renamed: Mapping[str, str]) -> str:
    for old, new in renamed.items():
        name = re.sub(rf"^base_model\.model\.(?:.+\.)?{re.escape(old)}\.", f"{PREFIX}{new}.", name)
    return name


def _targets(made: Iterable[Made]) -> list[str]:
    """Return the last part of the name of every module with a pair."""
    return sorted({one.name.rsplit(".", 3)[-3] for one in made if one.name.endswith(".lora_A.weight")})
