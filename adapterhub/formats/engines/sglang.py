"""SGLang: many adapters in one batch, on GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from adapterhub.formats.engines import MISREADS, REFUSES, SETTINGS, Rule, Settings, Traits, some

NAME: Final = "SGLang"
VERSIONS: Final = ("0.5",)
SOURCE: Final = (
    "`sglang/srt/lora/lora.py`, `lora_config.py`, `lora_manager.py` and `utils.py` of SGLang 0.5.23, read, not run"
)

_IGNORED: Final = "SGLang reads the pairs of its layers and skips everything else"
_PLACE: Final = "LoRAAdapter._process_weight"


def _targets(traits: Traits) -> str:
    listed = traits.config.target_modules
    if listed is None:
        return "`target_modules: null`"
    if isinstance(listed, str) and listed not in ("all", "all-linear"):
        return "`target_modules` given as a pattern"
    return ""


def _half_attention(traits: Traits) -> str:
    owners = {m.rpartition(".")[0] for m in traits.modules if m.endswith(".q_proj")}
    lacking = sorted(f"{o}.v_proj" for o in owners if f"{o}.v_proj" not in traits.modules)
    return f"q_proj without {some(lacking)}" if lacking else ""


def _unreached(traits: Traits) -> str:
    """Which k or v have no q: SGLang stacks them only where there is q."""
    owners = {m.rpartition(".")[0] for m in traits.modules if m.rpartition(".")[2] in ("k_proj", "v_proj")}
    lacking = sorted(f"{o}.q_proj" for o in owners if f"{o}.q_proj" not in traits.modules)
    return f"k_proj or v_proj without {some(lacking)}" if lacking else ""


RULES: Final[Sequence[Rule]] = (
    Rule(feature="method", effect=REFUSES, says="SGLang reads LoRA only", source="LoRAAdapter.__init__"),
    Rule(
        feature="scale",
        effect=MISREADS,
        says="SGLang scales every module by `lora_alpha / r`",
        source="LoRAAdapter.__init__",
    ),
    Rule(
        feature="ranks",
        effect=MISREADS,
        says="SGLang uses one `r` for all modules",
        source="LoRAConfig, LoRAMemoryPool.can_support",
    ),
    Rule(feature="dora", effect=REFUSES, says="SGLang does not read DoRA", source="LoRAManager.validate_new_adapter"),
    *(
        Rule(feature=name, effect=MISREADS, says=_IGNORED, source=_PLACE)
        for name in (
            "lora_bias",
            "bias",
            "modules_to_save",
            "trainable_tokens",
            "conv",
            "target_parameters",
            "nested",
            "others",
        )
    ),
    *(
        Rule(
            feature=name,
            effect=MISREADS,
            says="SGLang ignores the setting and adds B·A to the unchanged base",
            source="LoRAConfig",
        )
        for name in SETTINGS
    ),
    Rule(
        feature="targets",
        effect=REFUSES,
        says="SGLang accepts a list of names or `all-linear`",
        source="get_normalized_target_modules",
        when=_targets,
    ),
    Rule(
        feature="layers",
        effect=REFUSES,
        says="SGLang stacks q, k and v, and needs v wherever there is q",
        source="LoRAAdapter.normalize_qkv_proj",
        when=_half_attention,
    ),
    Rule(
        feature="layers",
        effect=MISREADS,
        says="SGLang stacks q, k and v only where there is q",
        source="LoRAAdapter.normalize_qkv_proj",
        when=_unreached,
    ),
)


def settings(traits: Traits) -> Settings:
    """The options that a server needs for this adapter."""
    return {"enable-lora": True, "max-lora-rank": traits.rank, "lora-target-modules": traits.leaves}


def notes(_traits: Traits) -> list[str]:
    """What is worth knowing."""
    return ["judged from SGLang's source, which was read and not run"]
