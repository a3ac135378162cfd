"""Compares the tensors with each other and with the config: pairs, ranks, shapes, and no tensor without a place."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from adapterhub.formats.dialects.wrapped import is_named
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.peft.config import endings, owner
from adapterhub.formats.peft.keys import PREFIX, KeyPair
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.report import some
from adapterhub.trust.verify.subject import Subject

_MATRIX: Final = 2


def check(subject: Subject) -> Iterator[Finding]:
    """Check that every tensor belongs to a pair of the rank in the config, or to something else the config names."""
    if subject.config.is_lora:
        yield from _halves(subject)
        if not subject.config.reshapes:
            yield from _shapes(subject)
            yield from _ranks(subject)
        yield from _targets(subject)
    else:
        yield from _method(subject)
    keys = subject.keys
    if keys.others:
        yield from _rest(subject)
    if keys.saved:
        modules = dict.fromkeys(name.rpartition(".")[0] for name, _ in keys.saved)
        size = sum(spec.size_bytes for _, spec in keys.saved)
        message = f"contains {some(modules)} whole ({size:,} bytes); they replace the base's while the adapter is on"
        yield Finding("W_FULL_WEIGHT", WEIGHTS_FILE, message)
    if keys.biases:
        message = f"changes {len(keys.biases)} biases of the base (`bias: {subject.config.bias}`), on or off"
        yield Finding("W_BIAS", WEIGHTS_FILE, message)


def _error(code: str, message: str, expected: str = "", hint: str = "") -> Finding:
    return Finding(code, WEIGHTS_FILE, message, expected=expected, hint=hint)


def _halves(subject: Subject) -> Iterator[Finding]:
    pairs = subject.keys.pairs
    if not pairs and not subject.keys.tokens:
        yield _error("E_PAIR", "holds no LoRA pair", "tensors named `base_model.model.….lora_A.weight` and `lora_B`")
    broken: dict[str, list[str]] = {"A": [], "B": [], "": []}
    for pair in pairs:
        if pair.a is None or pair.b is None:
            broken["A" if pair.a else "B" if pair.b else ""].append(pair.module)
    for half, other in (("A", "B"), ("B", "A")):
        if alone := broken[half]:
            yield _error("E_PAIR", f"lora_{half} without lora_{other} on {some(alone)}", "both halves of every pair")
    if odd := broken[""]:
        yield _error("E_PAIR", f"parts of a LoRA pair without its matrices on {some(odd)}")


def _shapes(subject: Subject) -> Iterator[Finding]:
    flat: list[str] = []
    unlike: list[str] = []
    vectors: list[str] = []
    for pair in subject.keys.pairs:
        if pair.whole is None:
            specs = [spec for spec in (pair.a, pair.b) if spec is not None]
            flat += [f"{s.name} {list(s.shape)}" for s in specs if len(s.shape) < _MATRIX or not all(s.shape)]
        elif not _is_layout(pair):
            unlike.append(f"{pair.module} (A {list(pair.whole[0].shape)}, B {list(pair.whole[1].shape)})")
        if pair.magnitude or pair.bias:
            vectors += _vectors(pair)
    if flat:
        yield _error(
            "E_SHAPE",
            f"not a matrix, or one with an empty side: {some(flat)}",
            "A [r, in] and B [out, r]",
            hint="a distributed trainer saved the weights before gathering its shards",
        )
    if unlike:
        yield _error("E_SHAPE", f"A and B do not fit together on {some(unlike)}", "those of a matrix or a convolution")
    if vectors:
        yield _error("E_SHAPE", f"not one number for each output: {some(vectors)}")


def _is_layout(pair: KeyPair) -> bool:
    assert pair.whole
    a, b = len(pair.whole[0].shape), pair.whole[1].shape
    return a == len(b) and (a == _MATRIX or (pair.kind != "embedding" and set(b[_MATRIX:]) <= {1}))


def _vectors(pair: KeyPair) -> Iterator[str]:
    """DoRA's magnitudes and B's bias that do not have one number for each output."""
    out = pair.b.shape[0] if pair.b and pair.b.shape else None
    for spec in (pair.magnitude, pair.bias):
        if spec is not None and out is not None and spec.elements != out:
            yield f"{spec.name} {list(spec.shape)}"


def _ranks(subject: Subject) -> Iterator[Finding]:
    config = subject.config
    apart: list[str] = []
    high: list[str] = []
    against: dict[tuple[int, int], list[str]] = defaultdict(list)
    usual = None if config.rank_pattern else config.rank_of("")
    for pair in subject.keys.pairs:
        if pair.whole is None or not _is_layout(pair):
            continue
        a, b = pair.whole[0].shape, pair.whole[1].shape
        if a[0] != b[1] and not (len(a) > _MATRIX and a[0] % b[1] == 0):  # a grouped convolution splits B
            apart.append(f"{pair.module} ({a[0]} and {b[1]})")
            continue
        # The A of an embedding is as wide as its vocabulary.
        is_high = a[0] > min(b[0], math.prod(a[1:]))
        if a[0] == usual and not is_high:
            continue  # nearly always
        parameters = config.parameters_of(pair.module)
        ranks = {config.rank_of(name) for name in parameters or (owner(pair.module),)}
        experts = bool(parameters) and any(a[0] % rank == 0 for rank in ranks)  # a pair for each, side by side
        if a[0] not in ranks and not experts:
            against[a[0], min(ranks)].append(pair.module)
        if is_high and not experts:
            high.append(pair.module)
    if apart:
        yield _error("E_RANK", f"A and B differ in rank on {some(apart)}")
    for (found, stated), modules in sorted(against.items()):
        yield _error("E_RANK", f"rank {found} on {some(modules)}", f"rank {stated}, as {CONFIG_FILE} says")
    if high:
        message = f"the rank is larger than the matrix on {some(high)}; a lower rank can hold the same update"
        yield Finding("W_RANK", WEIGHTS_FILE, message)


def _targets(subject: Subject) -> Iterator[Finding]:
    config, pairs = subject.config, subject.keys.pairs
    if config.targets_all or "ensure_weight_tying" in config.variants:  # PEFT adds the tied module to the targets
        return
    stray: list[str] = []
    last_names: set[str] = set()
    for pair in pairs:
        last_names.add(pair.module.rpartition(".")[2])
        if not config.targets(owner(pair.module)) and not config.parameters_of(pair.module):
            stray.append(pair.module)
    if stray:
        yield _error(
            "E_PAIR",
            f"pairs on {some(stray)}, which the config does not target: PEFT would silently ignore them",
            f"modules that `target_modules` in {CONFIG_FILE} names",
        )
    if isinstance(config.target_modules, tuple) and not last_names.issuperset(config.target_modules):
        others = [target for target in config.target_modules if target not in last_names]
        there = {ending for pair in pairs for ending in endings(pair.module)}
        # PEFT writes the modules of `all-linear` in full, with those that `exclude_modules` leaves out.
        absent = [target for target in others if target not in there and config.targets(target)]
        if absent:
            message = f"targets {some(absent)}, for which there are no weights"
            yield Finding("W_TARGETS", CONFIG_FILE, message)


def _method(subject: Subject) -> Iterator[Finding]:
    config, keys = subject.config, subject.keys
    marks = config.method.marks
    if marks and not keys.marked:
        found = some(spec.name for spec in subject.weights.tensors)
        yield _error(
            "E_UNSUPPORTED",
            f"no tensor belongs to {config.peft_type}, the method of the config; found {found}",
            f"names with {' or '.join(f'`{m}`' for m in marks)}",
        )
        return
    checked = f"tensors of {config.peft_type} are checked when it is attached, not here"
    never = f"{config.peft_type} can be stored and shared, but not attached or merged here"
    message = checked if config.method.factors else never
    yield Finding("U_METHOD", WEIGHTS_FILE, message)


def _rest(subject: Subject) -> Iterator[Finding]:
    """Tensors that do not belong to the method: nearly all would overwrite the base."""
    config, others = subject.config, subject.keys.others
    if not config.is_lora and not subject.keys.marked:
        return  # `_method` reports it
    in_memory: list[str] = []
    parts: list[str] = []
    base: list[str] = []
    for spec in others:
        is_part = "lora_" in spec.name or "trainable_tokens" in spec.name
        (in_memory if is_named(spec.name) else parts if is_part else base).append(spec.name)
    if in_memory:
        yield _error(
            "E_PAIR",
            f"{some(in_memory)} are of several adapters in memory, by their names",
            "one adapter in a file, as `save_pretrained` writes it",
        )
    if parts:
        yield _error("E_PAIR", f"not tensors of a LoRA adapter: {some(parts)}", f"`{PREFIX}….lora_A.weight` and such")
    if base:
        yield _error(
            "E_BASE_WEIGHT",
            f"contains weights of the base model, which an adapter must not replace: {some(base)}",
            "`lora_` tensors, or modules that `modules_to_save` names",
            hint="save the adapter again with PEFT, or name those modules in `modules_to_save`",
        )
