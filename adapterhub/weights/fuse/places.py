"""Plans the change of each tensor of the base, or lists by name the parts of an adapter that have no place.

Names, shapes, digests and configs decide everything before any number of the base is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from types import MappingProxyType
from typing import Final, NamedTuple

from adapterhub.core.errors import BaseMismatch, MergeRefused, alike_once, first_lines, shown
from adapterhub.formats.naming.finding import BaseNames
from adapterhub.formats.peft.config import AdapterConfig, owner
from adapterhub.formats.peft.pairs import NESTED, FactorLayout, Factors
from adapterhub.formats.safetensors.header import TensorFacts, TensorSpec
from adapterhub.trust.verify import Subject
from adapterhub.weights.dtypes import READABLE, TORCH_DTYPES
from adapterhub.weights.fuse.model import StoredBase
from adapterhub.weights.lowrank.algebra import MATRIX_NDIM, LowRank, difference_norms
from adapterhub.weights.lowrank.factors import WeightedAdapter
from adapterhub.weights.model_files import CONV1D, CONV1D_TYPES


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FuseAdapter(WeightedAdapter):
    """A weighted adapter with its verified files and the names that its modules have in the base."""

    subject: Subject
    names: BaseNames

    @property
    def config(self) -> AdapterConfig:
        """The adapter's config."""
        return self.subject.config


def own_reasons(subject: Subject, *, is_alone: bool) -> Iterator[str]:
    """Yield the reasons that rule the adapter out; `is_alone` means the only adapter, with weight 1."""
    config, keys = subject.config, subject.keys
    if not config.is_lora:
        yield f"is of type {shown(config.peft_type)}, expected LORA"
        return
    yield from (one.what for one in config.variants.values() if not one.fuses)
    init = config.init_lora_weights
    if config.start_changes_base:
        yield (
            f"changed the base weights when it was initialised (init_lora_weights {shown(init)}); its update is "
            "relative to the changed weights. PEFT saves it as a plain LoRA with "
            "`path_initial_model_for_weight_conversion`"
        )
    elif config.start_is_unknown:
        yield f"has an unknown initialisation ({shown(init)}), which may have changed the base weights"
    for spec in keys.others:
        yield f"holds `{shown(spec.name)}`, which its config does not account for"
    if not is_alone:
        yield from _not_additive(subject)


def _not_additive(subject: Subject) -> Iterator[str]:
    """Parts of the adapter that have no meaning in a sum or with a weight other than 1."""
    keys = subject.keys
    parts = {
        "DoRA magnitudes": subject.config.use_dora,
        "modules that replace those of the base (modules_to_save)": bool(keys.saved),
        "biases that replace those of the base (bias)": bool(keys.biases),
        "rows that replace those of an embedding (trainable_token_indices)": bool(keys.tokens),
    }
    for what, is_there in parts.items():
        if is_there:
            yield f"has {what}, which do not add up; it can be fused alone and with weight 1"


_MOST_NESTED: Final = 4


class Unclear(Exception):
    """A pair has no place in this weight; the text ends a sentence that starts with the module."""


class OtherShape(Unclear):
    """A pair was made for a weight of another shape."""


def is_turned(
    module: str, layout: FactorLayout, shape: tuple[int, ...], config: AdapterConfig, model_type: str
) -> bool:
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
    may_be_turned = config.fan_in_fan_out or module.rpartition(".")[2] in CONV1D
    if shape != straight:
        if shape == turned and may_be_turned:
            return True
        raise OtherShape(_differs(straight, shape))
    if shape != turned or not may_be_turned:
        return False
    if model_type in CONV1D_TYPES:
        return module.rpartition(".")[2] in CONV1D
    if model_type and not config.fan_in_fan_out:
        return False
    raise Unclear("is square, and neither config states whether this base stores it as [out, in] or as [in, out]")


class PlacedUpdate(NamedTuple):
    """The place of a pair: the parameter of the base, and whether each of its matrices is transposed."""

    parameter: str
    is_turned: bool


