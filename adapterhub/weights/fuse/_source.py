"""An adapter to fuse, and the reasons that rule it out for any base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adapterhub.core.errors import shown
from adapterhub.formats.modules.base_names import BaseNames
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.trust.verify import Subject
from adapterhub.weights.lowrank.factors import WeightedAdapter


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FuseAdapter(WeightedAdapter):
    """A weighted adapter with its verified files and the names that its modules have in the base."""

    subject: Subject
    names: BaseNames

    @property
    def config(self) -> AdapterConfig:
        """The adapter's config."""
        return self.subject.config


def own_reasons(subject: Subject, *, is_alone: bool) -> Iterator[str]:
    """The reasons that rule the adapter out; `is_alone` means the only adapter, with weight 1."""
    config, keys = subject.config, subject.keys
    if not config.is_lora:
        yield f"is of type {shown(config.peft_type)}, expected LORA"
        return
    yield from (one.what for one in config.variants.values() if not one.fuses)
    init = config.init_lora_weights
    if config.start_changes_base:
        yield (
            f"changed the base weights when it was initialised (init_lora_weights {shown(init)}); its update is "
            "relative to the changed weights. PEFT saves it as a plain LoRA with "
            "`path_initial_model_for_weight_conversion`"
        )
    elif config.start_is_unknown:
        yield f"has an unknown initialisation ({shown(init)}), which may have changed the base weights"
    for spec in keys.others:
        yield f"holds `{shown(spec.name)}`, which its config does not account for"
    if not is_alone:
        yield from _not_additive(subject)


def _not_additive(subject: Subject) -> Iterator[str]:
    """Parts of the adapter that have no meaning in a sum or with a weight other than 1."""
    keys = subject.keys
    parts = {
        "DoRA magnitudes": subject.config.use_dora,
        "modules that replace those of the base (modules_to_save)": bool(keys.saved),
        "biases that replace those of the base (bias)": bool(keys.biases),
        "rows that replace those of an embedding (trainable_token_indices)": bool(keys.tokens),
    }
    for what, is_there in parts.items():
        if is_there:
            yield f"has {what}, which do not add up; it can be fused alone and with weight 1"
