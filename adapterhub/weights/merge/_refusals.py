"""What cannot be added up, in words: every reason, for every adapter, and the way out where there is one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from adapterhub.core.errors import MergeRefused, shown
from adapterhub.formats.peft.methods import CONVERTIBLE_STARTS, VARIANTS
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.lowrank.layouts import PEFT_PREFIX
from adapterhub.weights.merge._carried import recognised
from adapterhub.weights.merge.source import MergeAdapter

MODULES_SHOWN = 200
"""A refusal names this many modules; a model has a few hundred, a hostile file may have sixty thousand."""

_LORA: Final = ".lora_"
_FOR_TRAINING: Final = ".lora_velora_embed"  # what VeLoRA squeezes inputs with for the backward pass; forward is plain
_KINDS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r".*lora_magnitude_vector.*"), "a DoRA magnitude"),
    (re.compile(r".*\.lora_.*\.bias"), "a bias inside a LoRA pair (lora_bias), which its config does not announce"),
    (re.compile(r".*\.base_layer\.weight"), "a saved copy of a base weight that is no embedding"),
    (re.compile(r".*\.bias"), "a trained bias of the base, which its config does not announce (bias)"),
    (re.compile(r".*trainable_tokens.*"), "trained rows of an embedding that its config does not announce"),
    (re.compile(re.escape(PEFT_PREFIX) + ".*"), "which is no LoRA factor"),
)


def refuse(reasons: Sequence[str], hint: str = "") -> None:
    """Raise if there is any reason to.

    Raises:
        MergeRefused: with the reasons.
    """
    if reasons:
        rest = len(reasons) - MODULES_SHOWN
        listed = [*reasons[:MODULES_SHOWN], *([f"and {rest} more"] if rest > 0 else [])]
        raise MergeRefused("these adapters cannot be merged", listed, hint=hint)


def foreign(source: MergeAdapter) -> Iterator[str]:
    """What rules an adapter out even if all that is done is to copy it: it is no LoRA, or not only one."""
    factors = source.factors
    if not factors.config.method.merges:
        yield f"is of type {shown(factors.config.peft_type)}, expected LORA"
    elif not any(_LORA in spec.name for spec in factors.header.tensors):
        yield "holds no LoRA factors"
    else:
        yield from (_unknown(spec.name) for spec in _not_recognised(source) if _LORA not in spec.name)


def own_reasons(source: MergeAdapter, *, nonlinear: str = "") -> Iterator[str]:
    """What rules one adapter out whatever it is merged with.

    `nonlinear` is the name of a method that is no sum, and so has no rule for biases.
    """
    yield from foreign(source)
    config = source.factors.config
    if not config.method.merges:
        return
    variants = [one.what for one in config.variants.values() if one.merging == "never"]
    yield from variants
    if config.lora_bias and nonlinear:
        yield f"trained a bias inside its factors (lora_bias), which `{nonlinear}` has no rule for"
    init = config.init_lora_weights
    if config.start_changes_base:
        yield (
            f"was initialised from the base weights (init_lora_weights {shown(init)}) and changed them; its update is "
            "relative to those, not to the base"
        )
    elif config.start_is_unknown:
        yield f"has an initialisation that is not known here ({shown(init)}); it may have changed the base weights"
    for module, reason in source.factors.unclear.items():
        yield f"holds a pair on `{shown(module)}` that {reason}"
    if not variants:  # which bring tensors of their own
        yield from (_unknown(spec.name) for spec in _not_recognised(source) if _LORA in spec.name)


def way_out(sources: Sequence[MergeAdapter], *, nonlinear: str = "") -> str:
    """What to do about adapters that are refused for what they are; empty where nothing helps."""
    hints = []
    for source in sources:
        config = source.factors.config
        if not config.method.merges:
            continue
        if config.use_dora:
            hints.append(f"a DoRA adapter is exact in a whole model: `adapt fuse {shown(source.label)} --into ./fused`")
        elif str(config.init_lora_weights).lower().startswith(CONVERTIBLE_STARTS):
            hints.append(
                "PEFT makes a plain LoRA of it where it was trained: `model.save_pretrained(path, "
                "path_initial_model_for_weight_conversion=initial)`, `initial` being a folder of the untrained adapter"
            )
        elif config.lora_bias and nonlinear:
            hints.append("`--method cat` and `--method svd` add up biases as well")
    return "; ".join(dict.fromkeys(hints))


def shared_settings(sources: Sequence[MergeAdapter]) -> tuple[dict[str, object], list[str]]:
    """The settings that all adapters must have alike, and a reason for each on which they differ."""
    settings: dict[str, object] = {}
    reasons = []
    for key, variant in VARIANTS.items():
        if variant.merging != "alike":
            continue
        values = [getattr(s.factors.config, key) or () for s in sources]
        having = [s for s, value in zip(sources, values, strict=True) if value]
        if having and len(set(values)) > 1:
            each = ", ".join(f"`{shown(s.label)}`" for s in having)
            reasons.append(f"{each} {variant.what}, but not all of these adapters do, or not alike")
        elif having:
            settings[key] = [list(v) if isinstance(v, tuple) else v for v in values[0]]
    return settings, reasons


def _not_recognised(source: MergeAdapter) -> Iterator[TensorSpec]:
    """The tensors that are neither factors nor announced by the config."""
    return (
        spec
        for spec in source.factors.others
        if recognised(source, spec) is None and not spec.name.endswith(_FOR_TRAINING)
    )


def _unknown(name: str) -> str:
    kind = next((kind for pattern, kind in _KINDS if pattern.fullmatch(name)), "which is not a name PEFT gives")
    return f"holds `{shown(name)}`, {kind}"
