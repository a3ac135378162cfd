"""Merging in core space, which all adapters together span: its bases, and every update in them.

The columns of all B span the outputs that the adapters write, and the rows of all A the inputs that they read. In
orthonormal bases of both, each update is a matrix of at most R x R numbers, where R is the sum of the ranks. This loses
nothing, so a method that works on the small matrices works on the updates.

Singular vectors are unique only up to a sign, and up to any rotation where singular values coincide. To make results
independent of the order of the adapters, the adapters are first sorted by their numbers, and the sign of each pair of
singular vectors makes the largest entry of the right vector positive.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapterhub.weights.lowrank.algebra import FLOAT32_HALF_STEP, ROUNDING, LowRank, nothing, taking_part
from adapterhub.weights.merge.spaces.prune import (
    DisjointMean,
    Majority,
    SignVote,
    by_position,
    magnitude_keep,
    random_keep,
)

ONE_DIRECTION = 2.0**-14
"""Directions of two adapters that agree to within this count as one; the rest is rounding in a file."""

_SAME_SIZE = 1 - 2.0**-20
"""Sizes whose ratio is above this are equal up to rounding."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoreMember:
    """One weighted update in float64: `left basis @ core @ right basis`.

    `core` is [p, q]. `columns` [p, r] are its weighted columns of B in the left basis and `a` [r, in] is its A, so
    `core` is `columns @ a @ right basis.T`. Numbers below `noise` are rounding.
    """

    a: Tensor
    columns: Tensor
    core: Tensor
    noise: float
    generator: torch.Generator


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoreSpace:
    """The updates of one module between orthonormal bases of all their columns [out, p] and all their rows [q, in].

    `a` [R, in] and `b` [out, R] are all factors side by side; the bases are `b @ into_left` and `into_right.T @ a`.
    """

    members: tuple[CoreMember, ...]
    a: Tensor
    b: Tensor
    into_left: Tensor
    into_right: Tensor

    @property
    def cores(self) -> list[Tensor]:
        """Every member's core."""
        return [m.core for m in self.members]

    @property
    def noise(self) -> float:
        """Singular values of a sum of the members below this are rounding."""
        return sum(m.noise for m in self.members)

    def update(self, core: Tensor) -> LowRank:
        """Return the update of a `core` [p, q], its factors balanced, without numerically empty directions."""
        left, values, right = factored(core, self.noise)
        if not len(values):
            return nothing(self.b.shape[0], self.a.shape[1], rank=1)
        root = values.sqrt()
        # The bases are multiplied last: a weak column of B makes small rows in a core, which undoes the division by a
        # small singular value in `into_left`, so no QR has to form its orthogonal factor.
        return LowRank(
            a=(root[:, None] * right @ self.into_right.T) @ self.a, b=self.b @ (self.into_left @ (left * root))
        )


def core_space(
    deltas: Sequence[LowRank], weights: Sequence[float], generators: Sequence[torch.Generator] | None = None
) -> CoreSpace | None:
    """Return the updates with a weight and a rank, in the space that they span; None if there is none.

    Time as `spectrum`.

    The bases come from the stored factors (singular vectors of all B side by side, of all A on top of each other).
    Weights and scales, which may differ by powers of ten, enter only the cores.

    Raises:
        ValueError: no delta, not one weight each, or shapes differ.
    """
    if not taking_part(deltas, weights):
        return None
    triples = zip(deltas, weights, generators or by_position(len(deltas)), strict=True)
    parts = [(d, weight * d.scale, generator) for d, weight, generator in triples if weight and d.rank]
    parts.sort(key=functools.cmp_to_key(_compare))
    a = torch.cat([d.a.double() for d, _, _ in parts])
    b = torch.cat([d.b.double() for d, _, _ in parts], dim=1)
    into_left, columns = _basis(b)
    into_right, rows = _basis(a.T)
    members, start = [], 0
    for d, factor, generator in parts:
        own = slice(start, start + d.rank)
        sizes = torch.linalg.vector_norm(columns[:, own], dim=0) * torch.linalg.vector_norm(rows[:, own], dim=0)
        weighted = columns[:, own] * factor
        noise = ROUNDING * abs(factor) * float(sizes.sum())
        core = without_rounding(weighted @ rows[:, own].T, noise)
        members.append(CoreMember(a=a[own], columns=weighted, core=core, noise=noise, generator=generator))
        start += d.rank
    return CoreSpace(members=tuple(members), a=a, b=b, into_left=into_left, into_right=into_right)


