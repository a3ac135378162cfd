"""Bases that bitsandbytes quantised to 4 or 8 bits: kept unchanged, hashed whole, and compared with their source.

A quantised weight has scales, which are not parameters of torch: one for each block of a 4-bit weight, one for each row
of an 8-bit weight. A code and its scale give the interval in which the source weight lies. So a quantised base can be
distinguished from another one without unpacking it (Dettmers et al., QLoRA, 2023, for the NF4 code).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.base.precision import Interval
from adapterhub.formats.safetensors.dtypes import CHOICES, DTYPES
from adapterhub.weights.dtypes import CHOSEN_DTYPES

QuantState = Any
"""Of bitsandbytes, which has no types."""

_REPACKING: Final = "support_avx512bf16_for_cpu"
"""The attribute of a 4-bit layer by which bitsandbytes lets the first forward repack the weight for this CPU."""

_ROUNDING: Final = {
    CHOSEN_DTYPES[choice]: layout.rounding for choice, name in CHOICES.items() if (layout := DTYPES[name].layout)
}
"""The largest relative error of rounding to the dtype that was quantised."""

_LISTED: Final = 8

_SLACK: Final = 1e-4
"""Part of a block's scale: the kernels round their thresholds, differently on different CPUs."""


def hold_layout(modules: Iterable[nn.Module]) -> None:
    """Stop 4-bit layers from rewriting their weights, for good; changes nothing else about them.

    On CPUs with AVX512-BF16 the first forward in evaluation repacks a weight in place. `state_dict()` undoes that
    without the scales that were lost, and every later answer is wrong. Layers that repacked before are left alone: they
    work until something calls their `state_dict()`.
    """
    for module in modules:
        if vars(module).get(_REPACKING):
            setattr(module, _REPACKING, False)


def ensure_unpacked(
    label: str, modules: Mapping[str, nn.Module], *, saved: Collection[str], magnitudes: Collection[str]
) -> None:
    """Raise if the adapter would damage a quantised layer.

    `saved`: modules that it replaces whole, which reads the layer's `state_dict()` (see `hold_layout`).
    `magnitudes`: modules with DoRA, for which PEFT moves an 8-bit weight off its device and never back.

    Raises:
        UnsupportedAdapter: with every such module.
    """
    if not saved and not magnitudes:
        return
    inside = tuple(f"{name}." for name in saved)
    reasons = []
    for name, module in modules.items():
        if source_shape(module) is None:
            continue
        if name in saved or name.startswith(inside):
            reasons.append(f"`{shown(name)}` would be replaced whole")
        elif name in magnitudes and _scales_of_rows(module) is not None:
            reasons.append(f"`{shown(name)}` is in 8 bits and would get DoRA")
    if reasons:
        raise UnsupportedAdapter(
            f"`{shown(label, 200)}` cannot be used with modules that are quantised here",
            reasons[:_LISTED],
            hint="load the base without `--load-in`, or leave these modules unquantised (`llm_int8_skip_modules`)",
        )


def scales_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The scales of a quantised weight, by bitsandbytes' names in a file; nothing for other modules."""
    for key, parameter in module._parameters.items():  # `named_parameters` would look into wrappers
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            yield from _scales_of_blocks(key, state)
    scales = _scales_of_rows(module)
    if scales is not None:
        yield "SCB", scales


def source_shape(module: nn.Module) -> tuple[int, ...] | None:
    """The shape of the module's weight before it was quantised; None if it is not quantised."""
    weight = module._parameters.get("weight")
    state = getattr(weight, "quant_state", None)
    if state is not None and state.shape is not None:
        return tuple(state.shape)
    return tuple(weight.shape) if weight is not None and _scales_of_rows(module) is not None else None


def source_intervals(module: nn.Module, places: Sequence[int]) -> tuple[Interval, ...] | None:
    """The intervals in which the weights at `places` (in the flattened source) lay before they were quantised.

    None if they are unknown: the weight is not quantised, or an earlier forward repacked it for one kind of CPU.
    """
    weight = module._parameters.get("weight")
    if weight is None:
        return None
    at = torch.tensor(places, dtype=torch.int64, device=weight.device)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        is_repacked = getattr(state, "packing_format_for_cpu", False)
        return None if is_repacked or state.code is None else _four_bits(weight.detach(), state, at)
    scales = _scales_of_rows(module)
    return None if scales is None else _eight_bits(weight.detach(), scales, at)


def _scales_of_blocks(key: str, state: QuantState) -> Iterator[tuple[str, Tensor]]:
    yield f"{key}.absmax", state.absmax
    if state.code is not None:
        yield f"{key}.quant_map", state.code
    inner = getattr(state, "state2", None)
    if inner is not None:  # the scales are quantised, too
        yield f"{key}.nested_absmax", inner.absmax
        yield f"{key}.nested_quant_map", inner.code
        yield f"{key}.nested_offset", torch.as_tensor(state.offset)


def _scales_of_rows(module: nn.Module) -> Tensor | None:
    """The scales of an 8-bit weight, which the first forward moves from the weight to the layer's state."""
    weight = module._parameters.get("weight")
    if weight is None or weight.dtype != torch.int8:
        return None
    found = getattr(weight, "SCB", None)
    return found if found is not None else getattr(getattr(module, "state", None), "SCB", None)


def _four_bits(packed: Tensor, state: QuantState, at: Tensor) -> tuple[Interval, ...]:
    pairs = packed.view(torch.uint8).reshape(-1)[at // 2]
    codes = torch.where(at % 2 == 0, pairs >> 4, pairs & 15).long()  # the first of two is in the upper half
    levels = state.code.double()
    steps = levels.unique()  # sorted
    middles = (steps[1:] + steps[:-1]) / 2
    ends = torch.cat([steps[:1], middles, steps[-1:]])
    step = torch.searchsorted(steps, levels[codes])
    scales, doubt = _block_scales(state, at // state.blocksize)
    corners = torch.stack([ends[step + i] * (scales + d) for i in (0, 1) for d in (-doubt, doubt)])
    return _widened(corners.amin(0), corners.amax(0), _SLACK * scales, state.dtype)


def _block_scales(state: QuantState, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The scale of each block, and its possible error if the scales are quantised, too."""
    scales, inner = state.absmax.reshape(-1)[blocks], getattr(state, "state2", None)
    if inner is None:
        return scales.double(), torch.zeros_like(scales, dtype=torch.float64)
    levels, outer = inner.code.double(), inner.absmax.double()[blocks // inner.blocksize]
    widest = levels.unique().diff().max() / 2
    return levels[scales.long()] * outer + float(state.offset), widest * outer


def _eight_bits(packed: Tensor, scales: Tensor, at: Tensor) -> tuple[Interval, ...]:
    codes = packed.reshape(-1)[at].double()
    rows = scales.double().reshape(-1)[at // packed.shape[1]] / 127
    # quantised from float16, to which the model's own dtype was rounded first: bfloat16 is the coarsest
    return _widened((codes - 0.5) * rows, (codes + 0.5) * rows, _SLACK * 127 * rows, torch.bfloat16)


def _widened(low: Tensor, high: Tensor, slack: Tensor, dtype: torch.dtype) -> tuple[Interval, ...]:
    rounding = _ROUNDING.get(dtype, 2.0**-8) * torch.maximum(low.abs(), high.abs()) + slack
    return tuple(zip((low - rounding).tolist(), (high + rounding).tolist(), strict=True))
