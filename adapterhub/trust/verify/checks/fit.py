"""Compares the modules of an adapter with its base: whether they exist, have the right shape, and are complete."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from adapterhub.core.disk.held_file import PIECE_BYTES
from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.formats.base.fingerprint import COPY_HINT, OUTPUT_HEADS, is_embedding, resize_hint
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.modules import NameRule, find_names
from adapterhub.formats.peft.keys import KeyPair
from adapterhub.formats.safetensors.header import TensorFacts, TensorSpec
from adapterhub.trust.verify.report import Finding, some
from adapterhub.trust.verify.subject import Subject

_MATRIX: Final = 2
_CONV1D: Final = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})  # transformers' Conv1D, which stores [in, out]
_PACKED: Final = frozenset({"U8", "I8", "I32", "U32", "I16", "U16"})
_HINT: Final = "give the base the adapter was trained on; `base_model_name_or_path` in its config names it"


def check(subject: Subject) -> Iterator[Finding]:
    """Modules that the base lacks, shapes that differ, targets that were left out, and copies of base weights."""
    if not subject.config.is_lora:
        return
    yield from _copies_unseen(subject)
    if subject.base_tensors is None:
        return
    config = subject.config
    if any(variant.reshapes for variant in config.variants.values()) or config.layer_replication:
        message = "shapes or layers are rearranged by this variant; its fit to the base is not checked"
        yield Finding(code="U_SHAPE", severity="unknown", where=CONFIG_FILE, message=message)
        return
    yield from _Fit(subject, subject.base_tensors).findings()


def _copies_unseen(subject: Subject) -> Iterator[Finding]:
    if subject.base_tensors is None and subject.keys.copies:
        yield Finding(
            code="U_BASE_WEIGHT",
            severity="unknown",
            where=WEIGHTS_FILE,
            message=f"contains {some(name for name, _ in subject.keys.copies)}, which claims to be a copy of the "
            "base's; only a comparison with the base can tell",
            hint="give the base with `--base`",
        )


class _Fit:
    """One adapter on one base."""

    def __init__(self, subject: Subject, tensors: Mapping[str, TensorFacts]) -> None:
        self.subject, self.tensors = subject, tensors
        self.modules = frozenset(name.rpartition(".")[0] for name in tensors)
        self.pairs = [p for p in subject.keys.pairs if p.whole and not subject.config.holds_parameters(p.module)]
        self.names = find_names([p.module for p in self.pairs], self.modules)

    def findings(self) -> Iterator[Finding]:
        rule, mapped = self.names.rule, self.names.mapped(pair.module for pair in self.pairs)
        if rule != NameRule():
            message = f"its module names `{shown(rule.dropped)}…` are `{shown(rule.added)}…` in the base"
            yield Finding(code="N_NAMES", severity="note", where=WEIGHTS_FILE, message=message)
        if mapped:
            yield Finding(code="N_NAMES", severity="note", where=WEIGHTS_FILE, message=f"its {mapped}")
        if len(self.pairs) < sum(1 for p in self.subject.keys.pairs if p.whole):
            message = "pairs on `target_parameters` are not compared with the base"
            yield Finding(code="U_SHAPE", severity="unknown", where=CONFIG_FILE, message=message)
        yield from self._fits()
        yield from self._left_out()
        yield from self._whole()
        for name, spec in self.subject.keys.copies:
            yield self._copy(self.names.tensor(name), spec)

    def _fits(self) -> Iterator[Finding]:
        lacking: list[str] = []
        differing: list[str] = []
        resized = ""
        packed: list[str] = []
        for pair in self.pairs:
            weight = self._weight(pair)
            if weight is None:
                (packed if self._is_packed(pair) else lacking).append(pair.module)
            elif weight.dtype in _PACKED:
                packed.append(pair.module)
            elif not _fits(pair, weight.shape, self.subject.config.fan_in_fan_out):
                differing.append(f"{pair.module} (A {_shape(pair.a)}, B {_shape(pair.b)}, base {list(weight.shape)})")
                resized = resized or resize_hint(pair.module, weight.shape, _update_shape(pair))
        total = len(self.pairs)
        if lacking:
            yield _mismatch(f"the base lacks {some(lacking)}: {len(lacking)} of {total} modules are missing")
        if differing:
            yield _mismatch(
                f"made for other shapes: {some(differing)}; {len(differing)} of {total} modules differ", resized
            )
        if packed:
            message = f"the base is quantised on {some(packed)}; shapes cannot be compared"
            yield Finding(code="U_SHAPE", severity="unknown", where=WEIGHTS_FILE, message=message)
        tied = [p.module for p in self.pairs if self._is_tied(p)]
        if tied:
            message = f"{some(tied)} is the input embedding too in this base; merging into it would change both"
            yield Finding(code="W_TIED", severity="warning", where=WEIGHTS_FILE, message=message)

    def _weight(self, pair: KeyPair) -> TensorFacts | None:
        name = self.names.here(pair.module)
        own = self.tensors.get(f"{name}.weight") or self.tensors.get(f"{name}.in_proj_weight")
        return own or (self._embedding() if self._is_tied(pair) else None)

    def _is_tied(self, pair: KeyPair) -> bool:
        """Whether the base's file leaves this output head out, because it is the input embedding."""
        leaf = pair.module.rpartition(".")[2]
        return (
            leaf in OUTPUT_HEADS and self.names.here(pair.module) not in self.modules and self._embedding() is not None
        )

    def _embedding(self) -> TensorFacts | None:
        names = sorted(n for n in self.tensors if is_embedding(n.removesuffix(".weight")))
        matrices = [self.tensors[n] for n in names if len(self.tensors[n].shape) == _MATRIX]
        return max(matrices, key=lambda t: t.shape[0], default=None)

    def _is_packed(self, pair: KeyPair) -> bool:
        name = self.names.here(pair.module)
        return any(f"{name}.{tail}" in self.tensors for tail in ("qweight", "weight_packed", "weight.absmax"))

    def _left_out(self) -> Iterator[Finding]:
        """Modules of the base that the config targets and that have no weights; PEFT fills them with zeros."""
        config = self.subject.config
        if config.targets_all or not self.pairs:
            return
        having = {self.names.here(pair.module) for pair in self.subject.keys.pairs}
        missing = [
            module
            for name, facts in sorted(self.tensors.items())
            if name.endswith(".weight") and len(facts.shape) >= _MATRIX
            if (module := name.removesuffix(".weight")) not in having and config.targets(self.names.there(module))
        ]
        if missing:
            message = (
                f"targets {len(missing)} more modules of this base, for which there are no weights: {some(missing)}"
            )
            yield Finding(code="W_TARGETS", severity="warning", where=CONFIG_FILE, message=message)

    def _whole(self) -> Iterator[Finding]:
        """Whole modules must have the base's shape, unless the base has no such module."""
        groups = (*self.subject.keys.saved, *self.subject.keys.biases)
        wrong = [
            (name, spec.shape, facts.shape)
            for name, spec in groups
            if (facts := self.tensors.get(self.names.tensor(name))) is not None and facts.shape != spec.shape
        ]
        if wrong:
            listed = some(f"{name} ({list(own)}, base {list(here)})" for name, own, here in wrong)
            hints = (resize_hint(name.rpartition(".")[0], here, own) for name, own, here in wrong)
            yield _mismatch(f"contains modules of other shapes: {listed}", next(filter(None, hints), ""))
        for module, spec in self.subject.keys.tokens:
            facts = self.tensors.get(f"{self.names.here(module)}.weight")
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
            return Finding(code="U_BASE_WEIGHT", severity="unknown", where=WEIGHTS_FILE, message=message)
        if facts.shape == spec.shape and self._sha256(spec) == facts.sha256:
            message = f"contains {place}, a copy of the base's own"
            return Finding(code="W_FULL_WEIGHT", severity="warning", where=WEIGHTS_FILE, message=message)
        return Finding(
            code="E_BASE_WEIGHT",
            severity="error",
            where=WEIGHTS_FILE,
            message=f"contains {place}, which differs from the base's and would replace it",
            hint=COPY_HINT
            if facts.shape != spec.shape
            else "save the adapter again with `save_embedding_layers=False`",
        )

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
    return Finding(code="E_BASE_MISMATCH", severity="error", where=WEIGHTS_FILE, message=message, hint=hint or _HINT)