def without_rounding(values: Tensor, noise: float) -> Tensor:
    """`values` with zeros in place of rounding, which would otherwise have a sign and a vote."""
    return torch.hardshrink(values, noise)


def factored(matrix: Tensor, noise: float, whole: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors and values (left [p, k], [k], right [k, q]) of `matrix` that a float32 file can hold.

    `whole` is the norm of the update that contains `matrix`; by default `matrix` is the whole update.
    """
    left, values, right = _turned(matrix)
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt()
    floor = max(noise, FLOAT32_HALF_STEP * max([whole, *tails[:1].tolist()]))
    keep = int((tails > floor).sum())
    return left[:, :keep], values[:keep], right[:keep]


def orientation(rows: Tensor) -> Tensor:
    """+1 or -1 for each row: the sign of its largest entry, or of the first of several that large."""
    if not rows.numel():
        return rows.new_ones(len(rows))
    sizes = rows.abs()
    largest = (sizes >= _SAME_SIZE * sizes.amax(1, keepdim=True)).to(torch.uint8).argmax(1, keepdim=True)
    return torch.where(rows.gather(1, largest)[:, 0] < 0, -1.0, 1.0).to(rows.dtype)


def isometry(vectors: Tensor) -> Tensor:
    """Return the orthonormal columns or rows closest to unit vectors: the polar factor (orthogonal Procrustes).

    For dependent vectors the closest are not unique; this takes those that add no direction.
    """
    left, values, right = torch.linalg.svd(vectors, full_matrices=False)
    keep = int((values > ONE_DIRECTION).sum())
    turned: Tensor = left[:, :keep] @ right[:keep]
    return turned


def whitened(pieces: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the sum of updates, given as singular vectors and values, after whitening all left and all right vectors.

    Whitening replaces a set by the closest orthonormal one, so that the directions of two updates do not overlap.
    """
    left = isometry(torch.cat([left for left, _, _ in pieces], dim=1))
    right = isometry(torch.cat([right for _, _, right in pieces]))
    return (left * torch.cat([values for _, values, _ in pieces])) @ right


def elected_mean(
    members: Sequence[CoreMember], values: Sequence[Tensor], *, density: float, majority: Majority, at_random: bool
) -> Tensor:
    """TIES on one tensor of weighted numbers for each member: prune, elect a sign, average the numbers of that sign.

    `density` is the fraction to keep: the largest numbers, or random ones divided by it (DARE).

    Raises:
        UsageProblem: a density or majority out of range.
    """
    if at_random:
        kept = [random_keep(v, density, m.generator) / density for m, v in zip(members, values, strict=True)]
    else:
        kept = [magnitude_keep(v, density) for v in values]
    vote = SignVote(majority)
    for one in kept:
        vote.add(one)
    mean = DisjointMean(vote.signs())
    for one in kept:
        mean.add(one)
    return mean.mean()


def _basis(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """For `vectors` [n, R] of rank p: [R, p] that maps them to an orthonormal basis, and [p, R], them in that basis."""
    triangle = torch.linalg.qr(vectors, mode="r").R
    _, values, right = _turned(triangle)
    keep = int((values > ROUNDING * torch.linalg.vector_norm(values)).sum())
    values, right = values[:keep, None], right[:keep]
    return (right / values).T, right * values


def _turned(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the SVD with signs fixed by the `orientation` of the right vectors."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    signs = orientation(right)
    return left * signs, values, right * signs[:, None]


def _compare(one: tuple[LowRank, float, torch.Generator], other: tuple[LowRank, float, torch.Generator]) -> int:
    """Return the order of two updates: by rank, then weight * scale, then the first differing number of A or B."""
    first, second = (one[0].rank, one[1]), (other[0].rank, other[1])
    if first != second:
        return -1 if first < second else 1
    for x, y in ((one[0].a, other[0].a), (one[0].b, other[0].b)):
        differs = (x != y).flatten()
        place = int(differs.to(torch.uint8).argmax()) if differs.numel() else 0
        if differs.numel() and differs[place]:
            return -1 if x.flatten()[place] < y.flatten()[place] else 1
    return 0
