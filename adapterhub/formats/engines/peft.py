"""PEFT: the library that defines the format; its reading of an adapter is the standard for all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from adapterhub.formats.engines import MISREADS, NOTES, Rule, rules

NAME: Final = "PEFT"
VERSIONS: Final = ("0.21",)
SOURCE: Final = "`peft/tuners/lora/` of PEFT 0.21, which every parity test of this project runs"

RULES: Final[Sequence[Rule]] = (
    *rules(
        NOTES,
        "PEFT repeats the initialisation on loading, which changes the base's weights in memory",
        "start",
        source="LoraLayer.update_layer",
    ),
    *rules(NOTES, "PEFT changes biases of the base, even while the adapter is off", "bias", source="LoraModel"),
    *rules(MISREADS, "PEFT loads the rest and skips them", "others", source="set_peft_model_state_dict"),
)
