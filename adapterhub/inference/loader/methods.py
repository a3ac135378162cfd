"""Builds PEFT's config for each method from an adapter's contents, with only checked numbers of its own config.

The configs built here name every module in full, so PEFT runs no pattern of a file. They request no initialisation,
because some kinds rewrite the base. They have no field that names code.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from torch import nn

from adapterhub.core.errors import MalformedConfig
from adapterhub.core.limits import limits
from adapterhub.formats.manifest import CONFIG_FILE
from adapterhub.formats.peft.fields import Fields
from adapterhub.formats.peft.patterns import Budget, FullPattern, PatternTooSlow
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.reading.contents import AdapterContents


class Scale(NamedTuple):
    """The factor on a module's update, `scaling`, with the rank and alpha that it comes from."""

    rank: int
    alpha: float
    scaling: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setup:
    """What makes the config for PEFT, and the scale of each module (empty for methods without one).

    `ranks`: rank by module where PEFT's config cannot express it.
    """

    config: Callable[[], Any]
    scales: Mapping[str, Scale]
    ranks: Mapping[str, int]
    warnings: tuple[str, ...] = ()


def set_up(contents: AdapterContents, base: BaseModel) -> Setup:
    """The settings with which PEFT builds this adapter's layers.

    Raises:
        MalformedConfig: a setting of the method has a wrong type.
    """
    make = MAKERS[contents.config.peft_type]
    return make(contents, _common(contents, base))


def _common(contents: AdapterContents, base: BaseModel) -> dict[str, Any]:
    """The settings that every method has."""
    transposed = _conv1d()
    return {
        "target_modules": contents.modules,
        "modules_to_save": sorted(contents.saved) or None,
        "fan_in_fan_out": any(isinstance(base.modules[name], transposed) for name in contents.modules),
        "inference_mode": True,
    }


def _conv1d() -> type[nn.Module]:
    """The transposed linear layer of GPT-2."""
    from transformers.pytorch_utils import Conv1D

    layer: type[nn.Module] = Conv1D
    return layer


def _peft(kind: str, **settings: Any) -> Callable[[], Any]:  # noqa: ANN401 - PEFT's own settings
    """Makes a config of PEFT when it is needed: a bank that adds the factors itself needs none."""

    def make() -> Any:  # noqa: ANN401 - PEFT has no types
        import peft

        return getattr(peft, kind)(**settings)

    return make


# ---------------------------------------------------------------- one maker a method
def _lora(contents: AdapterContents, common: dict[str, Any]) -> Setup:
    config = contents.config
    scales = _scales(contents)
    rank, pattern = _ranks({contents.parameters.get(name, name): scale.rank for name, scale in scales.items()})
    made = _peft(
        "LoraConfig",
        r=rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        rank_pattern=pattern,
        bias="none",
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        lora_bias=config.lora_bias,
        init_lora_weights=False,
        target_parameters=sorted(contents.parameters.values()) or None,
        **common,
    )
    return Setup(config=made, scales=scales, ranks={})


def _scales(contents: AdapterContents) -> dict[str, Scale]:
    config = contents.config
    if not config.rank_pattern and not config.alpha_pattern:
        name = next(iter(contents.factors), "")
        scale = Scale(config.rank_of(name), config.alpha_of(name), config.scaling_of(name))
        return dict.fromkeys(contents.factors, scale)
    called = {name: contents.adapters_name(name) for name in contents.factors}
    return {
        name: Scale(rank=config.rank_of(its), alpha=config.alpha_of(its), scaling=config.scaling_of(its))
        for name, its in called.items()
    }


