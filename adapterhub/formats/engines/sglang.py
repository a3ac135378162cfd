"""SGLang: many adapters in one batch, on GPUs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.engines import MISREADS, REFUSES, SETTINGS, Pairs, Rule, Settings, Test, Traits, on, rules
from adapterhub.formats.engines._tables import release_of, releases

NAME: Final = "SGLang"
_RELEASES: Final = releases("sglang")
VERSIONS: Final = tuple(".".join(version.split(".")[:2]) for version in _RELEASES)
SOURCE: Final = (
    f"the wheel of SGLang {', '.join(_RELEASES)}: `sglang/srt/lora/` and the list of model classes, read by "
    "`docs/engine_tables`, not run"
)

_QKV: Final = "LoRAAdapter.normalize_qkv_proj"
_EXPERT_LAYERS: Final = re.compile(r"(.*\.)?experts\.\d+\.(w1|w2|w3)")
"""It takes these for the names of gate, down and up (`LoRAAdapter._rename_expert_w_to_proj`)."""


def _targets(traits: Traits) -> str:
    listed = traits.config.target_modules
    if listed is None:
        return "`target_modules: null`"
    if isinstance(listed, str) and listed not in ("all", "all-linear"):
        return "`target_modules` given as a pattern"
    return ""


def _without(partner: str, *kinds: str) -> Test:
    """Return whether layers of these kinds lack the partner that SGLang stacks them with."""

    def test(traits: Traits) -> str:
        owners = {m.rpartition(".")[0] for m in traits.modules if m.rpartition(".")[2] in kinds}
        lacking = sorted(f"{o}.{partner}" for o in owners if f"{o}.{partner}" not in traits.modules)
        return on(f"{' or '.join(kinds)} without", lacking)

    return test


RULES: Final[Sequence[Rule]] = (
    *rules(REFUSES, "SGLang reads LoRA only", "method", source="LoRAAdapter.__init__"),
    *rules(MISREADS, "SGLang scales every module by `lora_alpha / r`", "scale", source="LoRAAdapter.__init__"),
    *rules(MISREADS, "SGLang uses one `r` for all modules", "ranks", source="LoRAConfig, LoRAMemoryPool.can_support"),
    *rules(REFUSES, "SGLang does not read DoRA", "dora", source="LoRAManager.validate_new_adapter"),
    *rules(
        MISREADS,
        "SGLang reads the pairs of its layers and skips everything else",
        *("lora_bias", "bias", "modules_to_save", "trainable_tokens", "conv", "target_parameters", "nested", "others"),
        source="LoRAAdapter._process_weight",
    ),
    *rules(MISREADS, "SGLang ignores the setting and adds B·A to the unchanged base", *SETTINGS, source="LoRAConfig"),
    *rules(
        REFUSES,
        "SGLang accepts a list of names or `all-linear`",
        "targets",
        source="get_normalized_target_modules",
        when=_targets,
    ),
    *rules(
        REFUSES,
        "SGLang stacks q, k and v, and needs v wherever there is q",
        "layers",
        source=_QKV,
        when=_without("v_proj", "q_proj"),
    ),
    *rules(
        MISREADS,
        "SGLang stacks q, k and v only where there is q",
        "layers",
        source=_QKV,
        when=_without("q_proj", "k_proj", "v_proj"),
    ),
)


def bound(traits: Traits, version: str | None) -> tuple[Pairs | None, Sequence[Rule]]:
    """Return how many pairs SGLang has layers for, and rules that name the others; None if the base is unknown."""
    release, name = release_of("sglang", version), traits.base.class_name
    if name is None or not traits.config.is_lora:
        return None, ()
    count = len(traits.modules)
    if name not in release.classes:
        base, says = f"a base of class `{shown(name)}`", f"SGLang {release.version} has no such class"
        return Pairs(bound=0, dropped=0, refused=count, unknown=0), rules(
            REFUSES, says, "base", source="EntryClass", when=lambda _: base
        )
    known = {*release.limits["targets"], *release.facts[release.classes[name]].get("supported", ())}
    names = release.limits["names"]
    dropped = sum(map(traits.is_expert, traits.modules))
    odd = [m for m in traits.modules if not _is_known(m, known, names) and not traits.is_expert(m)]
    return Pairs(bound=count - dropped - len(odd), dropped=dropped, refused=len(odd), unknown=0), rules(
        REFUSES,
        f"SGLang {release.version} has no layer with LoRA for it",
        "targets",
        source="_KNOWN_LORA_TARGET_MODULES",
        when=lambda _: on("pairs on", odd),
    )


def _is_known(module: str, known: set[str], names: Mapping[str, str]) -> bool:
    leaf = module.rpartition(".")[2]
    return leaf in known or names.get(leaf, leaf) in known or bool(_EXPERT_LAYERS.fullmatch(module))


def settings(traits: Traits) -> Settings:
    """Return the options that a server needs for this adapter."""
    return {"enable-lora": True, "max-lora-rank": traits.rank, "lora-target-modules": traits.leaves}


def notes(_traits: Traits) -> list[str]:
    """Return the facts worth knowing."""
    return ["judged from SGLang's source, which was read and not run"]
