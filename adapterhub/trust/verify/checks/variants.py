"""Checks the kind of LoRA: parts that the config does not announce, and initialisations that changed the base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.report import some
from adapterhub.trust.verify.subject import Subject

_SAVED_APART: Final = (
    "the config and the weights belong to different adapters, or an older PEFT saved them; save them again"
)


def check(subject: Subject) -> Iterator[Finding]:
    """Parts of a variant must be there exactly when the config announces it."""
    config = subject.config
    if not config.is_lora:
        return
    for key, what, part in (("use_dora", "DoRA's magnitudes", "magnitude"), ("lora_bias", "a bias of B", "bias")):
        having: list[str] = []
        lacking: list[str] = []
        for pair in subject.keys.pairs:
            (lacking if getattr(pair, part) is None else having).append(pair.module)
        is_set, hint = getattr(config, key), _SAVED_APART
        if having and not is_set:
            message, expected = f"holds {what} on {some(having)}", f"none, since `{key}` is false in {CONFIG_FILE}"
            yield Finding("E_VARIANT", WEIGHTS_FILE, message, expected=expected, hint=hint)
        elif lacking and is_set:
            expected = f"one for each pair, since `{key}` is true in {CONFIG_FILE}"
            yield Finding("E_VARIANT", WEIGHTS_FILE, f"lacks {what} on {some(lacking)}", expected=expected, hint=hint)
    if isinstance(config.init_lora_weights, str) or config.extra.get("kasa_config"):
        yield from _start(subject)


def _start(subject: Subject) -> Iterator[Finding]:
    start, changed = subject.config.init_lora_weights, subject.config.start_changes_base
    if changed or subject.config.extra.get("kasa_config"):
        name = start if changed else "kasa"
        yield Finding(
            "W_INIT",
            CONFIG_FILE,
            f"started from `{name}`, which changes the base before training: the update is not B @ A alone, "
            "and on the plain base the adapter acts differently than in training",
            hint="convert it with PEFT: `save_pretrained(path, path_initial_model_for_weight_conversion=…)`",
        )
    elif subject.config.start_is_unknown:
        message = f"started from `{start}`, which PEFT 0.21 does not know; it affects training only"
        yield Finding("N_INIT", CONFIG_FILE, message)
