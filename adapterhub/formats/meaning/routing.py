"""Which of several adapters a text is for, by the vectors of their example prompts.

With at most eight adapters, the nearest mean of prompts decides; with more, linear discriminants whose covariance is
shrunk by 0.9 to a multiple of the identity (Friedman, 1989), which tell near tasks apart better. How near the text is
to the mean of the chosen adapter says whether it is for any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_CENTROIDS: Final = 8
SHRINKAGE: Final = 0.9
OWN_BELOW: Final = 0.05
"""The share of an adapter's own prompts that the proposed threshold sends to the base."""

LEAST_THRESHOLD: Final = 0.2


def method_of(adapters: int) -> str:
    """`centroid` or `lda`, by the number of adapters."""
    return "centroid" if adapters <= MOST_CENTROIDS else "lda"


class Router:
    """Chooses among adapters; `groups` are the unit vectors [prompts, 384] of each."""

    def __init__(self, groups: Sequence[NDArray[Any]]) -> None:
        means = np.stack([group.mean(0) for group in groups])
        self._means = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
        self._weights, self._offsets = self._means, np.zeros(len(groups))
        if method_of(len(groups)) == "lda":
            spread = np.concatenate([group - group.mean(0) for group in groups])
            covariance = spread.T @ spread / len(spread)
            size = len(covariance)
            ridge = SHRINKAGE * max(float(np.trace(covariance)) / size, 1e-9)
            self._weights = np.linalg.solve((1 - SHRINKAGE) * covariance + ridge * np.eye(size), means.T).T
            self._offsets = -0.5 * (self._weights * means).sum(1)

    def choose(self, vectors: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """The adapter of each unit vector [texts, 384], and the cosine [texts, adapters] with the mean of each."""
        return (vectors @ self._weights.T + self._offsets).argmax(1), vectors @ self._means.T


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """How prompts are routed that were left out; `confusion` [adapters, adapters] counts them by their own adapter.

    `near` are the cosines of those that were routed right with the mean of their adapter, by adapter.
    """

    confusion: NDArray[np.int64]
    near: Sequence[NDArray[Any]]

    @property
    def accuracy(self) -> float:
        """The share of the prompts that were routed to their own adapter, whatever the threshold."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def proposed(self) -> float:
        """The threshold that sends 5 % of what is routed right to the base, and at least 0.2."""
        near = np.concatenate(self.near)
        return max(LEAST_THRESHOLD, round(float(np.quantile(near, OWN_BELOW)), 3)) if len(near) else LEAST_THRESHOLD

    def to_base(self, threshold: float) -> list[int]:
        """How many of each adapter's prompts that were routed right fall below a threshold."""
        return [int((near < threshold).sum()) for near in self.near]


def cross_check(groups: Sequence[NDArray[Any]]) -> CrossCheck:
    """Leave out one prompt of every adapter at a time, and route these by the others.

    One of every adapter: to leave out a single one would move the mean of its own adapter alone, and judge too badly.
    """
    confusion = np.zeros((len(groups), len(groups)), np.int64)
    near: list[list[float]] = [[] for _ in groups]
    for out in range(max(map(len, groups))):
        own = [at for at, group in enumerate(groups) if out < len(group)]
        router = Router([np.delete(group, out, 0) if out < len(group) else group for group in groups])
        chosen, cosines = router.choose(np.stack([groups[at][out] for at in own]))
        for row, (at, found) in enumerate(zip(own, chosen, strict=True)):
            confusion[at, found] += 1
            if at == found:
                near[at].append(float(cosines[row, at]))
    return CrossCheck(confusion, [np.array(one) for one in near])
