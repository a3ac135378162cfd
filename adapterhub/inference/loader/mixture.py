"""Checks on several adapters for one model: modules that they share, and weights that they can have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch

from adapterhub.core.errors import MergeRefused, RefusedAdapter, shown
from adapterhub.formats.base.vocabulary import COPY_HINT
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.base.quantised import ensure_unpacked
from adapterhub.inference.loader.injection import ReadyAdapter
from adapterhub.inference.loader.reading.contents import LISTED, AdapterContents, limited


def check_copies(contents: AdapterContents, base: BaseModel) -> None:
    """Raise unless the adapter's copies of the base's embeddings equal them; PEFT may save copies with an adapter.

    Raises:
        RefusedAdapter: the adapter has a trained or resized embedding, which would replace that of the base.
        UnsupportedAdapter: it would damage modules that are quantised here.
    """
    magnitudes = contents.factors if contents.config.use_dora else ()
    ensure_unpacked(contents.label, base.modules, saved=contents.saved, magnitudes=magnitudes)
    if not contents.copies:
        return
    tensors = {tensor.name: tensor.tensor for tensor in base.tensors()}
    findings, hint = [], ""
    for name, spec in contents.copies.items():
        here = tensors[name].detach()
        if tuple(here.shape) != spec.shape or not torch.equal(contents.read(spec).to(here), here):
            findings.append(("E_BASE_WEIGHT", f"`{shown(spec.name)}` differs from the base's and would replace it"))
            hint = COPY_HINT if tuple(here.shape) != spec.shape else hint
    if findings:
        refusal = f"`{shown(contents.label)}` contains other weights of the base"
        raise RefusedAdapter(refusal, limited(findings), hint=hint)


def without_repeats(adapters: Sequence[AdapterContents]) -> list[AdapterContents]:
    """The adapters; a module that several replace with equal tensors stays with the first of them only.

    Raises:
        MergeRefused: two adapters replace a module, a bias or rows with different tensors, or one replaces what another
            adapts.
    """
    reasons: list[str] = _replaced_twice(adapters)
    first: dict[str, AdapterContents] = {}
    kept: list[AdapterContents] = []
    for adapter in adapters:
        own: dict[str, Mapping[str, TensorSpec]] = {}
        for module, specs in adapter.saved.items():
            earlier = first.setdefault(module, adapter)
            if earlier is adapter:
                own[module] = specs
            elif not _are_equal(earlier, adapter, module):
                reasons.append(
                    f"`{shown(module)}` is replaced whole by `{shown(earlier.label)}` and by `{shown(adapter.label)}`"
                )
        kept.append(replace(adapter, saved=MappingProxyType(own)))
    for adapter in kept:
        for module, owner in first.items():
            changed = [*adapter.factors, *adapter.biases, *adapter.rows]
            inside = [name for name in changed if name == module or name.startswith(module + ".")]
            reasons += [
                f"`{shown(n)}` is adapted by `{shown(adapter.label)}` and replaced whole by `{shown(owner.label)}`"
                for n in inside
            ]
    if reasons:
        raise MergeRefused("these adapters cannot be used together", reasons[:LISTED])
    return kept


def _replaced_twice(adapters: Sequence[AdapterContents]) -> list[str]:
    """A reason for each bias, and for each embedding with rows, that two adapters replace by different numbers."""
    reasons = []
    first: dict[str, AdapterContents] = {}
    for adapter in adapters:
        for name, spec in (*adapter.biases.items(), *adapter.rows.items()):
            earlier = first.setdefault(name, adapter)
            is_bias = name in adapter.biases
            before = (earlier.biases if is_bias else earlier.rows)[name]
            is_same = is_bias or earlier.trained_rows(name) == adapter.trained_rows(name)
            if not (is_same and _same_numbers(earlier, before, adapter, spec)):
                both = f"`{shown(earlier.label)}` and `{shown(adapter.label)}` both replace"
                what = "it (bias)" if is_bias else "rows of it (trainable_token_indices)"
                reasons.append(f"`{shown(name)}`: {both} {what}")
        others = {row for other in adapters if other is not adapter for row in other.rows}
        label = shown(adapter.label)
        reasons += [
            f"`{shown(name)}` is adapted by `{label}`, and another adapter replaces rows of it"
            for name in sorted(adapter.factors.keys() & others)
        ]
    return reasons


def check_mixture(adapters: Sequence[ReadyAdapter]) -> None:
    """Raise unless the adapters can be added up with their weights.

    Raises:
        MergeRefused: with every adapter that takes no weight, and with their methods if these differ.
    """
    reasons = []
    for adapter in adapters:
        if adapter.contents.config.adds or (len(adapters) == 1 and adapter.weight == 1):
            continue
        method = (
            "DoRA, whose magnitudes"
            if adapter.contents.config.use_dora
            else f"{adapter.contents.config.peft_type}, whose factors"
        )
        reasons.append(f"`{shown(adapter.contents.label)}` uses {method} do not add up: attach it alone, with weight 1")
    types = sorted({adapter.contents.config.peft_type for adapter in adapters})
    if len(types) > 1:
        reasons.append(f"they have {len(types)} different types: {', '.join(types)}")
    if reasons:
        raise MergeRefused("these adapters cannot be added up", reasons)


def _are_equal(one: AdapterContents, other: AdapterContents, module: str) -> bool:
    mine, theirs = one.saved[module], other.saved[module]
    if mine.keys() != theirs.keys():
        return False
    return all(_same_numbers(one, mine[key], other, theirs[key]) for key in mine)


def _same_numbers(one: AdapterContents, mine: TensorSpec, other: AdapterContents, theirs: TensorSpec) -> bool:
    if one is other:
        return True
    same_kind = (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
    return same_kind and torch.equal(one.read(mine), other.read(theirs))
