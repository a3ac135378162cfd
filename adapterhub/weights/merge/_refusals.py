"""The reasons why adapters cannot be merged, for every adapter, and what to do instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from adapterhub.core.errors import MergeRefused, shown
from adapterhub.formats.peft.layouts import PEFT_PREFIX
from adapterhub.formats.peft.methods import CONVERTIBLE_STARTS, METHODS, VARIANTS
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.lowrank.factors import WeightedAdapter
from adapterhub.weights.merge._carried import recognised

_LORA: Final = ".lora_"
_KINDS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r".*lora_magnitude_vector.*"), "a DoRA magnitude"),
    (re.compile(r".*\.lora_.*\.bias"), "a bias inside a LoRA pair, which its config does not announce (lora_bias)"),
    (re.compile(r".*\.base_layer\.weight"), "a copy of a base weight that is not an embedding"),
    (re.compile(r".*\.bias"), "a trained bias of the base, which its config does not announce (bias)"),
    (
        re.compile(r".*trainable_tokens.*"),
        "trained rows of an embedding, which its config does not announce (trainable_token_indices)",
    ),
    (re.compile(re.escape(PEFT_PREFIX) + ".*"), "which is not a LoRA factor"),
)


def raise_for(reasons: Sequence[str], hint: str = "") -> None:
    """Raise unless `reasons` is empty.

    Raises:
        MergeRefused: lists the reasons.
    """
    if reasons:
        raise MergeRefused("these adapters cannot be merged", reasons, hint=hint)


def foreign(adapter: WeightedAdapter) -> Iterator[str]:
    """Reasons against even copying an adapter: it is not a LoRA, or contains other tensors."""
    factors = adapter.factors
    if not factors.config.method.merges:
        mergeable = [name for name, method in METHODS.items() if method.merges]
        yield f"is of type {shown(factors.config.peft_type)}, expected {', '.join(mergeable[:-1])} or {mergeable[-1]}"
    elif not factors.modules and not (
        factors.config.is_lora and any(_LORA in spec.name for spec in factors.header.tensors)
    ):
        yield f"holds no {'LoRA' if factors.config.is_lora else factors.config.peft_type} factors"
    else:
        yield from (_unknown(spec.name) for spec in _not_recognised(adapter) if _LORA not in spec.name)


def own_reasons(adapter: WeightedAdapter, *, nonlinear: str = "") -> Iterator[str]:
    """Reasons against an adapter in any merge.

    `nonlinear` is the name of a method that does not sum, and so has no rule for biases.
    """
    yield from foreign(adapter)
    config = adapter.factors.config
    if not config.method.merges:
        return
    variants = [one.what for one in config.variants.values() if one.merging == "never"]
    yield from variants
    if config.lora_bias and nonlinear:
        yield f"has a bias inside its factors (lora_bias), and `{nonlinear}` has no rule for biases"
    init = config.init_lora_weights
    if config.start_changes_base:
        yield (
            f"changed the base weights when it was initialised (init_lora_weights {shown(init)}); its update is "
            "relative to the changed weights, not to the base"
        )
    elif config.start_is_unknown:
        yield f"has an unknown initialisation ({shown(init)}), which may have changed the base weights"
    for module, reason in adapter.factors.unclear.items():
        yield f"holds a pair on `{shown(module)}` that {reason}"
    yield from (_unknown(spec.name) for spec in _not_recognised(adapter) if _LORA in spec.name)
    if adapter.factors.component and adapter.factors.others:
        whole, component = shown(adapter.factors.others[0].name), adapter.factors.component
        yield f"is for the component `{component}` and holds `{whole}`, which cannot move into a pipeline's adapter"


def way_out(adapters: Sequence[WeightedAdapter], *, nonlinear: str = "") -> str:
    """What to do about adapters of these kinds instead; empty where nothing helps."""
    hints = []
    for adapter in adapters:
        config = adapter.factors.config
        if not config.method.merges:
            continue
        if config.use_dora:
            hints.append(f"a fused model holds a DoRA adapter exactly: `adapt fuse {shown(adapter.label)} -o ./fused`")
        elif str(config.init_lora_weights).lower().startswith(CONVERTIBLE_STARTS):
            hints.append(
                "PEFT converts it to a plain LoRA where it was trained: `model.save_pretrained(path, "
                "path_initial_model_for_weight_conversion=initial)`, where `initial` is a folder of the untrained "
                "adapter"
            )
        elif config.lora_bias and nonlinear:
            hints.append("`--method cat` and `--method svd` also add up biases")
    return "; ".join(dict.fromkeys(hints))


def shared_settings(adapters: Sequence[WeightedAdapter]) -> tuple[dict[str, object], list[str]]:
    """The settings that all adapters must share, and a reason for each setting on which they differ."""
    settings: dict[str, object] = {}
    reasons = []
    for key, variant in VARIANTS.items():
        if variant.merging != "alike":
            continue
        values = [getattr(s.factors.config, key) or () for s in adapters]
        holders = [s for s, value in zip(adapters, values, strict=True) if value]
        if holders and len(set(values)) > 1:
            each = ", ".join(f"`{shown(s.label)}`" for s in holders)
            reasons.append(f"{each} {variant.what}, but the other adapters do not, or differ in how")
        elif holders:
            settings[key] = [list(v) if isinstance(v, tuple) else v for v in values[0]]
    return settings, reasons


def _not_recognised(adapter: WeightedAdapter) -> Iterator[TensorSpec]:
    """The tensors that are not factors and that the config does not announce."""
    return (
        spec
        for spec in adapter.factors.others
        if recognised(adapter, spec) is None and not adapter.factors.config.is_of_variant(spec.name)
    )


def _unknown(name: str) -> str:
    kind = next((kind for pattern, kind in _KINDS if pattern.fullmatch(name)), "a name that PEFT does not use")
    return f"holds `{shown(name)}`, {kind}"
