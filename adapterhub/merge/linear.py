"""`linear`: the weighted average of the factors, as PEFT's `add_weighted_adapter(combination_type="linear")` does it.

Space: factor, and therefore not the sum of the updates: (B1 + B2)(A1 + A2) has cross terms B1 A2 and B2 A1 that belong
to no adapter. It is here to give what PEFT gives; its measured error against the exact sum is usually large.

Convention, PEFT's: A is multiplied by sign(c) sqrt|c| and B by sqrt|c|, where c is weight * scale. Every adapter must
have the module, at the same rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from adapterhub.errors import MergeRefused
from adapterhub.lowrank import LowRank


def refusal(ranks: Sequence[int]) -> str | None:
    """Why updates of these ranks (0: the adapter lacks the module) cannot be averaged; None if they can."""
    if 0 in ranks:
        return "is not in every adapter"
    if len(set(ranks)) > 1:
        return f"has ranks {', '.join(map(str, ranks))}, `linear` needs one rank"
    return None


def merge(deltas: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """B = sum of sqrt|c| B_i, A = sum of sign(c) sqrt|c| A_i.

    Raises:
        MergeRefused: ranks differ.
    """
    reason = refusal([d.rank for d in deltas])
    if reason is not None:
        raise MergeRefused("cannot average these factors", [f"the module {reason}"])
    factors = [weight * delta.scale for delta, weight in zip(deltas, weights, strict=True)]
    a = [math.copysign(math.sqrt(abs(c)), c) * d.a.double() for d, c in zip(deltas, factors, strict=True)]
    b = [math.sqrt(abs(c)) * d.b.double() for d, c in zip(deltas, factors, strict=True)]
    return LowRank(a=torch.stack(a).sum(0), b=torch.stack(b).sum(0))
