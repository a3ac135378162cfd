"""Compares the tensors with each other and with the config: pairs, ranks, shapes, and no tensor without a place."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.peft.config import endings, owner
from adapterhub.formats.peft.keys import PREFIX, KeyPair
from adapterhub.trust.verify.report import Finding, some
from adapterhub.trust.verify.subject import Subject

_MATRIX: Final = 2
_NESTED: Final = PREFIX * 2


def check(subject: Subject) -> Iterator[Finding]:
    """Every tensor must belong to a pair of the rank that the config says, or to something else the config names."""
    nested = [spec.name for spec in subject.weights.tensors if spec.name.startswith(_NESTED)]
    if nested:
        yield _error(
            "E_UNSUPPORTED",
            f"was saved from a PEFT model inside another PEFT model: {some(nested)}",
            f"one `{PREFIX}` before the name of a module",
            hint="wrap the base once: call `merge_and_unload()` or `unload()` before the second `get_peft_model`",
        )
        return
    if subject.config.is_lora:
        yield from _halves(subject)
        if not any(variant.reshapes for variant in subject.config.variants.values()):
            yield from _shapes(subject)
            yield from _ranks(subject)
        yield from _targets(subject)
    else:
        yield from _method(subject)
    yield from _rest(subject)
    yield from _whole_modules(subject)


def _error(code: str, message: str, expected: str = "", hint: str = "") -> Finding:
    where = WEIGHTS_FILE
    return Finding(code=code, severity="error", where=where, message=message, expected=expected, hint=hint)


def _halves(subject: Subject) -> Iterator[Finding]:
    pairs = subject.keys.pairs
    if not pairs and not subject.keys.tokens:
        yield _error("E_PAIR", "holds no LoRA pair", "tensors named `base_model.model.….lora_A.weight` and `lora_B`")
    broken = [p for p in pairs if p.a is None or p.b is None]
    for half, other in (("A", "B"), ("B", "A")):
        alone = [p.module for p in broken if (p.a if half == "A" else p.b) is not None]
        if alone:
            yield _error("E_PAIR", f"lora_{half} without lora_{other} on {some(alone)}", "both halves of every pair")
    odd = [p.module for p in broken if p.a is None and p.b is None]
    if odd:
        yield _error("E_PAIR", f"parts of a LoRA pair without its matrices on {some(odd)}")


def _shapes(subject: Subject) -> Iterator[Finding]:
    pairs = subject.keys.pairs
    specs = [spec for pair in pairs if not pair.whole for spec in (pair.a, pair.b) if spec is not None]
    flat = [f"{s.name} {list(s.shape)}" for s in specs if len(s.shape) < _MATRIX or not all(s.shape)]
    if flat:
        yield _error(
            "E_SHAPE",
            f"not a matrix, or one with an empty side: {some(flat)}",
            "A [r, in] and B [out, r]",
            hint="a distributed trainer saved the weights before gathering its shards",
        )
    unlike = [
        f"{pair.module} (A {list(pair.whole[0].shape)}, B {list(pair.whole[1].shape)})"
        for pair in pairs
        if pair.whole and not _is_layout(pair)
    ]
    if unlike:
        yield _error("E_SHAPE", f"A and B do not fit together on {some(unlike)}", "those of a matrix or a convolution")
    vectors = [text for pair in pairs if pair.magnitude or pair.bias for text in _vectors(pair)]
    if vectors:
        yield _error("E_SHAPE", f"not one number for each output: {some(vectors)}")


def _is_layout(pair: KeyPair) -> bool:
    assert pair.whole
    a, b = len(pair.whole[0].shape), pair.whole[1].shape
    if a == len(b) == _MATRIX:
        return True
    return a == len(b) and pair.kind != "embedding" and set(b[_MATRIX:]) <= {1}


def _vectors(pair: KeyPair) -> Iterator[str]:
    """DoRA's magnitudes and B's bias that do not have one number for each output."""
    out = pair.b.shape[0] if pair.b and pair.b.shape else None
    for spec in (pair.magnitude, pair.bias):
        if spec is not None and out is not None and spec.elements != out:
            yield f"{spec.name} {list(spec.shape)}"


def _ranks(subject: Subject) -> Iterator[Finding]:
    config = subject.config
    apart: list[str] = []
    against: dict[tuple[int, int], list[str]] = defaultdict(list)
    high: list[str] = []
    usual = set() if config.rank_pattern else {config.rank_of("")}
    for pair in subject.keys.pairs:
        if not pair.whole:
            continue
        a, b = pair.whole
        if a.shape[0] == b.shape[1] and a.shape[0] in usual and a.shape[0] <= min(a.shape[1], b.shape[0]):
            continue  # nearly always
        if not _is_layout(pair):
            continue
        grouped = len(a.shape) > _MATRIX and a.shape[0] % b.shape[1] == 0  # a grouped convolution splits B
        if a.shape[0] != b.shape[1] and not grouped:
            apart.append(f"{pair.module} ({a.shape[0]} and {b.shape[1]})")
            continue
        # The A of an embedding is as wide as its vocabulary.
        is_high = a.shape[0] > min(b.shape[0], math.prod(a.shape[1:]))
        if a.shape[0] in usual and not is_high:
            continue
        parameters = config.parameters_of(pair.module)
        ranks = {config.rank_of(name) for name in parameters or (owner(pair.module),)}
        experts = bool(parameters) and any(a.shape[0] % rank == 0 for rank in ranks)  # a pair for each, side by side
        if a.shape[0] not in ranks and not experts:
            against[a.shape[0], min(ranks)].append(pair.module)
        if is_high and not experts:
            high.append(pair.module)
    if apart:
        yield _error("E_RANK", f"A and B differ in rank on {some(apart)}")
    for (found, stated), modules in sorted(against.items()):
        yield _error("E_RANK", f"rank {found} on {some(modules)}", f"rank {stated}, as {CONFIG_FILE} says")
    if high:
        message = f"the rank is larger than the matrix on {some(high)}; a lower rank can hold the same update"
        yield Finding(code="W_RANK", severity="warning", where=WEIGHTS_FILE, message=message)


def _targets(subject: Subject) -> Iterator[Finding]:
    config, pairs = subject.config, subject.keys.pairs
    if config.targets_all or "ensure_weight_tying" in config.variants:  # PEFT adds the tied module to the targets
        return
    stray = [p.module for p in pairs if not config.holds_parameters(p.module) and not config.targets(owner(p.module))]
    if stray:
        yield _error(
            "E_PAIR",
            f"pairs on {some(stray)}, which the config does not target: PEFT would silently ignore them",
            f"modules that `target_modules` in {CONFIG_FILE} names",
        )
    if isinstance(config.target_modules, tuple):
        last_names = {pair.module.rpartition(".")[2] for pair in pairs}
        others = [target for target in config.target_modules if target not in last_names]
        there = {ending for pair in pairs for ending in endings(pair.module)} if others else set()
        # PEFT writes the modules of `all-linear` in full, with those that `exclude_modules` leaves out.
        absent = [target for target in others if target not in there and config.targets(target)]
        if absent:
            message = f"targets {some(absent)}, for which there are no weights"
            yield Finding(code="W_TARGETS", severity="warning", where=CONFIG_FILE, message=message)


def _method(subject: Subject) -> Iterator[Finding]:
    config, keys = subject.config, subject.keys
    marks = config.method.marks
    if marks and not keys.marked:
        yield _error(
            "E_UNSUPPORTED",
            f"no tensor belongs to {config.peft_type}, the method of the config; found {some(_names(subject))}",
            f"names with {' or '.join(f'`{m}`' for m in marks)}",
        )
        return
    checked = f"tensors of {config.peft_type} are checked when it is attached, not here"
    never = f"{config.peft_type} can be stored and shared, but not attached or merged here"
    message = checked if config.method.factors else never
    yield Finding(code="U_METHOD", severity="unknown", where=WEIGHTS_FILE, message=message)


def _names(subject: Subject) -> list[str]:
    return [spec.name for spec in subject.weights.tensors]


def _rest(subject: Subject) -> Iterator[Finding]:
    """Tensors that do not belong to the method: nearly all would overwrite the base."""
    config, others = subject.config, subject.keys.others
    if not config.is_lora and not subject.keys.marked:
        return  # `_method` reports it
    strange = [spec.name for spec in others if not spec.name.startswith(PREFIX)]
    in_memory = [n for n in strange + [s.name for s in others] if ".default" in n and "lora_" in n]
    parts = [s.name for s in others if ("lora_" in s.name or "trainable_tokens" in s.name) and s.name not in in_memory]
    if in_memory:
        yield _error(
            "E_PAIR",
            f"{some(dict.fromkeys(in_memory))} contain the adapter's name in memory, so PEFT would not find them",
            "names as `save_pretrained` writes them",
        )
    base = [s.name for s in others if s.name not in in_memory and s.name not in parts]
    if parts:
        yield _error("E_PAIR", f"not tensors of a LoRA adapter: {some(parts)}", f"`{PREFIX}….lora_A.weight` and such")
    if base:
        yield _error(
            "E_BASE_WEIGHT",
            f"contains weights of the base model, which an adapter must not replace: {some(base)}",
            "`lora_` tensors, or modules that `modules_to_save` names",
            hint="save the adapter again with PEFT, or name those modules in `modules_to_save`",
        )


def _whole_modules(subject: Subject) -> Iterator[Finding]:
    keys = subject.keys
    if keys.saved:
        modules = dict.fromkeys(name.rpartition(".")[0] for name, _ in keys.saved)
        size = sum(spec.size_bytes for _, spec in keys.saved)
        message = f"contains {some(modules)} whole ({size:,} bytes); they replace the base's while the adapter is on"
        yield Finding(code="W_FULL_WEIGHT", severity="warning", where=WEIGHTS_FILE, message=message)
    if keys.biases:
        message = f"changes {len(keys.biases)} biases of the base (`bias: {subject.config.bias}`), on or off"
        yield Finding(code="W_BIAS", severity="warning", where=WEIGHTS_FILE, message=message)