def place_on_parameters(
    pairs: Mapping[str, Factors], shapes: Mapping[str, tuple[int, ...]], config: AdapterConfig
) -> dict[str, PlacedUpdate]:
    """Return the parameter of each pair that PEFT nested on one module (`target_parameters`), by the pair's name.

    `shapes` are those of the parameters. PEFT names the pairs by their depth, in the order in which the module defines
    its parameters; the files do not contain that order. So this tries every assignment, and exactly one must fit. A
    three-dimensional parameter is [experts, out, in], or [experts, in, out] in all parameters of the module.

    Raises:
        Unclear: no assignment fits, or several do.
    """
    if len(pairs) != len(shapes) or len(pairs) > _MOST_NESTED:
        raise Unclear(f"has {len(pairs)} pairs for {len(shapes)} parameters of the base")
    fitting: set[tuple[PlacedUpdate, ...]] = set()
    for names in permutations(shapes):
        for turned in (False, True):
            placed = [PlacedUpdate(name, turned and len(shapes[name]) > MATRIX_NDIM) for name in names]
            if all(_fits(f, w, shapes[w.parameter], config) for f, w in zip(pairs.values(), placed, strict=True)):
                fitting.add(tuple(placed))
    if not fitting:
        listed = ", ".join(f"{name.rpartition('.')[2]} {list(shape)}" for name, shape in shapes.items())
        raise Unclear(f"fits no parameter of the base ({listed})")
    if len(fitting) > 1:
        raise Unclear("fits the base's parameters in more than one way, and the files do not show which one applies")
    return dict(zip(pairs, fitting.pop(), strict=True))


def _fits(factors: Factors, placed: PlacedUpdate, shape: tuple[int, ...], config: AdapterConfig) -> bool:
    layout = factors.layout
    matrix = (layout.width, layout.out) if placed.is_turned else (layout.out, layout.width)
    expected = matrix if len(shape) == MATRIX_NDIM else (layout.parts, *matrix)
    settings = config.rank_of(placed.parameter), config.scaling_of(placed.parameter)
    is_single = layout.parts == 1 or len(shape) > MATRIX_NDIM
    return shape == expected and is_single and (factors.rank, factors.scale) == settings


def _differs(expected: Sequence[int], shape: Sequence[int]) -> str:
    return f"was made for a weight of shape {list(expected)}; the base has {list(shape)}"


_KEEP: Final = "keep the adapter beside its base; PEFT then adds it at run time"
_ALIKE: Final = 1e-6
"""The most by which two updates of one tied tensor differ, of their size: a few times the rounding of float32."""
_UNTIE: Final = "; tied tensors can be fused into a copy of the base that was saved untied (tie_word_embeddings false)"


class TensorUpdate(NamedTuple):
    """The low-rank update of one module of an adapter; if turned, the base stores the transpose of `B @ A`."""

    source: FuseAdapter
    module: str
    is_turned: bool

    def blocks(self) -> tuple[LowRank, ...]:
        """Return the update per block of rows in the base's layout: float64, scale 1, the adapter's weight in `b`."""
        parts = []
        for part in self.source.factors.parts(self.module):
            a, b = part.a.double(), part.b.double() * (part.scale * self.source.weight)
            parts.append(LowRank(a=b.T.contiguous(), b=a.T.contiguous()) if self.is_turned else LowRank(a=a, b=b))
        return tuple(parts)


class AdapterTensor(NamedTuple):
    """A tensor of an adapter."""

    source: FuseAdapter
    spec: TensorSpec


@dataclass(slots=True, kw_only=True, eq=False)
class TensorChange:
    """The change of one tensor of the base.

    In this order: `whole` replaces it, or `rows` replace the rows in `tokens`; `updates` and `offsets` (biases of their
    B, `lora_bias`) are added; `magnitude` sets the length of each output, which is a row unless the update is turned.
    """

    tensor: TensorFacts
    whole: AdapterTensor | None = None
    rows: AdapterTensor | None = None
    tokens: tuple[int, ...] = ()
    updates: list[TensorUpdate] = field(default_factory=list)
    offsets: list[TensorUpdate] = field(default_factory=list)
    magnitude: AdapterTensor | None = None

    @property
    def is_sum(self) -> bool:
        """Whether updates are added to it, and nothing else changes it."""
        return bool(self.updates) and not (self.whole or self.rows or self.offsets or self.magnitude)


def plan_changes(model: StoredBase, sources: Sequence[FuseAdapter]) -> Mapping[str, TensorChange]:
    """Return the change of every tensor that changes, by its name in the base.

    Raises:
        MergeRefused: parts of an adapter cannot be fused into this base; lists every part.
        BaseMismatch: the base lacks modules, or has them in other shapes.
    """
    planner = _Planner(model)
    for source in sources:
        planner.take(source)
    planner.check_ties()
    planner.check(sources)
    return MappingProxyType(planner.changes)


