"""`isotropic`: the sum with all its directions at one strength, optionally with directions of each adapter's own.

Space: core. Isotropic merging (Marczak et al., 2025, arXiv:2502.04959) replaces the singular values of the weighted sum
by their mean, so that the weak directions of an adapter do not drown (`iso_c`). `iso_cts` keeps only the first fraction
`common` of the sum's directions. It fills up with the strongest directions that each update has outside of their left
vectors, in equal shares, and whitens both sides as `tsv_m` does. All of this happens between bases that the adapters
share, at most R x R.

Convention: the mean is over the directions that the sum has, its numerical rank. The authors' code averages over all
min(out, in) singular values of a full matrix. For updates of a low rank most of these are zero; they would only shrink
the result, towards directions that no adapter chose. To apply the authors' scaling coefficient (tuned up to 3), give
every adapter that weight. A single adapter is returned times its weight, because there is nothing to balance.

Directions far below the others are raised as well, even those that are rounding of a bfloat16 file; what float32 cannot
resolve is left out. The result does not depend on signs or rotations of singular vectors, unless a cut falls between
equal values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.weights.lowrank.algebra import LowRank, nothing
from adapterhub.weights.merge.spaces.core import CoreSpace, core_space, factored, whitened


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    variant: Literal["iso_c", "iso_cts"] = "iso_c",
    common: float = 0.8,
) -> LowRank:
    """Return the isotropic sum; `common` is the fraction of the sum's directions that `iso_cts` keeps.

    Raises:
        UsageProblem: an option out of range.
    """
    if variant not in ("iso_c", "iso_cts"):
        raise UsageProblem(f"variant `{shown(variant)}`, expected iso_c or iso_cts")
    if not 0 <= common <= 1:
        raise UsageProblem(f"common {shown(common)}, expected a fraction from 0 to 1")
    space = core_space(deltas, weights)
    if space is None:
        return nothing(*deltas[0].shape, rank=1)
    if len(space.members) == 1:
        return space.update(space.cores[0])
    total = torch.stack(space.cores).sum(0)
    return space.update(flattened(total, space.noise) if variant == "iso_c" else _with_own(space, total, common))


def flattened(core: Tensor, noise: float) -> Tensor:
    """`core` with every singular value replaced by their mean, without values below `noise`."""
    left, values, right = factored(core, noise)
    return (left @ right) * values.mean() if len(values) else torch.zeros_like(core)


def _with_own(space: CoreSpace, total: Tensor, common: float) -> Tensor:
    """Return the common directions of `total` and the own directions of each member, whitened, at one strength."""
    left, values, right = factored(total, space.noise)
    if not len(values):
        return torch.zeros_like(total)
    count, members = len(values), len(space.members)
    # Every member gets the same number; the remainder goes to the common ones, as in the authors' code.
    each = min(round((count - int(common * count)) / members), count // members)
    shared = count - each * members
    pieces = [(left[:, :shared], values[:shared], right[:shared])]
    for member in space.members:
        core = member.core
        rest = core - left[:, :shared] @ (left[:, :shared].T @ core)
        own_left, own_values, own_right = factored(rest, member.noise, whole=float(torch.linalg.matrix_norm(core)))
        pieces.append((own_left[:, :each], own_values[:each], own_right[:each]))
    strength = torch.cat([values for _, values, _ in pieces]).mean()
    return whitened([(left, torch.ones_like(values), right) for left, values, right in pieces]) * strength
