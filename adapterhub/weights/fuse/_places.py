"""Plans the change of each tensor of the base, or lists by name the parts of an adapter that have no place.

Names, shapes, digests and configs decide everything before any number of the base is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from adapterhub.core.errors import BaseMismatch, MergeRefused, alike_once, first_lines, shown
from adapterhub.formats.modules.base_names import BaseNames
from adapterhub.formats.peft.config import owner
from adapterhub.formats.peft.layouts import NESTED
from adapterhub.formats.peft.pairs import Factors
from adapterhub.formats.safetensors.facts import TensorFacts
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.dtypes import TORCH_DTYPES
from adapterhub.weights.fuse._model import Model
from adapterhub.weights.fuse._orientation import OtherShape, Unclear, is_turned, place_on_parameters
from adapterhub.weights.fuse._source import FuseAdapter
from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.lowrank.errors import difference_norms

_KEEP: Final = "keep the adapter beside its base; PEFT then adds it at run time"
_ALIKE: Final = 1e-6
"""The most by which two updates of one tied tensor differ, of their size: a few times the rounding of float32."""
_UNTIE: Final = "; tied tensors can be fused into a copy of the base that was saved untied (tie_word_embeddings false)"


class Update(NamedTuple):
    """The low-rank update of one module of an adapter; if turned, the base stores the transpose of `B @ A`."""

    source: FuseAdapter
    module: str
    is_turned: bool

    def blocks(self) -> tuple[LowRank, ...]:
        """The update of each block of rows in the base's layout: float64, scale 1, with the adapter's weight in `b`."""
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
class Change:
    """The change of one tensor of the base.

    In this order: `whole` replaces it, or `rows` replace the rows in `tokens`; `updates` and `offsets` (biases of their
    B, `lora_bias`) are added; `magnitude` sets the length of each output, which is a row unless the update is turned.
    """

    tensor: TensorFacts
    whole: AdapterTensor | None = None
    rows: AdapterTensor | None = None
    tokens: tuple[int, ...] = ()
    updates: list[Update] = field(default_factory=list)
    offsets: list[Update] = field(default_factory=list)
    magnitude: AdapterTensor | None = None

    @property
    def is_sum(self) -> bool:
        """Whether updates are added to it, and nothing else changes it."""
        return bool(self.updates) and not (self.whole or self.rows or self.offsets or self.magnitude)


def plan_changes(model: Model, sources: Sequence[FuseAdapter]) -> Mapping[str, Change]:
    """The change of every tensor that changes, by its name in the base.

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

    def __init__(self, model: Model) -> None:
        self.model = model
        self.changes: dict[str, Change] = {}
        self.reasons: list[str] = []
        self.lacking: list[str] = []
        self.misfits: list[str] = []
        self.copies: dict[str, list[AdapterTensor]] = {}
        """An adapter's tensors for places that are not in the base's files, by the tensor that the place shares."""
        self.shared: dict[str, list[Update]] = {}
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
            update = Update(self.source, module, turned)
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
        for name, facts in held.items():
            if facts is None:
                where = "is a parameter without a tensor of its own in the base's files"
                self._note(name, f"{where}: loading combines several tensors into it")
        if len(there) < len(held):
            return
        try:
            placed = place_on_parameters(pairs, {n: f.shape for n, f in there.items()}, self.source.config)
        except Unclear as problem:
            self._note(holder, f"(target_parameters) {problem}")
            return
        for module, (parameter, turned) in placed.items():
            self._change(there[parameter]).updates.append(Update(self.source, module, turned))

    def _take_magnitude(self, module: str, change: Change) -> None:
        """DoRA: the magnitudes of the pair."""
        spec = self.magnitudes.get(module)
        uses_dora = self.source.config.use_dora
        if (spec is not None) != uses_dora:
            self._note(
                module,
                "has no DoRA magnitude" if uses_dora else "has a DoRA magnitude, but its config does not use DoRA",
            )
        elif spec is not None and spec.dtype not in TORCH_DTYPES:
            self._note(module, f"has a DoRA magnitude in {shown(spec.dtype)}")
        elif spec is not None:
            change.magnitude = AdapterTensor(self.source, spec)

    def _take_offset(self, module: str, base_module: str) -> None:
        bias = self.model.facts.get(f"{base_module}.bias")
        if bias is None:
            self._note(module, "has a bias in its factors (lora_bias), but the base's layer has no bias to add it to")
        elif self._is_plain(f"{module}.bias", bias):
            self._change(bias).offsets.append(Update(self.source, module, is_turned=False))

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
        elif facts.shape[1:] != spec.shape[1:] or spec.dtype not in TORCH_DTYPES:
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

    def _all_alike(self, change: Change, others: Sequence[Change | None]) -> bool:
        """Whether the same numbers replace all of them, or the same updates are added to all."""
        if change.whole is not None:
            return all(other and other.whole and _same_bytes(change.whole, other.whole) for other in others)
        return all(
            other and other.is_sum and change.is_sum and _same_updates(change.updates, other.updates)
            for other in others
        )

    def _changes_both(self, change: Change) -> bool:
        """Whether PEFT makes this change in every place that shares the tensor."""
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
        """The base's tensor for an adapter's name; a head keeps its name even where the layers are renamed."""
        return self.model.facts.get(self.names.tensor(name)) or self.model.facts.get(name)

    def _change(self, facts: TensorFacts) -> Change:
        return self.changes.setdefault(facts.name, Change(tensor=facts))


def _same_updates(updates: Sequence[Update], others: Sequence[Update]) -> bool:
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
