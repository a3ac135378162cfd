"""Merging factor by factor, A with A and B with B, as PEFT's factor methods do.

The result is not the sum of the updates, pruned or not: (B1 + B2)(A1 + A2) has cross terms B1 A2 and B2 A1 that
belong to no adapter. These methods exist for parity with PEFT, and their measured error is usually large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adapterhub.core.errors import MergeRefused
from adapterhub.weights.lowrank.algebra import LowRank, nothing
from adapterhub.weights.merge.spaces.prune import (
    DisjointMean,
    Majority,
    SignVote,
    by_position,
    check_density,
    magnitude_keep,
    random_keep,
)

Prune = Callable[[Tensor, torch.Generator], Tensor]
"""Sets some numbers of a factor to 0, with the generator of its mask."""

Add = Callable[[Sequence[Tensor], Sequence[float]], Tensor]
"""Combines float64 factors into one, with a weight for each."""


def refusal(ranks: Sequence[int]) -> str | None:
    """Return the reason against merging updates of these ranks (0 where an adapter lacks the module), if any."""
    if 0 in ranks:
        return "is not in every adapter"
    if len(set(ranks)) > 1:
        return f"has ranks {', '.join(map(str, ranks))}; merging factor by factor needs one rank"
    return None


def over_factors(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    add: Add,
    prune: Prune | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> LowRank:
    """Prune A and B of every update with a weight as stored, then add them up; float64, scale 1.

    With c = weight * scale, `add` gets every A with sign(c) sqrt|c| and every B with sqrt|c|. Each adapter's generator
    draws the mask of its A first, then that of its B.

    Raises:
        MergeRefused: ranks differ, or an adapter lacks the module.
    """
    sources = by_position(len(deltas)) if generators is None else generators
    parts = [part for part in zip(deltas, weights, sources, strict=True) if part[1] != 0]
    if not parts:
        return nothing(*deltas[0].shape, rank=1)
    reason = refusal([delta.rank for delta, _, _ in parts])
    if reason is not None:
        raise MergeRefused("cannot merge these factors", [f"the module {reason}"])
    pruned = [
        (prune(delta.a, source), prune(delta.b, source)) if prune is not None else (delta.a, delta.b)
        for delta, _, source in parts
    ]
    factors = [weight * delta.scale for delta, weight, _ in parts]
    a = add([a.double() for a, _ in pruned], [math.copysign(math.sqrt(abs(c)), c) for c in factors])
    b = add([b.double() for _, b in pruned], [math.sqrt(abs(c)) for c in factors])
    return LowRank(a=a, b=b)


def weighted_sum(factors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the sum of weight * factor."""
    total = torch.zeros_like(factors[0])
    for factor, weight in zip(factors, weights, strict=True):
        total.add_(factor * weight)  # not fused, so that an adapter minus itself is 0, not rounding
    return total


def elected_mean(majority: Majority) -> Add:
    """Elects a sign for each entry from the unweighted factors, and averages weight * factor over those that agree."""

    def add(factors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        vote = SignVote(majority)
        for factor in factors:
            vote.add(factor)
        mean = DisjointMean(vote.signs())
        for factor, weight in zip(factors, weights, strict=True):
            mean.add(factor, weight)
        return mean.mean()

    return add


def trimmed(density: float) -> Prune:
    """Keep the largest numbers of a factor, in their own dtype.

    Raises:
        UsageProblem: a density out of range.
    """
    check_density(density)
    return lambda factor, _source: magnitude_keep(factor, density)


def dropped(density: float) -> Prune:
    """Keep numbers of a factor at random and divides them by `density` (DARE), in float64.

    Raises:
        UsageProblem: a density out of range.
    """
    check_density(density)
    return lambda factor, source: random_keep(factor.double(), density, source).div_(density)
