"""LoRA on single experts, one pair for each layer of each expert, as one pair on the stacked experts of transformers 5.

The update of an expert's stacked weight is that of its layers side by side: with gate and up projection, A is [A of
gate; A of up] and B is block-diagonal, so the rank is the sum of theirs. Experts and layers without a pair get zeros.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.dialects.experts import MARKS, packed
from adapterhub.formats.dialects.form import Form, Made, numpy_for
from adapterhub.formats.naming.experts import ExpertPart
from adapterhub.formats.peft.keys import KeyPair, sort_keys
from adapterhub.formats.peft.pairs import NESTED, PEFT_PREFIX
from adapterhub.formats.safetensors.header import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedParameter:
    """A parameter of stacked experts in memory.

    `name`: the adapter's name for it. `depth`: how many parameters of its module PEFT wraps after it, which are in
    their module's wrapper. `is_transposed`: PEFT puts A on its first side.
    """

    name: str
    experts: int
    depth: int
    is_transposed: bool

    @property
    def pair(self) -> str:
        """The name under which PEFT has its pair."""
        return self.name.rpartition(".")[0] + f".{NESTED}" * self.depth


@dataclass(frozen=True, slots=True)
class _Member:
    """One layer of one expert: its factors, where it goes in the stacked weight, and its first column of B."""

    a: TensorSpec
    b: TensorSpec
    part: ExpertPart
    column: int

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def stacked(form: Form, parts: Mapping[str, ExpertPart], parameter: Callable[[str], StackedParameter]) -> Form:
    """Return the form with the pairs of single experts joined to pairs on `target_parameters`.

    `parts` gives the place of each module of a single expert; `parameter` describes the stacked one that it names.

    Raises:
        UnsupportedAdapter: the pairs of one parameter have several scales or dtypes, or are more than plain LoRA.
    """
    pairs = sort_keys(form.weights, form.config).pairs
    groups: dict[str, list[KeyPair]] = {}
    for pair in pairs:
        if pair.module in parts:
            groups.setdefault(parts[pair.module].parameter, []).append(pair)
    made = [_Stack(form, parameter(name), members, parts) for name, members in groups.items()]
    if reasons := [one.problem for one in made if one.problem]:
        raise UnsupportedAdapter("its pairs on single experts have no form on stacked ones", reasons[:20])
    joined = {spec.name for members in groups.values() for pair in members for spec in pair.whole or ()}
    kept = [Made.of(spec) for spec in form.weights.tensors if spec.name not in joined]
    tensors = [*kept, *(tensor for one in made for tensor in one.tensors())]
    rest = {pair.module.rpartition(".")[2] for pair in pairs if pair.module not in parts}
    targets = (
        {"target_modules": sorted(rest)}
        if isinstance(form.config.target_modules, str) and form.config.targets_all
        else {}
    )
    return form.remade(tensors, **targets, **_settings(form, made))


def _settings(form: Form, made: Sequence[_Stack]) -> dict[str, Any]:
    """Return the settings for the new pairs; PEFT takes the first pattern that matches, so theirs come first."""
    config = form.config
    ranks = {re.escape(one.parameter.name): one.rank for one in made}
    factor = {one.parameter.name: one.rank**0.5 if config.use_rslora else one.rank for one in made}
    alphas = {re.escape(one.parameter.name): one.scale * factor[one.parameter.name] for one in made}
    return {
        "target_parameters": [*config.target_parameters, *(one.parameter.name for one in made)],
        "rank_pattern": {**ranks, **config.rank_pattern},
        "alpha_pattern": {**alphas, **config.alpha_pattern},
        **MARKS,
    }


class _Stack:
    """One stacked parameter, and the pairs of single experts that become its pair."""

    def __init__(
        self, form: Form, parameter: StackedParameter, pairs: Sequence[KeyPair], parts: Mapping[str, ExpertPart]
    ) -> None:
        self.parameter = parameter
        whole = [(pair, *pair.whole, parts[pair.module]) for pair in pairs if pair.whole]
        widest: dict[int, int] = {}
        for _, a, _, part in whole:
            widest[part.part] = max(widest.get(part.part, 0), a.shape[0])
        columns = {part: sum(widest[other] for other in widest if other < part) for part in widest}
        self.rank = sum(widest.values())
        self.members = [_Member(a, b, part, columns[part.part]) for _, a, b, part in whole]
        scales = {form.config.scaling_of(pair.module) for pair in pairs}
        self.scale = min(scales)
        self.problem = self._problem(pairs, scales)

    def _problem(self, pairs: Sequence[KeyPair], scales: set[float]) -> str:
        label = shown(self.parameter.name)
        dtypes = {spec.dtype for one in self.members for spec in (one.a, one.b)}
        sizes = {(one.a.shape[1:], one.b.shape[:1]) for one in self.members}
        if len(scales) > 1:
            return f"`{label}`: its experts have {len(scales)} scales, and one parameter has one"
        if len(dtypes) > 1:
            return f"`{label}`: its experts are stored as {' and '.join(sorted(dtypes))}"
        if len(self.members) < len(pairs) or any(
            pair.magnitude or pair.bias or pair.kind != "linear" for pair in pairs
        ):
            return f"`{label}`: its experts have more than a pair of matrices each, such as DoRA's magnitudes"
        return f"`{label}`: its experts have factors of several sizes" if len(sizes) > 1 else ""

    def tensors(self) -> Iterable[Made]:
        """Yield a and B of the stacked parameter, as PEFT lays them out."""
        (_, width), (out, _) = self.members[0].a.shape, self.members[0].b.shape
        out *= self.members[0].part.parts
        is_turned = self.members[0].part.is_transposed != self.parameter.is_transposed
        rows = self.rank * self.parameter.experts
        name = f"{PEFT_PREFIX}{self.parameter.pair}"
        of_a, of_b = tuple(one.a for one in self.members), tuple(one.b for one in self.members)
        first, second = (of_b, of_a) if is_turned else (of_a, of_b)
        sides = (out, width) if is_turned else (width, out)

        def a(sources: Sequence[Any]) -> Any:
            made = self._b(sources).swapaxes(1, 2) if is_turned else self._a(sources)
            return made.reshape(rows, sides[0])

        def b(sources: Sequence[Any]) -> Any:
            return packed(self._a(sources).swapaxes(1, 2) if is_turned else self._b(sources))

        yield Made(name=f"{name}.lora_A.weight", shape=(rows, sides[0]), sources=first, make=a)
        yield Made(name=f"{name}.lora_B.weight", shape=(sides[1], rows), sources=second, make=b)

    def _a(self, sources: Sequence[Any]) -> Any:
        """Return a of each expert, [experts, r, in]."""
        made = numpy_for("").zeros((self.parameter.experts, self.rank, sources[0].shape[1]), sources[0].dtype)
        for one, array in zip(self.members, sources, strict=True):
            made[one.part.expert, one.column : one.column + one.rank] = array
        return made

    def _b(self, sources: Sequence[Any]) -> Any:
        """B of each expert, [experts, out, r]."""
        parts, out = self.members[0].part.parts, sources[0].shape[0]
        made = numpy_for("").zeros((self.parameter.experts, out * parts, self.rank), sources[0].dtype)
        for one, array in zip(self.members, sources, strict=True):
            part = one.part.part
            place = slice(part, None, parts) if one.part.is_interleaved else slice(part * out, (part + 1) * out)
            made[one.part.expert, place, one.column : one.column + one.rank] = array
        return made
