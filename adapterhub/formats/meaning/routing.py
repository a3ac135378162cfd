"""Which of several adapters a text is for, by the vectors of their example prompts.

With at most eight adapters, the nearest mean of prompts decides; with more, linear discriminants whose covariance is
shrunk by 0.9 to a multiple of the identity (Friedman, 1989), which tell near tasks apart better. The distance of the
text from the mean of the chosen adapter decides whether it is for any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from adapterhub.formats.meaning.model import SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adapterhub.formats.meaning.encoder import Encoder
    from adapterhub.formats.route import Route, RoutedAdapter

MOST_CENTROIDS: Final = 8
SHRINKAGE: Final = 0.9
OWN_BELOW: Final = 0.05
"""The share of the prompts that are routed right which the proposed threshold sends to the base."""

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
        """Return the adapter of each unit vector [texts, 384], and its cosine with each mean [texts, adapters]."""
        return (vectors @ self._weights.T + self._offsets).argmax(1), vectors @ self._means.T


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """The choices for prompts that were left out: the positions of the `own` and the `chosen` adapter of each.

    `cosines` are those with the mean of the chosen one.
    """

    adapters: int
    own: NDArray[np.int64]
    chosen: NDArray[np.int64]
    cosines: NDArray[Any]

    def served(self, threshold: float) -> NDArray[np.int64]:
        """How many prompts of each adapter (rows) each adapter answers (columns); the last column is the base."""
        counts = np.zeros((self.adapters, self.adapters + 1), np.int64)
        np.add.at(counts, (self.own, np.where(self.cosines < threshold, self.adapters, self.chosen)), 1)
        return counts

    def accuracy(self, threshold: float) -> float:
        """Return the share of the prompts that their own adapter answers."""
        return float(np.trace(self.served(threshold)) / len(self.own))

    def proposed(self, least: float) -> float:
        """Return the threshold that sends 5 % of correctly routed prompts to the base, or fewer below accuracy `least`.

        At least 0.2, so that texts for none of the adapters stay with the base.
        """
        near = np.sort(self.cosines[self.own == self.chosen])
        spare = max(0, len(near) - math.ceil(least * len(self.own)))
        below = min(math.ceil(OWN_BELOW * len(near)), spare)
        return max(LEAST_THRESHOLD, math.floor(1000 * near[below]) / 1000) if len(near) else LEAST_THRESHOLD


def cross_check(groups: Sequence[NDArray[Any]]) -> CrossCheck:
    """Leave out one prompt of every adapter at a time, and route these by the others.

    One of every adapter, because leaving out a single prompt would move only the mean of its own adapter and give too
    low an accuracy.
    """
    found: list[tuple[int, int, float]] = []
    for out in range(max(map(len, groups))):
        own = [at for at, group in enumerate(groups) if out < len(group)]
        router = Router([np.delete(group, out, 0) if out < len(group) else group for group in groups])
        chosen, cosines = router.choose(np.stack([groups[at][out] for at in own]))
        found += [(at, int(to), float(cosines[row, to])) for row, (at, to) in enumerate(zip(own, chosen, strict=True))]
    own_of, chosen_of, cosine_of = map(np.array, zip(*found, strict=True))
    return CrossCheck(len(groups), own_of, chosen_of, cosine_of)


MOST_CHARACTERS: Final = 8000
"""The rest of a longer text is not looked at."""

_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """The adapter that a text is for, None for the base, its cosine, and the three nearest with theirs."""

    adapter: RoutedAdapter | None
    cosine: float
    near: Sequence[tuple[str, float]]


class Chooser:
    """Routes texts by a file. Threads may share it."""

    def __init__(self, route: Route, encoder: Encoder) -> None:
        self._route, self._encoder = route, encoder
        self._groups = [_unit(one) for one in route.adapters]
        self._last: tuple[tuple[int, ...], Router] | None = None

    def choose(self, text: str, may_use: Callable[[RoutedAdapter], bool] = lambda _: True) -> Choice:
        """Route a text to one of the adapters that may be used. Takes about 15 ms at any length."""
        places = tuple(at for at, one in enumerate(self._route.adapters) if may_use(one))
        if not places:
            return Choice(None, 0.0, ())
        chosen, cosines = self._router(places).choose(self._encoder.vectors([text[:MOST_CHARACTERS]]))
        adapters = [self._route.adapters[at] for at in places]
        first = np.argsort(-cosines[0], kind="stable")[:_SHOWN]
        near = tuple((adapters[at].name, float(cosines[0, at])) for at in first)
        cosine = float(cosines[0, chosen[0]])
        return Choice(adapters[int(chosen[0])] if cosine >= self._route.threshold else None, cosine, near)

    def _router(self, places: tuple[int, ...]) -> Router:
        """Return the router over some of the adapters; the last one is kept, as what may be used changes seldom."""
        last = self._last
        if last is None or last[0] != places:
            last = self._last = places, Router([self._groups[at] for at in places])
        return last[1]


def checked(route: Route) -> CrossCheck:
    """Route the prompts of a file that are left out, one of every adapter at a time."""
    return cross_check([_unit(one) for one in route.adapters])


def _unit(adapter: RoutedAdapter) -> NDArray[Any]:
    vectors: NDArray[Any] = np.frombuffer(adapter.vectors, np.int8).reshape(-1, SIZE).astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-9))
    return vectors
