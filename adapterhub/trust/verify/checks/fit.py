"""Compares the modules of an adapter with its base: whether they exist, have the right shape, and are complete."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Final

from adapterhub.core.disk.held_file import PIECE_BYTES
from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.formats.base.fingerprint import COPY_HINT, OUTPUT_HEADS, is_embedding, resize_hint
from adapterhub.formats.dialects.experts import expert_pairs, fits, stacks_among
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.naming.files import find_in_files
from adapterhub.formats.naming.finding import AMBIGUOUS_HINT, ambiguous_names
from adapterhub.formats.peft.keys import KeyPair
from adapterhub.formats.safetensors.header import TensorFacts, TensorSpec
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.report import some
from adapterhub.trust.verify.subject import Subject

_MATRIX: Final = 2
_CONV1D: Final = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})  # transformers' Conv1D, which stores [in, out]
_PACKED: Final = frozenset({"U8", "I8", "I32", "U32", "I16", "U16"})
_PACKED_TAILS: Final = ("qweight", "weight_packed", "weight.absmax")
_HINT: Final = "give the base the adapter was trained on; `base_model_name_or_path` in its config names it"


def check(subject: Subject) -> Iterator[Finding]:
    """Modules that the base lacks, shapes that differ, targets that were left out, and copies of base weights."""
    if not subject.config.is_lora:
        return
    if subject.base_tensors is None:
        if subject.keys.copies:
            message = (
                f"contains {some(name for name, _ in subject.keys.copies)}, which claims to be a copy of the base's; "
                "only a comparison with the base can tell"
            )
            yield Finding("U_BASE_WEIGHT", WEIGHTS_FILE, message, hint="give the base with `--base`")
    elif subject.config.reshapes or subject.config.layer_replication:
        message = "shapes or layers are rearranged by this variant; its fit to the base is not checked"
        yield Finding("U_SHAPE", CONFIG_FILE, message)
    else:
        yield from _Fit(subject, subject.base_tensors).findings()


class _Fit:
    """One adapter on one base."""

    def __init__(self, subject: Subject, tensors: Mapping[str, TensorFacts]) -> None:
        self.subject, self.tensors = subject, tensors
        self.modules = frozenset(name.rpartition(".")[0] for name in tensors)
        whole = list(filter(attrgetter("whole"), subject.keys.pairs))
        is_bare = subject.config.holds_parameters
        self.pairs = [p for p in whole if not is_bare(p.module)] if subject.config.target_parameters else whole
        self.holds_bare = len(self.pairs) < len(whole)
        shapes = {name: facts.shape for name, facts in tensors.items()}
        self.names = find_in_files({p.module: p.update for p in self.pairs}, shapes, subject.base_type)

    def findings(self) -> Iterator[Finding]:
        keys = self.subject.keys
        if self.names.readings:
            yield _mismatch(ambiguous_names(self.names.readings), AMBIGUOUS_HINT)
            return
        if mapped := self.names.mapped(pair.module for pair in self.pairs):
            yield Finding("N_NAMES", WEIGHTS_FILE, f"its {mapped}")
        if self.holds_bare:
            yield from self._stacked()
        yield from self._shapes()
        if not self.subject.config.targets_all and self.pairs:
            yield from self._left_out()
        if keys.saved or keys.biases or keys.tokens:
            yield from self._whole()
        for name, spec in keys.copies:
            yield self._copy(self.names.tensor(name), spec)

    def _stacked(self) -> Iterator[Finding]:
        """Yield the pairs on stacked experts, beside the parameters of the base."""
        subject = self.subject
        shapes = ((name, facts.shape) for name, facts in self.tensors.items())
        stacks = stacks_among(subject.config, shapes, subject.base_type)
        known = [(one, found) for one in expert_pairs(subject.form) if (found := stacks(one.module))]
        differing = [
            f"{one.module} ({one.experts} experts, A {_shape(one.a)}, B {_shape(one.b)}, base {list(found[0].shape)})"
            for one, found in known
            if not any(fits(one, stack) for stack in found)
        ]
        if differing:
            yield _mismatch(f"made for other experts: {some(differing)}")
        bare = sum(1 for pair in subject.keys.pairs if pair.whole) - len(self.pairs)
        if len(known) < bare:
            message = f"{bare - len(known)} pairs on `target_parameters` are not compared with the base"
            yield Finding("U_SHAPE", CONFIG_FILE, message)

    def _shapes(self) -> Iterator[Finding]:
        lacking: list[str] = []
        differing: list[str] = []
        packed: list[str] = []
        cut: list[str] = []
        tied: list[str] = []
        resized = ""
        for pair in self.pairs:
            if self.names.is_cut_otherwise(pair.module):
                cut.append(pair.module)
                continue
            name = self.names.here(pair.module)
            weight = self.tensors.get(f"{name}.weight") or self.tensors.get(f"{name}.in_proj_weight")
            is_head = pair.module.rpartition(".")[2] in OUTPUT_HEADS and name not in self.modules
            if is_head and (embedding := self._embedding()) is not None:
                # the base's file leaves this output head out, because it is the input embedding
                tied.append(pair.module)
                weight = weight or embedding
            if weight is None:
                is_packed = any(f"{name}.{tail}" in self.tensors for tail in _PACKED_TAILS)
                (packed if is_packed else lacking).append(pair.module)
            elif weight.dtype in _PACKED:
                packed.append(pair.module)
            elif not _fits(pair, weight.shape, self.subject.config.fan_in_fan_out):
                differing.append(f"{pair.module} (A {_shape(pair.a)}, B {_shape(pair.b)}, base {list(weight.shape)})")
                resized = resized or resize_hint(pair.module, weight.shape, pair.update or ())
        total = len(self.pairs)
        if lacking:
            yield _mismatch(f"the base lacks {some(lacking)}: {len(lacking)} of {total} modules are missing")
        if differing:
            yield _mismatch(
                f"made for other shapes: {some(differing)}; {len(differing)} of {total} modules differ", resized
            )
        if packed:
            message = f"the base is quantised on {some(packed)}; shapes cannot be compared"
            yield Finding("U_SHAPE", WEIGHTS_FILE, message)
        if cut:
            message = f"the base's files hold {some(cut)} in other pieces; shapes cannot be compared"
            yield Finding("U_SHAPE", WEIGHTS_FILE, message)
        if tied:
            message = f"{some(tied)} is the input embedding too in this base; merging into it would change both"
            yield Finding("W_TIED", WEIGHTS_FILE, message)

    def _embedding(self) -> TensorFacts | None:
        names = sorted(n for n in self.tensors if is_embedding(n.removesuffix(".weight")))
        matrices = [self.tensors[n] for n in names if len(self.tensors[n].shape) == _MATRIX]
        return max(matrices, key=lambda t: t.shape[0], default=None)

    def _left_out(self) -> Iterator[Finding]:
        """Modules of the base that the config targets and that have no weights; PEFT fills them with zeros."""
        having = {self.names.here(pair.module) for pair in self.subject.keys.pairs}
        missing: list[str] = []
        for name, facts in sorted(self.tensors.items()):
            module = name.removesuffix(".weight")
            is_free = module != name and len(facts.shape) >= _MATRIX and module not in having
            is_free = is_free and self.names.reaches(module)
            if is_free and self.subject.config.targets(self.names.there(module)):
                missing.append(module)
        if missing:
            message = (
                f"targets {len(missing)} more modules of this base, for which there are no weights: {some(missing)}"
            )
            yield Finding("W_TARGETS", CONFIG_FILE, message)

    def _whole(self) -> Iterator[Finding]:
        """Whole modules must have the base's shape, unless the base has no such module."""
        wrong, resized = [], ""
        for name, spec in (*self.subject.keys.saved, *self.subject.keys.biases):
            facts = self.tensors.get(self.names.tensor(name))
            if facts is not None and facts.shape != spec.shape:
                wrong.append(f"{name} ({list(spec.shape)}, base {list(facts.shape)})")
                resized = resized or resize_hint(name.rpartition(".")[0], facts.shape, spec.shape)
        if wrong:
            yield _mismatch(f"contains modules of other shapes: {some(wrong)}", resized)
        for module, spec in self.subject.keys.tokens:
            facts = self.tensors.get(f"{self.names.here(module)}.weight")
            if facts is None and module.rpartition(".")[2] in OUTPUT_HEADS:
                facts = self._embedding()  # a tied head
            if facts is None or (len(spec.shape) == _MATRIX and spec.shape[1] != facts.shape[-1]):
                yield _mismatch(f"trains tokens of `{shown(module)}`, which the base does not have in that width")

    def _copy(self, name: str, spec: TensorSpec) -> Finding:
        """Compare a claimed copy of a base weight with the base."""
        facts = self.tensors.get(name)
        place = f"`{shown(spec.name)}`"
        if facts is None or facts.dtype != spec.dtype:
            reason = (
                "which the base does not have" if facts is None else f"in {spec.dtype} (the base has {facts.dtype})"
            )
            message = f"contains {place}, {reason}; it cannot be compared with the base's"
            return Finding("U_BASE_WEIGHT", WEIGHTS_FILE, message)
        if facts.shape == spec.shape and self._sha256(spec) == facts.sha256:
            return Finding("W_FULL_WEIGHT", WEIGHTS_FILE, f"contains {place}, a copy of the base's own")
        message = f"contains {place}, which differs from the base's and would replace it"
        save_again = "save the adapter again with `save_embedding_layers=False`"
        hint = COPY_HINT if facts.shape != spec.shape else save_again
        return Finding("E_BASE_WEIGHT", WEIGHTS_FILE, message, hint=hint)

    def _sha256(self, spec: TensorSpec) -> str:
        import hashlib

        hasher = hashlib.sha256()
        try:
            for piece in self.subject.held.chunks(spec.start, spec.end, PIECE_BYTES):
                hasher.update(piece)
        except OSError as error:
            raise MalformedTensorFile(WEIGHTS_FILE, f"cannot be read: {error.strerror}") from None
        return hasher.hexdigest()


def _mismatch(message: str, hint: str = "") -> Finding:
    return Finding("E_BASE_MISMATCH", WEIGHTS_FILE, message, hint=hint or _HINT)


def _shape(spec: TensorSpec | None) -> list[int]:
    return list(spec.shape) if spec else []


def _fits(pair: KeyPair, base: tuple[int, ...], fan_in_fan_out: bool) -> bool:  # noqa: FBT001 - PEFT's own word
    """Return whether B @ A has the shape of the base's weight.

    Linear [out, in]; Conv1D [in, out]; embedding [entries, width]; convolution [out, in / groups, *kernel].
    """
    assert pair.whole
    a, b = pair.whole[0].shape, pair.whole[1].shape
    if pair.kind == "embedding":
        return base == pair.update
    if len(a) > _MATRIX:
        same_width = len(base) == len(a) and (base[1] == a[1] or (base[1] and a[1] % base[1] == 0))
        return bool(same_width) and base[0] == b[0] and base[2:] == a[2:]
    turned = fan_in_fan_out or pair.module.rpartition(".")[2] in _CONV1D
    return base == pair.update or (turned and base == (a[1], b[0]))
