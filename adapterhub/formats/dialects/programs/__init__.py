"""Programs that lay out LoRA on experts in ways of their own, in folders that otherwise are PEFT's: one file each.

A file here is found by its place. It has `TITLE`, `recognise(form)`, which looks at names and shapes only, and
`read(form)`, the adapter in the inner form. Files that begin with an underscore are not programs.
"""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module
from types import ModuleType
from typing import Final

from adapterhub.formats.dialects.form import Form
from adapterhub.formats.safetensors.header import TensorSpec

_OWN_NAMES: Final = re.compile(r"\.unembed_tokens\.|\.experts\.lora_(?:gate_and_up|down)_[AB]$", re.ASCII)
_STACKED: Final = 3


def is_odd(tensors: tuple[TensorSpec, ...]) -> bool:
    """Return whether some program other than PEFT may have laid out these tensors."""
    return any(
        _OWN_NAMES.search(spec.name) or (len(spec.shape) == _STACKED and ".experts." in spec.name) for spec in tensors
    )


def programs() -> list[ModuleType]:
    """Every program that is read here."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))
    return [import_module(f"{__name__}.{name}") for name in names]


def read(form: Form) -> tuple[Form, str]:
    """Return the form as PEFT would have written it, and whose it was; unchanged where it is of no other program.

    Raises:
        MalformedTensorFile: a program wrote it, and it has no meaning, or one that is not read here.
    """
    if not form.config.is_lora or not form.weights.once(is_odd):
        return form, ""
    for program in programs():
        if program.recognise(form):
            made: Form = program.read(form)
            return made, f"is laid out as {program.TITLE} writes it and is read as PEFT's of today"
    return form, ""
