"""Checks the kind of LoRA: parts that the config does not announce, and initialisations that changed the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.peft.keys import KeyPair
from adapterhub.trust.verify.report import Finding, some
from adapterhub.trust.verify.subject import Subject


def check(subject: Subject) -> Iterator[Finding]:
    """Parts of a variant must be there exactly when the config announces it."""
    config = subject.config
    if not config.is_lora:
        return
    yield from _parts(subject, "use_dora", "DoRA's magnitudes", lambda pair: pair.magnitude, is_set=config.use_dora)
    yield from _parts(subject, "lora_bias", "a bias of B", lambda pair: pair.bias, is_set=config.lora_bias)
    yield from _start(subject)


def _parts(
    subject: Subject, key: str, what: str, part: Callable[[KeyPair], object], *, is_set: bool
) -> Iterator[Finding]:
    pairs = subject.keys.pairs
    having = [p.module for p in pairs if part(p) is not None]
    lacking = [p.module for p in pairs if part(p) is None]
    if having and not is_set:
        message, expected = f"holds {what} on {some(having)}", f"none, since `{key}` is false in {CONFIG_FILE}"
    elif lacking and is_set:
        message, expected = (
            f"lacks {what} on {some(lacking)}",
            f"one for each pair, since `{key}` is true in {CONFIG_FILE}",
        )
    else:
        return
    yield Finding(
        code="E_VARIANT",
        severity="error",
        where=WEIGHTS_FILE,
        message=message,
        expected=expected,
        hint="the config and the weights belong to different adapters, or an older PEFT saved them; save them again",
    )


def _start(subject: Subject) -> Iterator[Finding]:
    start, changed = subject.config.init_lora_weights, subject.config.start_changes_base
    if changed or subject.config.extra.get("kasa_config"):
        name = start if changed else "kasa"
        yield Finding(
            code="W_INIT",
            severity="warning",
            where=CONFIG_FILE,
            message=f"started from `{name}`, which changes the base before training: the update is not B @ A alone, "
            "and on the plain base the adapter acts differently than in training",
            hint="convert it with PEFT: `save_pretrained(path, path_initial_model_for_weight_conversion=…)`",
        )
    elif subject.config.start_is_unknown:
        message = f"started from `{start}`, which PEFT 0.21 does not know; it affects training only"
        yield Finding(code="N_INIT", severity="note", where=CONFIG_FILE, message=message)
