"""`core`: another merge method, run on small matrices between bases that all adapters share.

Space: core. Core Space merging (Panariello et al., 2025, arXiv:2509.17786) takes two bases: the left singular vectors
of all B side by side, and the right singular vectors of all A stacked. Between them an update is a matrix of at most
R x R numbers, where R is the sum of the ranks. The ranks may differ, and nothing is lost. The method `inside` merges
these matrices:

- `task_arithmetic` adds them up, like `cat`;
- `ties` keeps the `density` largest numbers of each, elects signs and averages what agrees;
- `dare_ties` does the same with numbers kept at random and divided by the density;
- `tsv` whitens all their singular vectors, like `tsv_m` with keep=1;
- `isotropic` gives all directions of the sum one strength, like `isotropic`.

`flatten` gives all directions one strength after any of the others, as the authors' example does after `tsv`.

Convention: the authors' code. The bases come from the factors as stored, and weight and scale go into the matrices, so
weights count in a vote. To apply the authors' scaling coefficient (0.2 to 0.3 in the published settings), give every
adapter that weight.

The results of `ties` and `dare_ties` depend on the bases, and so on how an update is split into A and B: an adapter
that was factored again merges differently. If singular values of the stacked factors are equal, the bases are not
unique; the adapters' numbers decide, not their order. Directions that no adapter uses are left out, so adapters that
share their A have smaller matrices to prune than in the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.weights.lowrank.algebra import LowRank, nothing
from adapterhub.weights.merge.methods.isotropic import flattened
from adapterhub.weights.merge.spaces.core import CoreSpace, core_space, elected_mean, factored, whitened
from adapterhub.weights.merge.spaces.prune import Majority, check_density

_INSIDE = ("task_arithmetic", "ties", "dare_ties", "tsv", "isotropic")


def merge(
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    *,
    inside: Literal["task_arithmetic", "ties", "dare_ties", "tsv", "isotropic"] = "tsv",
    flatten: bool = False,
    density: float = 0.5,
    majority: Literal["total", "frequency"] = "total",
    generators: Sequence[torch.Generator] | None = None,
) -> LowRank:
    """Return the merged core between the shared bases; its rank is at most that of all updates together.

    Raises:
        UsageProblem: an option out of range.
    """
    check_density(density)
    if inside not in _INSIDE:
        raise UsageProblem(f"inside `{shown(inside)}`, expected one of {', '.join(_INSIDE)}")
    space = core_space(deltas, weights, generators)
    if space is None:
        return nothing(*deltas[0].shape, rank=1)
    core = _merged(space, inside, density, majority)
    # As in `isotropic`, a single adapter stays unchanged.
    if len(space.members) > 1 and (flatten or inside == "isotropic"):
        core = flattened(core, space.noise)
    return space.update(core)


def _merged(space: CoreSpace, inside: str, density: float, majority: Majority) -> Tensor:
    if inside == "tsv":
        return whitened([factored(m.core, m.noise) for m in space.members])
    if inside in ("ties", "dare_ties"):
        at_random = inside == "dare_ties"
        return elected_mean(space.members, space.cores, density=density, majority=majority, at_random=at_random)
    return torch.stack(space.cores).sum(0)
