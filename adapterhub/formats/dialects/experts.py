"""The layouts of a LoRA on stacked experts, `target_parameters` of PEFT: which of the four a file has, and PEFT's own.

A parameter [experts, first, second] has one pair per expert. Files hold A [experts * r, x] expert by expert and
B [y, r * experts]. Two facts are in no shape:

- Which side A is on. PEFT 0.19 and later put A on the inputs of the layer (`second`, or `first` where the layer keeps
  its weights transposed); PEFT 0.17 and 0.18 put it on `first` always (peft#3165).
- How B is packed. PEFT counts experts first, so the columns of one expert are `experts` apart; Unsloth before
  2026-09-17 stored them side by side (unsloth-zoo#1232 and #1269, which record `lora_B_layout` since).

Evidence, in this order: the writer's mark, the shapes of the base, the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from adapterhub.core.errors import RefusedAdapter, UsageProblem, shown
from adapterhub.formats.base.stacking import TRANSPOSED
from adapterhub.formats.dialects.form import Form, Made, numpy_for
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.pairs import MATRIX_NDIM, pair_up
from adapterhub.formats.safetensors.header import TensorSpec

_STACKED: Final = 3
_A_ON_INPUTS: Final = (0, 19)
_LAYOUTS: Final = MappingProxyType({"rank_major": False, "grouped_by_expert": True})
"""What Unsloth's `lora_B_layout` says: whether the columns of one expert are side by side."""
_CERTAIN: Final = 4.0
"""The standard deviations by which numbers decide between two packings."""
_LEANING: Final = 2.5
"""The difference from which an adapter with the version of PEFT may still be Unsloth's, which has that version too."""
_TRAINED: Final = 1.4
"""The mean squared cosine of two columns, in that of random directions, from which numbers are trained."""
_BEYOND_DOUBT: Final = 20.0
"""The difference from which no further module is looked at."""
_SHUFFLES: Final = 24

MARKS: Final = MappingProxyType({"peft_version": "0.21.2", "lora_B_layout": "rank_major"})
"""What the config of an adapter on stacked experts has in the inner form, so that no reader has to guess."""

NAMED: Final = ("it was named",)
"""The evidence of a dialect that the user or a manifest gives."""


class Stack(NamedTuple):
    """A stacked parameter of the base: its shape [experts, first, second], and whether inputs are `first`, if known."""

    shape: tuple[int, ...]
    is_transposed: bool | None = None


Stacks = Callable[[str], Sequence[Stack]]
"""The parameters of the base that an adapter's pair may be on, by the pair's module; empty where none is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way to lay out the pairs: A on the first dimension of the base's parameter, and B expert by expert."""

    is_turned: bool = False
    is_grouped: bool = False

    @property
    def name(self) -> str:
        """The dialect, as `--dialect` takes it."""
        return ("unsloth" if self.is_grouped else "peft") + ("@0.18" if self.is_turned else "")

    def __str__(self) -> str:
        side = "A on the first side of the experts (PEFT 0.18)" if self.is_turned else "A on the inputs (PEFT 0.19)"
        packed = "B expert by expert (Unsloth)" if self.is_grouped else "B rank by rank (PEFT)"
        return f"{side}, {packed}"


LAYOUTS: Final = tuple(Layout(is_turned=t, is_grouped=g) for t, g in product((False, True), repeat=2))
"""Every layout; the first is that of PEFT today, the inner form."""


Packing = tuple[tuple[bool, ...], str]
"""Whether B may be packed expert by expert, and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The layout of a file with the reasons for it; several where the file leaves them open.

    `packing` is the part of it that follows from the file; None if the dialect was named.
    """

    layouts: tuple[Layout, ...]
    evidence: tuple[str, ...] = ()
    packing: Packing | None = None

    @property
    def layout(self) -> Layout | None:
        """The one layout; None if several remain."""
        return self.layouts[0] if len(self.layouts) == 1 else None


class ExpertPair(NamedTuple):
    """One pair on stacked experts, with the rank and the number of experts that its shapes and the config give."""

    module: str
    a: TensorSpec
    b: TensorSpec
    rank: int
    experts: int


def expert_pairs(form: Form) -> list[ExpertPair]:
    """Return the pairs on stacked experts; none if the factors do not fit each other, which `verify` reports."""
    if not form.config.target_parameters:
        return []
    try:
        found = pair_up(form.weights.tensors, form.config, form.weights.path.parent).modules
    except RefusedAdapter:
        return []
    return [
        ExpertPair(module=module, a=one.a, b=one.b, rank=one.rank, experts=one.layout.parts)
        for module, one in found.items()
        if one.layout.kind == "experts"
    ]