def _shape(spec: TensorSpec | None) -> list[int]:
    return list(spec.shape) if spec else []


def _update_shape(pair: KeyPair) -> tuple[int, ...]:
    """The shape of B @ A, as the weight of a linear layer or an embedding has it."""
    assert pair.whole
    a, b = pair.whole[0].shape, pair.whole[1].shape
    return (a[1], b[0]) if pair.kind == "embedding" else (b[0], a[1])


def _fits(pair: KeyPair, base: tuple[int, ...], fan_in_fan_out: bool) -> bool:  # noqa: FBT001 - PEFT's own word
    """Whether B @ A has the shape of the base's weight.

    Linear [out, in]; Conv1D [in, out]; embedding [entries, width]; convolution [out, in / groups, *kernel].
    """
    assert pair.whole
    a, b = pair.whole[0].shape, pair.whole[1].shape
    if pair.kind == "embedding":
        return base == _update_shape(pair)
    if len(a) > _MATRIX:
        same_width = len(base) == len(a) and (base[1] == a[1] or (base[1] and a[1] % base[1] == 0))
        return bool(same_width) and base[0] == b[0] and base[2:] == a[2:]
    turned = fan_in_fan_out or pair.module.rpartition(".")[2] in _CONV1D
    return base == _update_shape(pair) or (turned and base == (a[1], b[0]))
