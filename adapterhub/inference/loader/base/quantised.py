"""Bases that bitsandbytes has packed into 4 or 8 bits: held as they are, hashed whole, and compared with their source.

A packed weight has scales beside it, which are no parameters of torch: one for each block of a 4-bit weight, one for
each row of an 8-bit weight. Together they say between which two numbers the source weight must lie, so a packed base
can be told from another one without unpacking it (Dettmers et al., QLoRA, 2023, for the NF4 code).
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

_REPACKING: Final = "support_avx512bf16_for_cpu"
"""Where bitsandbytes notes, in each 4-bit layer, that its first forward may repack the weight for this CPU."""

_ROUNDING: Final = {
    CHOSEN_DTYPES[choice]: layout.rounding for choice, name in CHOICES.items() if (layout := DTYPES[name].layout)
}
"""How far a number moves, relative to its size, when it is rounded to the dtype that was packed."""

_LISTED: Final = 8

_SLACK: Final = 1e-4
"""Of a block's scale: the thresholds of the kernels are rounded, and differ between kinds of CPU."""


def hold_layout(modules: Iterable[nn.Module]) -> None:
    """Keep 4-bit layers from rewriting their weights; they stay so, and nothing else of them changes.

    On CPUs with AVX512-BF16 the first forward in evaluation packs a weight anew in place, and `state_dict()` undoes
    that without the scales it lost: every later answer is then wrong. Layers that did so before are left alone, for
    they are sound as long as nobody asks for their `state_dict()`.
    """
    for module in modules:
        if vars(module).get(_REPACKING):
            setattr(module, _REPACKING, False)


def ensure_unpacked(
    label: str, modules: Mapping[str, nn.Module], *, saved: Collection[str], magnitudes: Collection[str]
) -> None:
    """Refuse what cannot be done to a packed layer without ruining it.

    `saved`: what the adapter replaces whole, for which the layer's `state_dict()` is read (see `hold_layout`).
    `magnitudes`: where it has DoRA, for which PEFT moves an 8-bit weight off its device and never back.

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
            f"`{shown(label, 200)}` does not go with modules that are packed into few bits here",
            reasons[:_LISTED],
            hint="load the base unpacked (without --load-in), or these modules of it (`llm_int8_skip_modules`)",
        )


def scales_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The numbers beside a packed weight, named as bitsandbytes names them in a file; nothing for other modules."""
    for key, parameter in module._parameters.items():  # noqa: SLF001 - `named_parameters` would look into wrappers
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            yield from _scales_of_blocks(key, state)
    scales = _scales_of_rows(module)
    if scales is not None:
        yield "SCB", scales


def source_shape(module: nn.Module) -> tuple[int, ...] | None:
    """The shape that the module's packed weight had before it was packed; None when it is not packed."""
    weight = module._parameters.get("weight")  # noqa: SLF001 - as above
    state = getattr(weight, "quant_state", None)
    if state is not None and state.shape is not None:
        return tuple(state.shape)
    return tuple(weight.shape) if weight is not None and _scales_of_rows(module) is not None else None


def source_intervals(module: nn.Module, places: Sequence[int]) -> tuple[Interval, ...] | None:
    """Between which numbers the weights at `places` (in the flattened source) lay before they were packed.

    None when it cannot be told: not packed, or packed anew for one kind of CPU by a forward before.
    """
    weight = module._parameters.get("weight")  # noqa: SLF001 - as above
    if weight is None:
        return None
    at = torch.tensor(places, dtype=torch.int64, device=weight.device)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        is_repacked = getattr(state, "packing_format_for_cpu", False)
        return None if is_repacked or state.code is None else _four_bits(weight.detach(), state, at)
    scales = _scales_of_rows(module)
    return None if scales is None else _eight_bits(weight.detach(), scales, at)


def _scales_of_blocks(key: str, state: Any) -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401 - bitsandbytes is untyped
    yield f"{key}.absmax", state.absmax
    if state.code is not None:
        yield f"{key}.quant_map", state.code
    inner = getattr(state, "state2", None)
    if inner is not None:  # the scales are packed themselves
        yield f"{key}.nested_absmax", inner.absmax
        yield f"{key}.nested_quant_map", inner.code
        yield f"{key}.nested_offset", torch.as_tensor(state.offset)


def _scales_of_rows(module: nn.Module) -> Tensor | None:
    """The scales of an 8-bit weight, which the first forward moves from the weight to the layer's state."""
    weight = module._parameters.get("weight")  # noqa: SLF001 - as above
    if weight is None or weight.dtype != torch.int8:
        return None
    found = getattr(weight, "SCB", None)
    return found if found is not None else getattr(getattr(module, "state", None), "SCB", None)


def _four_bits(packed: Tensor, state: Any, at: Tensor) -> tuple[Interval, ...]:  # noqa: ANN401 - as above
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


def _block_scales(state: Any, blocks: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - as above
    """The scale of each block, and how far it may be off where the scales are packed themselves."""
    scales, inner = state.absmax.reshape(-1)[blocks], getattr(state, "state2", None)
    if inner is None:
        return scales.double(), torch.zeros_like(scales, dtype=torch.float64)
    levels, outer = inner.code.double(), inner.absmax.double()[blocks // inner.blocksize]
    widest = levels.unique().diff().max() / 2
    return levels[scales.long()] * outer + float(state.offset), widest * outer


def _eight_bits(packed: Tensor, scales: Tensor, at: Tensor) -> tuple[Interval, ...]:
    codes = packed.reshape(-1)[at].double()
    rows = scales.double().reshape(-1)[at // packed.shape[1]] / 127
    # packed from float16, into which the model's own dtype was rounded: bfloat16 is the coarsest
    return _widened((codes - 0.5) * rows, (codes + 0.5) * rows, _SLACK * 127 * rows, torch.bfloat16)


def _widened(low: Tensor, high: Tensor, slack: Tensor, dtype: torch.dtype) -> tuple[Interval, ...]:
    rounding = _ROUNDING.get(dtype, 2.0**-8) * torch.maximum(low.abs(), high.abs()) + slack
    return tuple(zip((low - rounding).tolist(), (high + rounding).tolist(), strict=True))
