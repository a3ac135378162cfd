"""Warns of methods and variants that nothing here can put on a model."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.formats.manifest import CONFIG_FILE
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.subject import Subject


def check(subject: Subject) -> Iterator[Finding]:
    """Yield a method without layers of its own here, and the variants of LoRA that change what a layer computes."""
    config = subject.config
    reasons = [f"it {variant.what}" for variant in config.variants.values() if config.is_lora and not variant.attaches]
    if not config.method.factors:
        reasons = [f"its method is {config.peft_type}"]
    if reasons:
        yield Finding(
            "W_METHOD",
            CONFIG_FILE,
            f"cannot be attached or run here: {'; '.join(reasons)}",
            hint="load it with PEFT: `PeftModel.from_pretrained(model, FOLDER)`; `adapt info --path` prints the folder",
        )
