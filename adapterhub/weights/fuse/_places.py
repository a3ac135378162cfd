"""Which tensor of the base each part of an adapter changes, and by what; or why it cannot be, by name.

Everything is decided by names, shapes, digests and configs before a number of the base is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from adapterhub.core.errors import BaseMismatch, MergeRefused, shown
from adapterhub.formats.modules.base_names import BaseNames
from adapterhub.formats.peft.config import owner
from adapterhub.formats.safetensors.facts import TensorFacts
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.dtypes import TORCH_DTYPES
from adapterhub.weights.fuse._model import Model
from adapterhub.weights.fuse._orientation import OtherShape, Unclear, is_turned, place_on_parameters
from adapterhub.weights.fuse._source import FuseAdapter
from adapterhub.weights.lowrank.layouts import NESTED
from adapterhub.weights.lowrank.pairs import Factors

LISTED: Final = 200
_KEEP: Final = "keep the adapter beside its base, where PEFT adds it at run time"
_UNTIE: Final = "; what is tied can be fused into a copy of the base that was saved untied (tie_word_embeddings false)"


class Update(NamedTuple):
    """The low-rank update of one module of an adapter; turned: the base stores the transpose of `B @ A`."""

    source: FuseAdapter
    module: str
    is_turned: bool


class Taken(NamedTuple):
    """A tensor of an adapter."""

    source: FuseAdapter
    spec: TensorSpec


@dataclass(slots=True, kw_only=True, eq=False)
class Change:
    """What becomes of one tensor of the base.

    In this order: `whole` replaces it, or `rows` those rows of it that `tokens` names; `updates` and `offsets` (biases
    of their B, `lora_bias`) are added; `magnitude` gives every output, a row unless the update is turned, its length.
    """

    tensor: TensorFacts
    whole: Taken | None = None
    rows: Taken | None = None
    tokens: tuple[int, ...] = ()
    updates: list[Update] = field(default_factory=list)
    offsets: list[Update] = field(default_factory=list)
    magnitude: Taken | None = None


def plan(model: Model, sources: Sequence[FuseAdapter]) -> Mapping[str, Change]:
    """The change of every tensor that changes, by its name in the base.

    Raises:
        MergeRefused: parts of an adapter that cannot be fused into this base; every one is named.
        BaseMismatch: modules that the base does not have, or has in other shapes.
    """
    planner = _Planner(model)
    for source in sources:
        planner.take(source)
    planner.look_at_ties()
    planner.refuse(sources)
    return MappingProxyType(planner.changes)


class _Planner:
    """Places adapters part by part and gathers what has no place."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.changes: dict[str, Change] = {}
        self.reasons: list[str] = []
        self.lacking: list[str] = []
        self.misfits: list[str] = []
        self.copies: dict[str, list[Taken]] = {}
        """What an adapter has for a place that the base's files do not name, by the tensor which that place shares."""
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
        if NESTED in module.split(".") or f"{base_module}.in_proj_weight" in self.model.facts:
            self._refuse(module, "is part of torch's MultiheadAttention, whose update PEFT applies in a way of its own")
        elif weight is None:
            shape = (factors.layout.out, factors.layout.width)
            self._refuse_absent(module, base_module, shape[::-1] if factors.layout.kind == "embedding" else shape)
        elif self._is_plain(module, weight):
            config = self.source.config
            try:
                turned = is_turned(base_module, factors.layout, weight.shape, config, self.model.model_type)
            except OtherShape as problem:
                self.misfits.append(f"`{shown(module)}` {problem}")
                return
            except Unclear as problem:
                self._refuse(module, str(problem))
                return
            change = self._change(weight)
            change.updates.append(Update(self.source, module, turned))
            self._take_magnitude(module, change)
            if factors.bias is not None:
                self._take_offset(module, base_module)

    def _take_parameters(self, holder: str, pairs: Mapping[str, Factors]) -> None:
        names = next(iter(pairs.values())).parameters
        found = {name: self.model.facts.get(self.names.tensor(name)) for name in names}
        there = {name: facts for name, facts in found.items() if facts is not None and self._is_plain(name, facts)}
        for name, facts in found.items():
            if facts is None:
                where = "is a parameter that the base's files do not hold under one name"
                self._refuse(name, f"{where}: it is made of several tensors when the base is loaded")
        if len(there) < len(found):
            return
        try:
            placed = place_on_parameters(pairs, {n: f.shape for n, f in there.items()}, self.source.config)
        except Unclear as problem:
            self._refuse(holder, f"(target_parameters) {problem}")
            return
        for module, (parameter, turned) in placed.items():
            self._change(there[parameter]).updates.append(Update(self.source, module, turned))

    def _take_magnitude(self, module: str, change: Change) -> None:
        """DoRA: the pair's own magnitudes, and no other pair on this weight."""
        spec = self.magnitudes.get(module)
        uses_dora = self.source.config.use_dora
        if (spec is not None) != uses_dora:
            self._refuse(module, "has no DoRA magnitude" if uses_dora else "has a DoRA magnitude, but uses no DoRA")
        elif spec is not None and spec.dtype not in TORCH_DTYPES:
            self._refuse(module, f"has a DoRA magnitude in {shown(spec.dtype)}")
        elif spec is not None:
            change.magnitude = Taken(self.source, spec)

    def _take_offset(self, module: str, base_module: str) -> None:
        bias = self.model.facts.get(f"{base_module}.bias")
        if bias is None:
            self._refuse(module, "has a bias in its factors (lora_bias), and the base's layer has none to add it to")
        elif self._is_plain(f"{module}.bias", bias):
            self._change(bias).offsets.append(Update(self.source, module, is_turned=False))

    # ------------------------------------------------------------ replacements
    def _take_whole(self, name: str, spec: TensorSpec) -> None:
        facts = self._named(name)
        module = name.rpartition(".")[0]
        if facts is None:
            twin = self.model.twin_of_absent(self.names.here(module), spec.shape)
            if twin:
                self.copies.setdefault(twin, []).append(Taken(self.source, spec))
            else:
                self._refuse(name, "replaces a tensor that the base's files do not hold")
        elif facts.shape != spec.shape:
            self.misfits.append(f"`{shown(name)}` is {list(spec.shape)}, the base's is {list(facts.shape)}")
        elif facts.dtype != spec.dtype and (facts.dtype not in TORCH_DTYPES or spec.dtype not in TORCH_DTYPES):
            self._refuse(name, f"is stored as {shown(spec.dtype)}, in the base as {shown(facts.dtype)}")
        elif facts.name in self.changes and self.changes[facts.name].updates:
            self._refuse(name, "is replaced whole and has factors as well")
        else:
            self._change(facts).whole = Taken(self.source, spec)

    def _take_rows(self, module: str, spec: TensorSpec) -> None:
        facts = self._named(f"{module}.weight")
        tokens = self._tokens(module)
        if facts is None:
            self._refuse_absent(module, self.names.here(module), None)
        elif not self._is_plain(module, facts):
            return
        elif facts.shape[1:] != spec.shape[1:] or spec.dtype not in TORCH_DTYPES:
            rows = f"{shown(spec.dtype)} {list(spec.shape)}"
            self.misfits.append(f"`{shown(module)}` has rows of {rows}, the base's is {list(facts.shape)}")
        elif (
            len(tokens) != spec.shape[0] or len(set(tokens)) != len(tokens) or max(tokens, default=0) >= facts.shape[0]
        ):
            counts = f"{spec.shape[0]} rows for {len(tokens)} tokens of {facts.shape[0]}"
            self._refuse(module, f"trained rows that its config does not place (trainable_token_indices): {counts}")
        elif facts.name in self.changes:
            self._refuse(module, "has rows that are replaced, and factors or a whole replacement as well")
        else:
            change = self._change(facts)
            change.rows, change.tokens = Taken(self.source, spec), tokens

    # ------------------------------------------------------------ what is promised and not there
    def _look_for_targets(self) -> None:
        """Modules that the config targets and the file skips, although it has others of the same last name."""
        config = self.source.config
        if config.targets_all:
            return
        having = {self.names.here(owner(module)) for module in self.source.factors.modules}
        last_names = {module.rpartition(".")[2] for module in having}
        for name in sorted(self.model.facts):
            module, _, leaf = name.rpartition(".")
            is_candidate = leaf == "weight" and module not in having and module.rpartition(".")[2] in last_names
            if is_candidate and len(self.model.facts[name].shape) > 1 and config.targets(self.names.there(module)):
                self._refuse(module, "is a target of the adapter's config, and the adapter has no factors for it")

    def _look_for_saved(self) -> None:
        """Modules that the config replaces whole and the file does not hold."""
        entries = self.source.config.modules_to_save
        for name in sorted(self.model.facts.keys() if entries else ()):
            change = self.changes.get(name)
            parts = self.names.there(name.rpartition(".")[0]).split(".")
            paths = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
            if any(path.endswith(entries) for path in paths) and (change is None or change.whole is None):
                self._refuse(name, "is to be replaced whole (modules_to_save), and the adapter has no tensor for it")

    def _tokens(self, module: str) -> tuple[int, ...]:
        indices = self.source.config.trainable_token_indices
        if isinstance(indices, Mapping):
            return next((rows for name, rows in indices.items() if module.endswith(name)), ())
        return indices or ()

    # ------------------------------------------------------------ tied tensors
    def look_at_ties(self) -> None:
        """Refuse what would change a tensor that the loaded model uses in two places, unless both change alike."""
        for name, change in self.changes.items():
            twins = self.model.twins(name)
            reason = ""
            if twins and not self._all_alike([change, *(self.changes.get(twin) for twin in twins)]):
                reason = f"is tied to `{shown(twins[0])}` in this base (tie_word_embeddings)"
            elif not twins and self.model.is_used_twice(name) and not self._changes_both(change):
                reason = "is used in a second place of this base, tied to it (tie_word_embeddings)"
            if reason:
                self.reasons.append(f"`{shown(name)}` {reason}: fusing would change both, the adapter changes one")

    def _all_alike(self, changes: Sequence[Change | None]) -> bool:
        """Whether all of them are replaced, by the same numbers."""
        takens = [change.whole for change in changes if change is not None and change.whole is not None]
        return len(takens) == len(changes) and all(_same_bytes(takens[0], other) for other in takens[1:])

    def _changes_both(self, change: Change) -> bool:
        """Whether PEFT makes this change in every place that shares the tensor."""
        if change.rows is not None:  # PEFT ties the rows of a head to those of its embedding
            is_head = self.model.is_head(change.tensor.name.removesuffix(".weight"))
            return not is_head and not self.model.is_shared_by_encoder(change.tensor.name)
        copies = self.copies.get(change.tensor.name, [])
        return change.whole is not None and bool(copies) and all(_same_bytes(change.whole, c) for c in copies)

    # ------------------------------------------------------------ reasons
    def refuse(self, sources: Sequence[FuseAdapter]) -> None:
        """Raise if anything had no place."""
        for twin in self.copies.keys() - self.changes.keys():
            self.reasons.append(f"`{shown(twin)}` is tied to a head that the adapter replaces whole, and it alone")
        label = " + ".join(f"`{shown(source.label)}`" for source in sources)
        base = f"base `{shown(self.model.record.label)}`"
        if self.reasons:
            listed = [*self.reasons, *self.misfits, *self._lacking()]
            hint = _KEEP + (_UNTIE if any("tied" in reason for reason in self.reasons) else "")
            raise MergeRefused(f"{label} cannot be fused into {base}", _limited(listed), hint=hint)
        if self.misfits or self.lacking:
            lines = [f"{label} is made for another base than {base}", *_limited([*self._lacking(), *self.misfits])]
            raise BaseMismatch("\n  ".join(lines), hint="give the base that it was trained on with `--base`")

    def _lacking(self) -> list[str]:
        if not self.lacking:
            return []
        some = ", ".join(f"`{shown(module)}`" for module in self.lacking[:3])
        return [f"the base lacks {len(self.lacking)} of {self.modules} modules, such as {some}"]

    def _refuse(self, name: str, reason: str) -> None:
        self.reasons.append(f"`{shown(name)}` {reason}")

    def _refuse_absent(self, module: str, base_module: str, shape: tuple[int, int] | None) -> None:
        """A module without a weight of its own: tied, stored in another form, or not there."""
        twin = self.model.twin_of_absent(base_module, shape)
        if twin:
            self._refuse(module, f"is tied to `{shown(twin)}`, which this base's files hold once")
        elif base_module in self.model.modules:
            other = min(name for name in self.model.facts if name.rpartition(".")[0] == base_module)
            self._refuse(module, f"is stored as `{shown(other)}` and not as a plain weight: the base is quantised")
        else:
            self.lacking.append(module)

    def _is_plain(self, name: str, facts: TensorFacts) -> bool:
        if facts.dtype in TORCH_DTYPES:
            return True
        self._refuse(name, f"is stored as {shown(facts.dtype)} in the base, which cannot be added to: it is quantised")
        return False

    def _named(self, name: str) -> TensorFacts | None:
        """The base's tensor for an adapter's name; heads keep theirs where the rule renames what holds the layers."""
        return self.model.facts.get(self.names.tensor(name)) or self.model.facts.get(name)

    def _change(self, facts: TensorFacts) -> Change:
        return self.changes.setdefault(facts.name, Change(tensor=facts))


def _same_bytes(one: Taken, other: Taken) -> bool:
    if (one.spec.dtype, one.spec.shape) != (other.spec.dtype, other.spec.shape):
        return False
    pieces = zip(one.source.factors.chunks(one.spec), other.source.factors.chunks(other.spec), strict=True)
    return all(left == right for left, right in pieces)


def _limited(reasons: Sequence[str]) -> list[str]:
    rest = len(reasons) - LISTED
    return [*reasons[:LISTED], *([f"and {rest} more"] if rest > 0 else [])]
