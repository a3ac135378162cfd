"""A routing file at work: which adapter a text is for, and how well the file tells its adapters apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from adapterhub.formats.meaning.model import SIZE
from adapterhub.formats.meaning.routing import CrossCheck, Router, cross_check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from adapterhub.formats.meaning.encoder import Encoder
    from adapterhub.formats.route import Route, RoutedAdapter

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
        """What a text is for, among the adapters that may be used. About 15 ms, whatever its length."""
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
        """The router over some of the adapters; the last one is kept, as what may be used changes seldom."""
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
