"""PEFT: the library that defines the format; its reading of an adapter is the standard for all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from adapterhub.formats.engines import MISREADS, NOTES, Rule, Settings, Traits

NAME: Final = "PEFT"
VERSIONS: Final = ("0.21",)
SOURCE: Final = "`peft/tuners/lora/` of PEFT 0.21, which every parity test of this project runs"

RULES: Final[Sequence[Rule]] = (
    Rule(
        feature="start",
        effect=NOTES,
        says="PEFT repeats the initialisation on loading, which changes the base's weights in memory",
        source="LoraLayer.update_layer",
    ),
    Rule(
        feature="bias",
        effect=NOTES,
        says="PEFT changes biases of the base, even while the adapter is off",
        source="LoraModel",
    ),
    Rule(
        feature="others",
        effect=MISREADS,
        says="PEFT loads the rest and skips them",
        source="set_peft_model_state_dict",
    ),
)


def settings(_traits: Traits) -> Settings:
    """None."""
    return {}


def notes(_traits: Traits) -> list[str]:
    """None: everything was judged."""
    return []
