"""Recognises the weights of other programs by their tensor names, so that the refusal can name the program."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from adapterhub.core.disk.inside import inside
from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.formats.foreign.recognition import PEFT, scheme_among
from adapterhub.formats.safetensors.file import TensorFile, read_header
from adapterhub.trust.verify.report import Finding

_LOOKED_AT_FILES: Final = 8
RENAME: Final = "rename it to `adapter_model.safetensors`"
NO_PEFT: Final = "only adapters that PEFT's `save_pretrained` wrote are accepted; convert or train it with PEFT"
CONVERTED: Final = "`adapt add` converts it to a PEFT folder"


def weights_of_others(folder: Path, names: list[str]) -> Finding | None:
    """An error that names the foreign weights of a folder; None when nothing is recognised."""
    if "adapters.npz" in names:
        kind = "a LoRA of Apple's MLX in a numpy archive"
        return _error("E_UNSUPPORTED", "adapters.npz", f"is {kind}, not PEFT's weights", NO_PEFT)
    if "pytorch_adapter.bin" in names:
        kind = "a pickle of AdapterHub's `adapters` library"
        return _error("E_PICKLE", "pytorch_adapter.bin", f"is {kind}, which is never opened", NO_PEFT)
    candidates = sorted(n for n in names if n.endswith(".safetensors"))[:_LOOKED_AT_FILES]
    for name in candidates:
        file = _header(folder, name)
        if file is None:
            continue
        scheme = scheme_among(spec.name for spec in file.tensors)
        kind = scheme.title if scheme else "no adapter in PEFT's names"
        hint = (
            NO_PEFT if scheme is None else RENAME if scheme.key == PEFT else CONVERTED if scheme.reader else scheme.why
        )
        return _error("E_UNSUPPORTED", shown(name), f"holds {kind}, not PEFT's weights", hint or NO_PEFT)
    return None


def _header(folder: Path, name: str) -> TensorFile | None:
    """The header of a plain file, None for anything else. Only the header of a stranger's file is read here."""
    try:
        return read_header(inside(folder, name))
    except (OSError, MalformedTensorFile):
        return None


def _error(code: str, where: str, message: str, hint: str) -> Finding:
    return Finding(code=code, severity="error", where=where, message=message, hint=hint)
