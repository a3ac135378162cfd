"""`knots`: TIES, or DARE-TIES, on updates that one SVD of all of them has aligned.

Space: core. KnOTS (Stoica et al., 2025, arXiv:2410.19735) takes the SVD U S [V1 … Vn] of the weighted updates side by
side. U and S belong to all adapters; block i is the use of them by adapter i. Signs are elected between entries that
mean the same direction. U and S come from R x R matrices and U.T ΔW from the factors, so the [out, n * in] matrix
itself is never formed.

Convention: the authors' code. S multiplies the blocks before they are pruned (in the paper's formula it stays with U),
weights apply before the vote, and what agrees with the elected sign is averaged over how many agree. `density` is the
fraction of each block that is kept, per module; the authors' code has one threshold for a whole adapter. `ties` keeps
the largest numbers; `dare_ties` keeps as many at random and divides them by the density. The published settings scale
every adapter by 0.4 to 0.7, which is the same as that weight for each; they keep 0.2 (CLIP) or 1 (Llama 3) with `ties`,
0.9 or 0.2 with `dare_ties`.

If two singular values are equal (adapters of one strength that share no direction), the vectors between them are not
unique, and the pruned result depends on the choice. The adapters' numbers make it, not their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.weights.lowrank.algebra import LowRank, nothing, spectrum
from adapterhub.weights.merge.spaces.core import core_space, elected_mean, factored, orientation, without_rounding
from adapterhub.weights.merge.spaces.prune import check_density


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    inside: Literal["ties", "dare_ties"] = "ties",
    density: float = 0.5,
    majority: Literal["total", "frequency"] = "total",
    generators: Sequence[torch.Generator] | None = None,
) -> LowRank:
    """U times the elected mean of the blocks; its rank is at most that of all updates together.

    Raises:
        UsageProblem: an option out of range.
    """
    check_density(density)
    if inside not in ("ties", "dare_ties"):
        raise UsageProblem(f"inside `{shown(inside)}`, expected ties or dare_ties")
    space = core_space(deltas, weights, generators)
    if space is None:
        return nothing(*deltas[0].shape, rank=1)
    shared, _, _ = factored(torch.cat(space.cores, dim=1), space.noise)
    blocks = [without_rounding((shared.T @ m.columns) @ m.a, m.noise) for m in space.members]
    # A draw elects plus, so signs must not depend on how an update is split into A and B.
    signs = orientation(torch.cat(blocks, dim=1))
    shared = shared * signs
    blocks = [block.mul_(signs[:, None]) for block in blocks]
    mean = elected_mean(space.members, blocks, density=density, majority=majority, at_random=inside == "dare_ties")
    sizes = torch.linalg.vector_norm(mean, dim=1)
    used = sizes > 0
    if not used.any():
        return nothing(*deltas[0].shape, rank=1)
    root = sizes[used].sqrt()
    made = LowRank(a=mean[used] / root[:, None], b=space.b @ (space.into_left @ (shared[:, used] * root)))
    # U has a column for each direction of all updates side by side, which may exceed the sides of one.
    return made if made.rank <= min(made.shape) else spectrum(made).truncate(min(made.shape))