class _Planner:
    """Places adapters part by part and collects the parts that have no place."""

    def __init__(self, model: StoredBase) -> None:
        self.model = model
        self.changes: dict[str, TensorChange] = {}
        self.reasons: list[str] = []
        self.lacking: list[str] = []
        self.misfits: list[str] = []
        self.copies: dict[str, list[AdapterTensor]] = {}
        """An adapter's tensors for places that are not in the base's files, by the tensor that the place shares."""
        self.shared: dict[str, list[TensorUpdate]] = {}
        """The updates of such places."""
        self.source: FuseAdapter
        self.magnitudes: Mapping[str, TensorSpec | None] = {}
        self.names: BaseNames
        self.modules = 0

    def take(self, source: FuseAdapter) -> None:
        """Place every part of one adapter."""
        keys, pairs = source.subject.keys, source.factors.modules
        self.source, self.names = source, source.names
        self.magnitudes = {pair.module: pair.magnitude for pair in keys.pairs}
        self.modules += len(pairs)
        nested: dict[str, dict[str, Factors]] = {}
        for module, factors in pairs.items():
            if factors.parameters:
                nested.setdefault(owner(module), {})[module] = factors
            else:
                self._take_pair(module, factors)
        for holder, group in nested.items():
            self._take_parameters(holder, group)
        self.reasons += [f"`{shown(module)}` {reason}" for module, reason in source.factors.unclear.items()]
        for name, spec in (*keys.saved, *keys.biases):
            self._take_whole(name, spec)
        for module, spec in keys.tokens:
            self._take_rows(module, spec)
        self._look_for_targets()
        self._look_for_saved()

    # ------------------------------------------------------------ pairs
    def _take_pair(self, module: str, factors: Factors) -> None:
        base_module = self.names.here(owner(module))
        weight = self.model.facts.get(f"{base_module}.weight")
        shape = (factors.layout.out, factors.layout.width)
        shape = shape[::-1] if factors.layout.kind == "embedding" else shape
        twin = "" if weight else self.model.sharer_of_absent(base_module, shape)
        weight = weight or self.model.facts.get(twin)
        if NESTED in module.split(".") or f"{base_module}.in_proj_weight" in self.model.facts:
            self._note(module, "is part of torch's MultiheadAttention, to which PEFT applies updates in another way")
        elif weight is None:
            self._note_absent(module, base_module, shape)
        elif self._is_plain(module, weight):
            config = self.source.config
            try:
                turned = is_turned(base_module, factors.layout, weight.shape, config, self.model.model_type)
            except OtherShape as problem:
                self.misfits.append(f"`{shown(module)}` {problem}")
                return
            except Unclear as problem:
                self._note(module, str(problem))
                return
            update = TensorUpdate(self.source, module, turned)
            if twin:
                self.shared.setdefault(twin, []).append(update)
            else:
                change = self._change(weight)
                change.updates.append(update)
                self._take_magnitude(module, change)
            if factors.bias is not None:
                self._take_offset(module, base_module)

    def _take_parameters(self, holder: str, pairs: Mapping[str, Factors]) -> None:
        names = next(iter(pairs.values())).parameters
        held = {name: self.model.facts.get(self.names.tensor(name)) for name in names}
        there = {name: facts for name, facts in held.items() if facts is not None and self._is_plain(name, facts)}
        may_lack = there and self.source.config.has_bare_parameters  # such targets are in some modules only
        for name, facts in () if may_lack else held.items():
            if facts is None:
                where = "is a parameter without a tensor of its own in the base's files"
                self._note(name, f"{where}: loading combines several tensors into it")
        if len(there) < len(held) and not may_lack:
            return
        try:
            placed = place_on_parameters(pairs, {n: f.shape for n, f in there.items()}, self.source.config)
        except Unclear as problem:
            self._note(holder, f"(target_parameters) {problem}")
            return
        for module, (parameter, turned) in placed.items():
            self._change(there[parameter]).updates.append(TensorUpdate(self.source, module, turned))

    def _take_magnitude(self, module: str, change: TensorChange) -> None:
        """DoRA: the magnitudes of the pair."""
        spec = self.magnitudes.get(module)
        uses_dora = self.source.config.use_dora
        if (spec is not None) != uses_dora:
            self._note(
                module,
                "has no DoRA magnitude" if uses_dora else "has a DoRA magnitude, but its config does not use DoRA",
            )
        elif spec is not None and spec.dtype not in READABLE:
            self._note(module, f"has a DoRA magnitude in {shown(spec.dtype)}")
        elif spec is not None:
            change.magnitude = AdapterTensor(self.source, spec)

    def _take_offset(self, module: str, base_module: str) -> None:
        bias = self.model.facts.get(f"{base_module}.bias")
        if bias is None:
            self._note(module, "has a bias in its factors (lora_bias), but the base's layer has no bias to add it to")
        elif self._is_plain(f"{module}.bias", bias):
            self._change(bias).offsets.append(TensorUpdate(self.source, module, is_turned=False))

    # ------------------------------------------------------------ replacements
    def _take_whole(self, name: str, spec: TensorSpec) -> None:
        facts = self._named(name)
        module = name.rpartition(".")[0]
        if facts is None:
            twin = self.model.twin_of_absent(self.names.here(module), spec.shape)
            if twin:
                self.copies.setdefault(twin, []).append(AdapterTensor(self.source, spec))
            else:
                self._note(name, "replaces a tensor that is not in the base's files")
        elif facts.shape != spec.shape:
            self.misfits.append(f"`{shown(name)}` is {list(spec.shape)}; the base has {list(facts.shape)}")
        elif facts.dtype != spec.dtype and (facts.dtype not in TORCH_DTYPES or spec.dtype not in TORCH_DTYPES):
            self._note(name, f"is stored as {shown(spec.dtype)}, but in the base as {shown(facts.dtype)}")
        elif facts.name in self.changes and self.changes[facts.name].updates:
            self._note(name, "is replaced whole, but also has factors")
        else:
            self._change(facts).whole = AdapterTensor(self.source, spec)

    def _take_rows(self, module: str, spec: TensorSpec) -> None:
        facts = self._named(f"{module}.weight")
        tokens = self.source.config.trained_rows(module)
        if facts is None:
            self._note_absent(module, self.names.here(module), None)
        elif not self._is_plain(module, facts):
            return
        elif facts.shape[1:] != spec.shape[1:] or spec.dtype not in READABLE:
            rows = f"{shown(spec.dtype)} {list(spec.shape)}"
            self.misfits.append(f"`{shown(module)}` has rows of {rows}; the base has {list(facts.shape)}")
        elif (
            len(tokens) != spec.shape[0] or len(set(tokens)) != len(tokens) or max(tokens, default=0) >= facts.shape[0]
        ):
            counts = f"{spec.shape[0]} rows for {len(tokens)} tokens of {facts.shape[0]}"
            self._note(module, f"has trained rows that do not match trainable_token_indices in its config: {counts}")
        elif facts.name in self.changes:
            self._note(module, "has replaced rows, but also factors or a whole replacement")
        else:
            change = self._change(facts)
            change.rows, change.tokens = AdapterTensor(self.source, spec), tokens

    # ------------------------------------------------------------ missing parts
    def _look_for_targets(self) -> None:
        """Note modules that the config targets but the file skips, although it has others of the same last name."""
        config = self.source.config
        if config.targets_all:
            return
        present = {self.names.here(owner(module)) for module in self.source.factors.modules}
        last_names = {module.rpartition(".")[2] for module in present}
        for name in sorted(self.model.facts):
            module, _, leaf = name.rpartition(".")
            is_candidate = leaf == "weight" and module not in present and module.rpartition(".")[2] in last_names
            if is_candidate and len(self.model.facts[name].shape) > 1 and config.targets(self.names.there(module)):
                self._note(module, "is a target in the adapter's config, but the adapter has no factors for it")

    def _look_for_saved(self) -> None:
        """Note modules that the config replaces whole but that are not in the file."""
        entries = self.source.config.modules_to_save
        for name in sorted(self.model.facts.keys() if entries else ()):
            change = self.changes.get(name)
            parts = self.names.there(name.rpartition(".")[0]).split(".")
            paths = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
            if any(path.endswith(entries) for path in paths) and (change is None or change.whole is None):
                self._note(name, "should be replaced whole (modules_to_save), but the adapter has no tensor for it")

    # ------------------------------------------------------------ tied tensors
    def check_ties(self) -> None:
        """Note changes to a tensor that the loaded model uses in two places, unless both change alike."""
        for name, change in self.changes.items():
            twins = self.model.twins(name)
            others = [self.changes.get(twin) for twin in twins]
            is_tied = bool(twins) or self.model.is_used_twice(name)
            if is_tied and not (self._all_alike(change, others) if twins else self._changes_both(change)):
                place = f"`{shown(twins[0])}`" if twins else "a second place"
                is_both = name in self.copies or name in self.shared or (bool(others) and None not in others)
                adapter = "each in another way" if is_both else "one"
                self.reasons.append(
                    f"`{shown(name)}` is tied to {place} in this base (tie_word_embeddings): fusing would change both "
                    f"places, but the adapter changes {adapter}"
                )
            for other in others:
                if other is not None:
                    other.updates = change.updates  # to the same bits, so that the result is tied, too

    def _all_alike(self, change: TensorChange, others: Sequence[TensorChange | None]) -> bool:
        """Return whether the same numbers replace all of them, or the same updates are added to all."""
        if change.whole is not None:
            return all(other and other.whole and _same_bytes(change.whole, other.whole) for other in others)
        return all(
            other and other.is_sum and change.is_sum and _same_updates(change.updates, other.updates)
            for other in others
        )

    def _changes_both(self, change: TensorChange) -> bool:
        """Return whether PEFT makes this change in every place that shares the tensor."""
        name = change.tensor.name
        copies, shared = self.copies.get(name, []), self.shared.get(name, [])
        if shared:
            return change.is_sum and not copies and _same_updates(change.updates, shared)
        if change.rows is not None:  # PEFT ties the rows of a head to those of its embedding
            return not self.model.is_head(name.removesuffix(".weight")) and not self.model.is_shared_by_encoder(name)
        return change.whole is not None and bool(copies) and all(_same_bytes(change.whole, c) for c in copies)

    # ------------------------------------------------------------ reasons
    def check(self, sources: Sequence[FuseAdapter]) -> None:
        """Raise unless everything has a place."""
        for twin in sorted(self.shared.keys() - self.changes.keys()):
            for update in self.shared[twin]:
                self._note_tied(update.module, twin)
        for twin in sorted(self.copies.keys() - self.changes.keys()):
            self.reasons.append(f"`{shown(twin)}` is tied to a head, of which the adapter replaces only the head")
        label = " + ".join(f"`{shown(source.label)}`" for source in sources)
        base = f"base `{shown(self.model.record.label)}`"
        if (copy := self.model.record.copy) is not None:
            base += f", which is a quantised copy ({copy.form or copy.unknown})"
        if self.reasons:
            listed = [*self.reasons, *self.misfits, *self._lacking()]
            hint = _KEEP + (_UNTIE if any("tied" in reason for reason in self.reasons) else "")
            raise MergeRefused(f"{label} cannot be fused into {base}", listed, hint=hint)
        if self.misfits or self.lacking:
            lines = [
                f"{label} was made for another base than {base}",
                *first_lines([*self._lacking(), *alike_once(self.misfits)]),
            ]
            raise BaseMismatch("\n  ".join(lines), hint="name the base it was trained on with `--base`")

    def _lacking(self) -> list[str]:
        if not self.lacking:
            return []
        some = ", ".join(f"`{shown(module)}`" for module in self.lacking[:3])
        return [f"the base lacks {len(self.lacking)} of {self.modules} modules, such as {some}"]

    def _note(self, name: str, reason: str) -> None:
        self.reasons.append(f"`{shown(name)}` {reason}")

    def _note_tied(self, module: str, twin: str) -> None:
        self._note(module, f"is tied to `{shown(twin)}`, which this base's files contain once")

    def _note_absent(self, module: str, base_module: str, shape: tuple[int, int] | None) -> None:
        """Note a module without its own weight: tied, stored in another form, or missing."""
        twin = self.model.twin_of_absent(base_module, shape)
        if twin:
            self._note_tied(module, twin)
        elif base_module in self.model.modules:
            other = min(name for name in self.model.facts if name.rpartition(".")[0] == base_module)
            self._note(module, f"is stored as `{shown(other)}`, not as a plain weight: the base is quantised")
        else:
            self.lacking.append(module)

    def _is_plain(self, name: str, facts: TensorFacts) -> bool:
        if facts.dtype in TORCH_DTYPES:
            return True
        self._note(
            name, f"is stored as {shown(facts.dtype)} in the base, to which nothing can be added: it is quantised"
        )
        return False

    def _named(self, name: str) -> TensorFacts | None:
        """Return the base's tensor for an adapter's name; a head keeps its name even where the layers are renamed."""
        return self.model.facts.get(self.names.tensor(name)) or self.model.facts.get(name)

    def _change(self, facts: TensorFacts) -> TensorChange:
        return self.changes.setdefault(facts.name, TensorChange(tensor=facts))


def _same_updates(updates: Sequence[TensorUpdate], others: Sequence[TensorUpdate]) -> bool:
    """Whether each adapter adds the same numbers to both places of a tied tensor, but for the rounding of factors."""
    pairs = [(one, other) for one in updates for other in others if one.source is other.source]
    return len(pairs) == len(updates) == len(others) and all(
        error <= _ALIKE * norm
        for one, other in pairs
        for first, second in zip(one.blocks(), other.blocks(), strict=True)
        for error, norm in (difference_norms([first], [1.0], second),)
    )


def _same_bytes(one: AdapterTensor, other: AdapterTensor) -> bool:
    return one.source.factors.same_bytes(one.spec, other.source.factors, other.spec)
