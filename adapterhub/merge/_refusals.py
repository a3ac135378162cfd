"""What cannot be added up, in words: every reason, for every input and every module."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterhub.errors import MergeRefused, shown
from adapterhub.factors import PEFT_PREFIX, AdapterFactors, Layout
from adapterhub.peft_config import AdapterConfig, saved_name
from adapterhub.tensorfile import TensorSpec

MODULES_SHOWN = 200
"""A refusal names this many modules; a model has a few hundred, a hostile file may have sixty thousand."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """One adapter that takes part: its place, its name in messages, its weight (never 0), its open files."""

    folder: Path
    label: str
    weight: float
    factors: AdapterFactors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Saved:
    """A tensor that is carried over whole, as `modules_to_save` asks; `module` is its entry there."""

    module: str
    source: Source
    spec: TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What is to be merged: the layout of every module, sorted by name, and the tensors that are carried over."""

    layouts: Mapping[str, Layout]
    saved: Mapping[str, Saved]


def plan(sources: Sequence[Source], refusal: Callable[[Sequence[int]], str | None] | None) -> Plan:
    """The modules and saved tensors of all sources together. `refusal` is the method's own word on a module's ranks.

    Raises:
        MergeRefused: with every reason found.
    """
    reasons = [f"`{shown(s.label)}` {reason}" for s in sources for reason in _own_reasons(s)]
    layouts, more = _layouts(sources)
    reasons += more
    saved, more = _saved(sources, layouts)
    reasons += more
    if refusal is not None:
        for module in layouts:
            reason = refusal([s.factors.modules[module].rank if module in s.factors.modules else 0 for s in sources])
            if reason is not None:
                reasons.append(f"`{shown(module)}` {reason}")
    refuse(reasons)
    return Plan(layouts=layouts, saved=saved)


def refuse(reasons: Sequence[str]) -> None:
    """Raise if there is any reason to.

    Raises:
        MergeRefused: with the reasons.
    """
    if reasons:
        rest = len(reasons) - MODULES_SHOWN
        listed = [*reasons[:MODULES_SHOWN], *([f"and {rest} more"] if rest > 0 else [])]
        raise MergeRefused("these adapters cannot be merged", listed)


_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_VARIANTS: Final[Mapping[str, str]] = {
    "use_dora": "uses DoRA, whose magnitudes do not add up",
    "lora_bias": "trained a bias inside its factors (lora_bias), which `scale * B A` does not hold",
    "target_parameters": "targets parameters instead of modules (target_parameters)",
    "trainable_token_indices": "replaces rows of the embedding (trainable_token_indices)",
    "alora_invocation_tokens": "is switched on by tokens (aLoRA), which a sum cannot be",
    "layer_replication": "repeats layers of the base (layer_replication)",
    "use_qalora": "pools its inputs (QALoRA)",
    "use_bdlora": "has block-diagonal factors (BD-LoRA)",
    "arrow_config": "routes between adapters (Arrow)",
    "kasa_config": "cuts directions out of the base weights (KaSA)",
    "monteclora_config": "samples its weights (MonteCLoRA)",
    "megatron_config": "is made for Megatron's parallel layers",
    "ensure_weight_tying": "ties factors of two layers to each other (ensure_weight_tying)",
}


def _own_reasons(source: Source) -> Iterator[str]:
    """What rules one adapter out whatever it is merged with."""
    config = source.factors.config
    if config.peft_type != "LORA":
        yield f"is of type {shown(config.peft_type)}, expected LORA"
        return
    for key, reason in _VARIANTS.items():
        value = getattr(config, key, None) or config.extra.get(key)
        if value not in (None, False, (), [], {}):
            yield reason
    init = config.init_lora_weights
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        yield (
            f"was initialised from the base weights (init_lora_weights {shown(init)}) and changed them; its update is "
            "relative to those, not to the base (PEFT converts it: path_initial_model_for_weight_conversion)"
        )
    if not source.factors.modules:
        yield "holds no LoRA factors"
    for spec in source.factors.others:
        if _saved_module(spec.name, config) is None:
            yield f"holds `{shown(spec.name)}`, {_kind_of(spec.name)}"


_KINDS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r".*lora_magnitude_vector.*"), "a DoRA magnitude"),
    (re.compile(r".*\.lora_.*\.bias"), "a bias inside a LoRA pair (lora_bias)"),
    (re.compile(r".*\.base_layer\..*"), "a saved copy of a base weight (PEFT adds it to an embedding it targets)"),
    (re.compile(r".*\.bias"), "a trained bias of the base"),
    (re.compile(r".*trainable_tokens.*"), "trained rows of an embedding"),
    (re.compile(r".*(embed|lm_head|\.wte\.|\.wpe\.|\.shared\.).*"), "a saved copy of an embedding"),
    (re.compile(re.escape(PEFT_PREFIX) + ".*"), "which is no LoRA factor"),
)


def _kind_of(name: str) -> str:
    """What a tensor is that is neither a factor nor saved on request."""
    return next((kind for pattern, kind in _KINDS if pattern.fullmatch(name)), "which is not a name PEFT gives")


def _saved_module(name: str, config: AdapterConfig) -> tuple[str, str] | None:
    """The entry of `modules_to_save` that a tensor belongs to, and the full name of that module.

    PEFT looks for modules whose names end with an entry, dots or not.
    """
    if not name.startswith(PEFT_PREFIX):
        return None
    parts = saved_name(name).removeprefix(PEFT_PREFIX).split(".")
    paths = [".".join(parts[:count]) for count in range(1, len(parts))]
    entries = config.saved_modules
    return next(((entry, path) for path in paths for entry in entries if path.endswith(entry)), None)


def _layouts(sources: Sequence[Source]) -> tuple[dict[str, Layout], list[str]]:
    layouts: dict[str, Layout] = {}
    reasons = []
    for module in sorted({module for s in sources for module in s.factors.modules}):
        having = [(s, s.factors.modules[module].layout) for s in sources if module in s.factors.modules]
        layouts[module] = having[0][1]
        if len({layout for _, layout in having}) > 1:
            each = ", ".join(f"{layout} in `{shown(s.label)}`" for s, layout in having)
            reasons.append(f"`{shown(module)}` differs: {each}")
    return layouts, reasons


def _saved(sources: Sequence[Source], layouts: Mapping[str, Layout]) -> tuple[dict[str, Saved], list[str]]:
    saved: dict[str, Saved] = {}
    replaced: dict[str, Source] = {}
    reasons = []
    for source in sources:
        for spec in source.factors.others:
            found = _saved_module(spec.name, source.factors.config)
            if found is None:
                continue
            entry, path = found
            replaced.setdefault(path, source)
            first = saved.setdefault(saved_name(spec.name), Saved(module=entry, source=source, spec=spec))
            if not _same_tensor(first, source, spec):
                reasons.append(
                    f"`{shown(spec.name)}` of modules_to_save differs between `{shown(first.source.label)}` and "
                    f"`{shown(source.label)}`: a module that is replaced whole cannot be added up"
                )
    for path, source in replaced.items():
        reasons += [
            f"`{shown(module)}` has LoRA factors, and `{shown(source.label)}` replaces `{shown(path)}` whole"
            for module in layouts
            if module == path or module.startswith(path + ".")
        ]
    return saved, reasons


def _same_tensor(first: Saved, source: Source, spec: TensorSpec) -> bool:
    if source is first.source:
        return True
    if (spec.dtype, spec.shape) != (first.spec.dtype, first.spec.shape):
        return False
    return source.factors.data(spec) == first.source.factors.data(first.spec)
