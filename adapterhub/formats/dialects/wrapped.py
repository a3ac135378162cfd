"""Names that trainers leave in the files of a LoRA: of wrappers around the model, and of the adapter in memory.

`torch.compile`, FSDP and activation checkpointing put a part of their own into names; a state dict that PEFT did not
write keeps the adapter's name (`lora_A.default.weight`), or has no prefix; a model that PEFT wrapped twice has two.
"""

from __future__ import annotations

import re
from typing import Final

from adapterhub.formats.dialects.form import Form, Made
from adapterhub.formats.peft.keys import PREFIX
from adapterhub.formats.safetensors.header import TensorSpec

_WRAPPERS: Final = re.compile(
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.", re.ASCII
)
_IN_FRONT: Final = "module."
"""The part that distributed data-parallel training puts before all others."""
_NAMED: Final = re.compile(
    r"(?P<slot>.+\.lora_(?:(?:A|B|magnitude_vector)(?=\.[^.]+\.(?:weight|bias)$)|embedding_[AB](?=\.[^.]+$)))"
    r"\.(?P<adapter>[^.]+)(?P<end>\.(?:weight|bias))?",
    re.ASCII,
)
_FACTOR: Final = re.compile(r".+\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\.|$)", re.ASCII)


_ODD: Final = re.compile(
    r"_orig_mod\.|_wrapped_module\.|_forward_module\.|\.original_module\.(?!bias$)|\.lora_[AB]\.(?!weight$|bias$)|\.lora_embedding_[AB]\.",
    re.ASCII,
)
_ORIGINAL: Final = re.compile(r".+\.original_module\.(?!bias$)[^.]+", re.ASCII)
"""A copy of a module that `modules_to_save` replaces. A bias without a weight is one that `bias="all"` saves."""


def is_wrapped(tensors: tuple[TensorSpec, ...]) -> bool:
    """Return whether some names may be others than PEFT writes."""
    twice = PREFIX * 2
    return any(not s.name.startswith(PREFIX) or s.name.startswith(twice) or _ODD.search(s.name) for s in tensors)


def is_named(name: str) -> bool:
    """Return whether a tensor's name contains that of an adapter in memory."""
    return _NAMED.fullmatch(name) is not None


def unwrapped(form: Form) -> tuple[Form, str]:
    """Return the form with PEFT's own names, and what those of the file have beside it.

    Unchanged if two would become one.
    """
    if not form.config.is_lora:
        return form, ""
    if any(_ORIGINAL.fullmatch(spec.name) for spec in form.weights.tensors) and not form.config.saved_modules:
        return form, ""  # nothing that it replaces
    names = form.weights.once(_plain_names)
    if names is None:
        return form, ""
    found, changes = names
    if not changes:
        return form, ""
    tensors = (Made.of(spec, found[spec.name]) for spec in form.weights.tensors if spec.name in found)
    return form.remade(tensors), "its names have " + " and ".join(changes)


def _plain_names(tensors: tuple[TensorSpec, ...]) -> tuple[dict[str, str], tuple[str, ...]] | None:
    """PEFT's name for each tensor, and what the file's names have beside it; None if they would not stay apart."""
    found: dict[str, str] = {}
    changes: dict[str, None] = {}
    adapters = {match["adapter"] for spec in tensors if (match := _NAMED.fullmatch(_WRAPPERS.sub("", spec.name)))}
    has_prefix = any(PREFIX in spec.name for spec in tensors if _FACTOR.match(spec.name))
    copied = {spec.name.rpartition(".")[0] for spec in tensors if _ORIGINAL.fullmatch(spec.name)}
    for spec in tensors:
        if copied and spec.name.rpartition(".")[0] in copied:
            changes["copies of modules of the base that it replaces"] = None
            continue
        name = _WRAPPERS.sub("", spec.name)
        name = name.removeprefix(_IN_FRONT) if name.startswith(_IN_FRONT + PREFIX) else name
        if name != spec.name:
            changes["a part of a wrapper, such as `_orig_mod`"] = None
        while name.startswith(PREFIX * 2):
            name = name[len(PREFIX) :]
            changes[f"`{PREFIX}` twice"] = None
        match = _NAMED.fullmatch(name)
        if match is not None and len(adapters) == 1:
            name = match["slot"] + (match["end"] or "")
            changes[f"the adapter's name in memory, `{match['adapter']}`"] = None
        if not has_prefix and _FACTOR.match(name):
            name = PREFIX + name
            changes["no prefix"] = None
        found[spec.name] = name
    return (found, tuple(changes)) if len(set(found.values())) == len(found) else None
