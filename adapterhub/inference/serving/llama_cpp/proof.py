"""Proves, before anyone is served, on which routes the engine reads the choice of an adapter.

llama.cpp ignores the choice where a route does not know it, and applies what was set at the start. So each route is
asked without an adapter, and with each until an answer differs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

from adapterhub.inference.serving.llama_cpp.engine import Engine
from adapterhub.inference.serving.llama_cpp.names import Names, Served
from adapterhub.inference.serving.llama_cpp.routes import CORE, PROVED, Route

_TOLD: Final = ("choices", "content", "completion_probabilities", "data", "results")
"""The members of an answer that tell what the model said."""

_UNTOLD: Final = frozenset({"id", "index", "object", "created"})
_LEAST: Final = 1e-6
_NOISE: Final = 10.0
_log = logging.getLogger("adapterhub.serving")


async def proved_routes(engine: Engine, names: Names) -> frozenset[str]:
    """Find the paths of the engine on which the choice of an adapter changes the answer.

    Where no adapter changes any answer, all of them answer like the base, and the routes that take the choice count.
    """
    found = {route.path for route in PROVED if await _reads_choice(engine, names, route)}
    for route in PROVED:
        if route.path in CORE and found and route.path not in found:
            _log.warning("the engine ignores the adapter at %s; only the base is served there", route.path)
    return frozenset(found or CORE)


async def _reads_choice(engine: Engine, names: Names, route: Route) -> bool:
    before, again = [await _told(engine, names, route, None) for _ in range(2)]
    if before is None or again is None or before[0] != again[0]:
        return False  # not a route of this engine, or its answers differ by chance
    noise = _difference(before[1], again[1])
    for served in names.served.values():
        told = await _told(engine, names, route, served)
        if told is not None and (told[0] != before[0] or _difference(told[1], before[1]) > max(_LEAST, _NOISE * noise)):
            return True
    return False


async def _told(
    engine: Engine, names: Names, route: Route, served: Served | None
) -> tuple[list[str], list[float]] | None:
    """The words and the numbers of an answer; None for a refusal."""
    status, answer = await engine.ask(route.path, {**(route.probe or {}), "lora": names.scales(served), "id_slot": 0})
    if status != HTTPStatus.OK or not isinstance(answer, dict):
        return None
    leaves = list(_leaves([answer.get(key) for key in _TOLD]))
    return [one for one in leaves if isinstance(one, str)], [float(one) for one in leaves if not isinstance(one, str)]


def _difference(one: list[float], other: list[float]) -> float:
    if len(one) != len(other):
        return float("inf")
    return max((abs(a - b) for a, b in zip(one, other, strict=True)), default=0.0)


def _leaves(value: Any) -> Iterator[str | float]:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        for key, one in value.items():
            if key not in _UNTOLD:
                yield from _leaves(one)
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, str) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        yield value