def judge(
    form: Form, pairs: Sequence[ExpertPair], stacks: Stacks, *, named: str = "", packing: Packing | None = None
) -> Verdict:
    """Return the layout of the file's expert pairs; `named` is the dialect that the user or a manifest gives.

    `packing` is that of an earlier verdict on the file, which no base changes; without it, the numbers may be read.

    Raises:
        UsageProblem: `named` is not a dialect of expert pairs.
    """
    if named:
        chosen = [one for one in LAYOUTS if one.name == named]
        if not chosen:
            names = ", ".join(one.name for one in LAYOUTS)
            raise UsageProblem(f"`{shown(named)}` is not a dialect of LoRA on stacked experts, expected one of {names}")
        return Verdict(layouts=tuple(chosen), evidence=NAMED)
    turned, why_side = _side(form, pairs, stacks)
    packing = packing or _packing(form, pairs)
    grouped, why_packing = packing
    layouts = tuple(Layout(is_turned=t, is_grouped=g) for t, g in product(turned, grouped))
    return Verdict(layouts=layouts, evidence=tuple(filter(None, (why_side, why_packing))), packing=packing)


_EXPERT: Final = re.compile(r".+\.experts\.(\d{1,6})\.(\w+)\.weight", re.ASCII)
_JOINED: Final = MappingProxyType(
    {"gate_proj": ("gate_up_proj", 2), "w1": ("gate_up_proj", 2), "down_proj": ("down_proj", 1), "w2": ("down_proj", 1)}
)
"""The parameter that the layer of one expert becomes part of in memory, and how many layers are joined in it."""


def stacks_among(
    config: AdapterConfig, tensors: Iterable[tuple[str, tuple[int, ...]]], model_type: str | None = None
) -> Stacks:
    """Return the stacked parameters among the tensors of a base, by the ends of their names, which all layers share."""
    is_transposed = model_type in TRANSPOSED if model_type else None
    ends: dict[str, Stack] = {}
    for name, shape in tensors:
        found = _EXPERT.fullmatch(name)
        if len(shape) == _STACKED:
            ends[_end(name)] = Stack(shape, is_transposed)
        elif found is not None and found[2] in _JOINED and len(shape) == MATRIX_NDIM:
            joined, count = _JOINED[found[2]]
            before = ends.get(f"experts.{joined}")
            experts = max(int(found[1]) + 1, before.shape[0] if before else 0)
            ends[f"experts.{joined}"] = Stack((experts, shape[0] * count, shape[1]), is_transposed=False)

    def stacks(module: str) -> list[Stack]:
        return [ends[end] for name in config.parameters_of(module) if (end := _end(name)) in ends]

    return stacks


def _end(name: str) -> str:
    return ".".join(name.rsplit(".", 2)[-2:])


# ---------------------------------------------------------------- the side of A
def _side(form: Form, pairs: Sequence[ExpertPair], stacks: Stacks) -> tuple[tuple[bool, ...], str]:
    """Return whether A may be on the first side of parameters that are not transposed, and the reason."""
    pairs = [one for one in pairs if one.experts > 1]
    if not pairs:
        return (False,), ""  # a matrix, which every version reads alike
    known = [(one, found) for one in pairs if (found := stacks(one.module))]
    every = [stack for _, found in known for stack in found]
    if every and all(stack.is_transposed for stack in every):
        return (False,), ""  # both sides are the same there
    is_plain = bool(every) and not any(stack.is_transposed is None for stack in every)
    fitting = {False, True}
    for one, found in known if is_plain else ():
        sizes = (one.a.shape[1], one.b.shape[0])
        fitting &= {turned for turned in (False, True) for stack in found if _fits(stack, sizes, is_turned=turned)}
    if len(fitting) == 1:
        return tuple(fitting), "only one side of A fits the shapes of the base"
    written = str(form.config.extra.get("peft_version") or "")
    version = _version(written)
    if version is not None and (is_plain or version >= _A_ON_INPUTS):
        return (version < _A_ON_INPUTS,), f"its config names PEFT {shown(written, 20)}"
    return (False, True), ""


def _fits(stack: Stack, sizes: tuple[int, int], *, is_turned: bool) -> bool:
    first, second = stack.shape[1:]
    return sizes == ((first, second) if is_turned or stack.is_transposed else (second, first))


