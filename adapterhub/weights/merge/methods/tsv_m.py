"""`tsv_m`: the strongest singular vectors of every update, whitened so that none interferes with another.

Space: core. TSV-M (Gargiulo et al., 2025, arXiv:2412.00081) takes the SVD of each weighted update and keeps its first
singular vectors. It replaces all left vectors by the closest orthonormal set (orthogonal Procrustes), and all right
vectors likewise; the singular values stay. All of this happens between bases that the adapters share, at most R x R.

Convention: of n updates, the paper keeps 1/n of min(out, in) vectors of each, which for low-rank updates is all they
have. Here `keep` is the fraction of each update's own directions, by default 1/n, so that the rank does not grow; at
least one is kept. To apply the authors' scaling coefficient, give every adapter that weight. Vectors of singular value
zero take no part; the authors' code whitens them along with the others. Vectors of several updates that are one
direction (to four digits) stay one: with keep=1, an adapter and its copy, each with weight 1, give that adapter.

The result does not depend on signs or rotations of singular vectors, unless the cut falls between equal singular
values.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.weights.lowrank.algebra import LowRank, nothing
from adapterhub.weights.merge.spaces.core import core_space, factored, whitened

_EXACT = 1e-9
"""0.29 * 100 is 28.999…, so a product this close below a whole number is rounded up to it."""


def merge(deltas: Sequence[LowRank], weights: Sequence[float], *, keep: float | None = None) -> LowRank:
    """Return the sum of the updates after whitening; its rank is at most the number of vectors kept.

    Raises:
        UsageProblem: `keep` is not above 0 and at most 1.
    """
    if keep is not None and not 0 < keep <= 1:
        raise UsageProblem(f"keep {shown(keep)}, expected the fraction of singular vectors, above 0 and at most 1")
    space = core_space(deltas, weights)
    if space is None:
        return nothing(*deltas[0].shape, rank=1)
    fraction = 1 / len(space.members) if keep is None else keep
    pieces = []
    for member in space.members:
        left, values, right = factored(member.core, member.noise)
        kept = max(1, int(fraction * len(values) + _EXACT))
        pieces.append((left[:, :kept], values[:kept], right[:kept]))
    return space.update(whitened(pieces))