def _ranks(ranks: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """The most common rank, and PEFT's `rank_pattern` for the others.

    PEFT takes the first key that matches the end of a name, so the longer of two names comes first.
    """
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = sorted((name for name, rank in ranks.items() if rank != usual), key=len, reverse=True)
    if others:  # then every name is a key: an exception could be the end of a usual one
        ends = tuple("." + name for name in others)
        others = sorted({*others, *(name for name in ranks if name.endswith(ends))}, key=len, reverse=True)
    return usual, {re.escape(name): ranks[name] for name in others}


def _adalora(contents: AdapterContents, common: dict[str, Any]) -> Setup:
    alpha = contents.config.lora_alpha or 0
    # The tensors have the ranks that training left over; the schedule means nothing any more.
    ranks = {name: specs["lora_E"].shape[0] for name, specs in contents.factors.items() if "lora_E" in specs}
    scales = {
        name: Scale(rank=rank, alpha=alpha, scaling=contents.config.adalora_scaling(rank))
        for name, rank in ranks.items()
    }
    most = max(ranks.values(), default=1)
    schedule = {"init_r": most, "target_r": most, "total_step": 1}
    made = _peft("AdaLoraConfig", **schedule, lora_alpha=alpha, init_lora_weights=False, **common)
    return Setup(config=made, scales=scales, ranks=ranks)


def _ia3(contents: AdapterContents, common: dict[str, Any]) -> Setup:
    fields = Fields(contents.config.extra)
    named = fields.names_or_pattern("feedforward_modules")
    _check_fields(contents, fields)
    pattern = FullPattern(named, Budget()) if isinstance(named, str) else None

    def scales_inputs(name: str) -> bool:
        try:
            return pattern.matches(name) if pattern else name.endswith(named or ())
        except PatternTooSlow:
            raise _too_slow(contents) from None

    feedforward = [name for name in contents.factors if scales_inputs(contents.adapters_name(name))]
    made = _peft("IA3Config", feedforward_modules=feedforward, init_ia3_weights=False, **common)
    return Setup(config=made, scales={}, ranks={})


def _lycoris(contents: AdapterContents, common: dict[str, Any]) -> Setup:
    fields = Fields(contents.config.extra)
    settings: dict[str, Any] = {"use_effective_conv2d": fields.flag("use_effective_conv2d")}
    kind = "LoHaConfig"
    if contents.config.peft_type == "LOKR":
        kind = "LoKrConfig"
        factor = fields.take("decompose_factor")
        settings |= {
            "decompose_both": fields.flag("decompose_both"),
            "decompose_factor": -1 if factor is None else factor,
        }
        if factor is not None and (type(factor) is not int or not -1 <= factor <= limits().rank):
            fields.wrong("decompose_factor", f"a whole number from -1 to {limits().rank}")
    _check_fields(contents, fields)
    scales = _scales(contents)
    usual, pattern = _ranks({name: scale.rank for name, scale in scales.items()})
    common = {key: value for key, value in common.items() if key != "fan_in_fan_out"}
    settings |= {"r": usual, "alpha": contents.config.lora_alpha, "rank_pattern": pattern, "init_weights": False}
    made = _peft(kind, **settings, **common)
    return Setup(config=made, scales=scales, ranks={})


def _vera(contents: AdapterContents, common: dict[str, Any]) -> Setup:
    fields = Fields(contents.config.extra)
    key = fields.take("projection_prng_key")
    if key is not None and (type(key) is not int or not 0 <= key < 1 << 63):
        fields.wrong("projection_prng_key", "a natural number")
    _check_fields(contents, fields)
    settings = {"projection_prng_key": key or 0, "save_projection": True, "init_weights": False}
    made = _peft("VeraConfig", r=contents.config.r or 256, **settings, **common)
    warnings: tuple[str, ...] = ()
    if not contents.shared:
        warnings = ("its file has no projections; they are generated from its random seed, as PEFT does",)
    return Setup(config=made, scales={}, ranks={}, warnings=warnings)


MAKERS: Final[Mapping[str, Callable[[AdapterContents, dict[str, Any]], Setup]]] = MappingProxyType(
    {"LORA": _lora, "ADALORA": _adalora, "IA3": _ia3, "LOHA": _lycoris, "LOKR": _lycoris, "VERA": _vera}
)


# ---------------------------------------------------------------- settings that AdapterConfig does not parse
def _check_fields(contents: AdapterContents, fields: Fields) -> None:
    if fields.problems:
        raise MalformedConfig(str(contents.folder / CONFIG_FILE), "; ".join(fields.problems[:20]))


def _too_slow(contents: AdapterContents) -> MalformedConfig:
    return MalformedConfig(
        str(contents.folder / CONFIG_FILE),
        "its patterns take too long to match",
        code="E_REGEX",
        hint="list the module names instead",
    )