def fits(one: ExpertPair, stack: Stack) -> bool:
    """Return whether the pair, in the inner form, has the size of the parameter."""
    sides = (False, True) if stack.is_transposed is None else (False,)
    sizes = (one.a.shape[1], one.b.shape[0])
    return stack.shape[0] == one.experts and any(_fits(stack, sizes, is_turned=turned) for turned in sides)


def _version(text: str) -> tuple[int, int] | None:
    """Major and minor version; None for none, and for those between releases, which may be either."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})\.(?:\d+)(?![\w.]*dev)", text, re.ASCII)
    return (int(found[1]), int(found[2])) if found else None


# ---------------------------------------------------------------- the packing of B
def _packing(form: Form, pairs: Sequence[ExpertPair]) -> Packing:
    """Tell the packing by the mark, then by the numbers, then by the writer."""
    telling = [one for one in pairs if one.rank > 1 and one.experts > 1]
    if not telling:
        return (False,), ""  # both are the same
    mark = str(form.config.extra.get("lora_B_layout") or form.weights.metadata.get("lora_B_layout") or "")
    if mark in _LAYOUTS:
        return (_LAYOUTS[mark],), f"its `lora_B_layout` is {mark}"
    scores = _grouping(form, telling)
    if scores is None:
        return (False,), ""  # B is zero
    lead = scores.by_expert - scores.by_rank
    if max(scores[:2]) > _CERTAIN and abs(lead) > _CERTAIN:
        kind = "expert by expert, as Unsloth wrote it" if lead > 0 else "rank by rank, as PEFT writes it"
        return (lead > 0,), f"its numbers show that B is packed {kind}"
    auto = form.config.extra.get("auto_mapping")
    is_unsloths = isinstance(auto, Mapping) and bool(auto.get("unsloth_fixed"))
    may_be = scores.is_trained and lead >= _LEANING
    if form.config.extra.get("peft_version") and not is_unsloths and not may_be:
        return (False,), ""  # most adapters with a version are PEFT's own, and nothing speaks for Unsloth
    return (False, True), ""


class _Scores(NamedTuple):
    """How far the columns of an expert's B point the same way, for both packings, in standard deviations.

    `is_trained`: columns point the same way more often than random numbers do, whatever the packing.
    """

    by_rank: float
    by_expert: float
    is_trained: bool


def _grouping(form: Form, pairs: Sequence[ExpertPair]) -> _Scores | None:
    """Score both packings by the squared cosines of the columns that they put together; None if B is zero everywhere.

    Each step of training adds to the columns of an expert multiples of the gradients of the tokens that it got, so they
    share directions, and those of two experts share fewer. The scale is that of columns in random order.
    """
    np = numpy_for("a LoRA on stacked experts")
    random, scores, alike = np.random.default_rng(0), [], []
    for one in pairs:
        columns = _columns(form, one.b)
        if columns is None:
            continue
        by_rank = columns.reshape(one.rank, one.experts, -1).swapaxes(0, 1)
        by_expert = columns.reshape(one.experts, one.rank, -1)
        shuffled = (columns[random.permutation(len(columns))].reshape(by_expert.shape) for _ in range(_SHUFFLES))
        chance = np.array([_likeness(np, groups) for groups in shuffled])
        found = np.array([_likeness(np, by_rank), _likeness(np, by_expert)])
        scores.append((found - chance.mean()) / max(float(chance.std()), 1e-9))
        alike.append(chance.mean() * columns.shape[1])
        first, second = np.sum(scores, axis=0) / len(scores) ** 0.5
        if abs(first - second) > _BEYOND_DOUBT:
            break
    return _Scores(float(first), float(second), float(np.mean(alike)) > _TRAINED) if scores else None


def _likeness(np: Any, groups: Any) -> float:
    """Return the mean squared cosine of two columns of a group, for [groups, members, out] of length 1 or zero."""
    cosines = np.matmul(groups, groups.swapaxes(1, 2)) ** 2
    members = groups.shape[1]
    own = np.trace(cosines, axis1=1, axis2=2).sum()
    return float((cosines.sum() - own) / (len(groups) * members * (members - 1)))


def _columns(form: Form, spec: TensorSpec) -> Any:
    """Return the columns of B, [r * experts, out], each of length 1 or zero; None if all are zero."""
    from adapterhub.formats.derived.reading import floats

    numbers = floats(bytes(form.held.read(spec.start, spec.end)), spec.dtype).reshape(spec.shape).T
    lengths = (numbers**2).sum(1, keepdims=True) ** 0.5
    return numbers / lengths.clip(min=1e-30) if lengths.any() else None


# ---------------------------------------------------------------- to the inner form
def relaid(form: Form, pairs: Sequence[ExpertPair], layout: Layout) -> Form:
    """Return the form with every expert pair as PEFT lays it out today; the form itself where it is."""
    if layout == LAYOUTS[0]:
        return form
    made = {one.a.name: one for one in pairs} | {one.b.name: one for one in pairs}
    tensors = [
        Made.of(spec) if spec.name not in made else _relaid(made[spec.name], spec, layout)
        for spec in form.weights.tensors
    ]
    return form.remade(tensors, **MARKS)


def _relaid(one: ExpertPair, spec: TensorSpec, layout: Layout) -> Made:
    is_a = spec.name == one.a.name
    if not layout.is_turned:
        if is_a:
            return Made.of(spec)
        return Made(
            name=spec.name, shape=spec.shape, sources=(spec,), make=lambda s: packed(unpacked(s[0], one, layout))
        )
    (rows, width), out = one.a.shape, one.b.shape[0]
    if is_a:  # A of an expert is its B turned around
        shape = (rows, out)
        return Made(
            name=spec.name, shape=shape, sources=(one.b,), make=lambda s: unpacked(s[0], one, layout).swapaxes(1, 2)
        )
    shape = (width, rows)
    return Made(
        name=spec.name,
        shape=shape,
        sources=(one.a,),
        make=lambda s: packed(s[0].reshape(one.experts, one.rank, width).swapaxes(1, 2)),
    )


# ---------------------------------------------------------------- from the inner form
def laid_out(form: Form, layout: Layout, *, is_transposed: bool = False) -> Form:
    """Return the form with its expert pairs in a layout, with that layout's marks; the form itself where it has none.

    `is_transposed`: the base keeps the weights of experts transposed, where every version has A on the inputs.
    """
    pairs = expert_pairs(form)
    made = {one.a.name: one for one in pairs} | {one.b.name: one for one in pairs}
    if not pairs or layout == LAYOUTS[0]:
        return form
    is_turned = layout.is_turned and not is_transposed
    tensors = [
        Made.of(spec) if spec.name not in made else _laid_out(made[spec.name], spec, layout, is_turned=is_turned)
        for spec in form.weights.tensors
    ]
    marks = {
        "peft_version": "0.18.1" if layout.is_turned else MARKS["peft_version"],
        "lora_B_layout": "grouped_by_expert" if layout.is_grouped else None,
    }
    return form.remade(tensors, **marks)


def _laid_out(one: ExpertPair, spec: TensorSpec, layout: Layout, *, is_turned: bool) -> Made:
    (rows, width), out = one.a.shape, one.b.shape[0]
    is_a = spec.name == one.a.name

    def pack(b: Any) -> Any:
        return b.swapaxes(0, 1).reshape(b.shape[1], -1) if layout.is_grouped else packed(b)

    def of_b(arrays: Sequence[Any]) -> Any:
        return unpacked(arrays[0], one, LAYOUTS[0])

    def of_a(arrays: Sequence[Any]) -> Any:
        return arrays[0].reshape(one.experts, one.rank, width)

    if not is_turned:
        return (
            Made.of(spec)
            if is_a
            else Made(name=spec.name, shape=spec.shape, sources=(spec,), make=lambda s: pack(of_b(s)))
        )
    if is_a:  # A of an expert is its B turned around
        return Made(
            name=spec.name,
            shape=(rows, out),
            sources=(one.b,),
            make=lambda s: of_b(s).swapaxes(1, 2).reshape(rows, out),
        )
    return Made(name=spec.name, shape=(width, rows), sources=(one.a,), make=lambda s: pack(of_a(s).swapaxes(1, 2)))


def unpacked(b: Any, one: ExpertPair, layout: Layout) -> Any:
    """B as [experts, out, r], from a file's [out, r * experts]."""
    if layout.is_grouped:
        return b.reshape(b.shape[0], one.experts, one.rank).swapaxes(0, 1)
    return b.reshape(b.shape[0], one.rank, one.experts).swapaxes(0, 2).swapaxes(1, 2)


def packed(b: Any) -> Any:
    """B as PEFT's files have it, [out, r * experts], from [experts, out, r]."""
    return b.swapaxes(0, 1).swapaxes(1, 2).reshape(b.shape[1], -1)
