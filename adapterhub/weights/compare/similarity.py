"""Compares adapter folders, and forecasts their merge; `formats.derived.comparison` has the figures."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adapterhub.core.errors import MergeRefused
from adapterhub.formats.derived.algebra import SAMPLED, ArrayUpdate
from adapterhub.formats.derived.comparison import CompareProgress, Comparison, Side, Stored, compare_sides
from adapterhub.formats.derived.reading import why_not
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.lowrank.factors import WeightedAdapter
from adapterhub.weights.merge.methods import cat
from adapterhub.weights.merge.plan import plan_merge


def compare_adapters(
    sides: Sequence[WeightedAdapter],
    *,
    dtype: str = "float32",
    sampled: int = SAMPLED,
    progress: CompareProgress | None = None,
) -> Comparison:
    """Compare adapters in every module; see `compare_sides`, whose errors it also raises.

    Raises:
        MergeRefused: updates that are not `scale * B A` (such as DoRA); lists every reason.
    """
    stored, obstacles = _plan(sides) if sides else (None, ())
    # glibc keeps the buffers of a module for the next one only after a block of this size has been freed; otherwise a
    # third of the time goes into fresh pages. Other systems ignore this line.
    torch.empty(31 << 20, dtype=torch.uint8)
    return compare_sides(
        [_side(each) for each in sides],
        stored=stored,
        obstacles=obstacles,
        dtype=dtype,
        sampled=sampled,
        progress=progress,
    )


def _side(adapter: WeightedAdapter) -> Side:
    factors = adapter.factors

    def parts(module: str) -> list[ArrayUpdate]:
        return [
            ArrayUpdate(a=part.a.double().numpy(), b=part.b.double().numpy(), scale=part.scale)
            for part in factors.parts(module)
        ]

    return Side(label=adapter.label, weight=adapter.weight, modules=factors.modules, parts=parts)


def _plan(sides: Sequence[WeightedAdapter]) -> tuple[Stored | None, tuple[str, ...]]:
    """Return the plan of a merge, or the reasons against it; raises only for a comparison without meaning."""
    for source in sides:
        config = source.factors.config
        if why_not(config) or not config.is_lora or not source.factors.modules:
            plan_merge([source], cat)
    try:
        plan = plan_merge([source for source in sides if source.weight], cat)
    except MergeRefused as refused:
        return None, refused.reasons
    others = [TensorSpec.planned(name, one.spec.dtype, one.spec.shape) for name, one in plan.carried.items()]
    return Stored(units=plan.units, others=tuple(others), has_bias=plan.has_bias), ()
