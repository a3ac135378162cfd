"""A generation: the engines that were started for one set of adapters, what names mean there, and what runs on them.

A request belongs to one generation from its name to the end of its answer. So it is answered by one version.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from adapterhub.core.digests import Digest
from adapterhub.inference.serving.chain.slots import Owner
from adapterhub.inference.serving.effects import Ask, Effects, Told
from adapterhub.inference.serving.llama_cpp.engine import Address, Engine
from adapterhub.inference.serving.llama_cpp.names import Names, Served
from adapterhub.inference.serving.llama_cpp.routes import EngineRoute, proved_routes, question_for, told_by
from adapterhub.inference.serving.llama_cpp.turns import EngineSlots
from adapterhub.inference.serving.metrics import ServingMetrics
from adapterhub.inference.serving.refusal import RequestRefused


class Generation:
    """The engines at `where`, which have loaded the same adapters in the order of `names`, within one event loop.

    `proved` are the paths of the engines that read the choice of an adapter; None until `ready` has found them. `slots`
    are the places of each engine, `pids` their processes, which then take turns.
    """

    def __init__(
        self,
        where: Sequence[Address],
        names: Names,
        metrics: ServingMetrics,
        *,
        slots: int = 4,
        pids: Sequence[int] = (),
        proved: frozenset[str] | None = None,
    ) -> None:
        self.engines, self.names, self.proved = [Engine(one) for one in where], names, proved
        self.slots = EngineSlots(slots, pids, engines=len(where))
        self.without_effect: dict[Digest, str] = {}
        """Why an adapter has none, of those that the engine was asked about and answered the same with."""
        self._effects = Effects(metrics)
        self._running = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def ready(self) -> None:
        """Ask the engine about each adapter, before requests come.

        Raises:
            RequestRefused: the engine does not answer.
        """
        if self.proved is None:
            self.proved = await proved_routes(self.engines[0], self.names)
        for one in self.names.served.values():
            try:
                await self._effects.ensure(
                    one.label, one.digest, None, one.asleep, self._asking(one, (None, one.digest))
                )
            except RequestRefused as refusal:
                if self._effects.refusal(one.label, one.digest) is None:
                    raise
                self.without_effect[one.digest] = refusal.message

    def ensure_proved(self, served: Served | None, route: EngineRoute) -> None:
        """Refuse an adapter on a route where the engine ignores it.

        Raises:
            RequestRefused: 404.
        """
        if served is not None and route.probe is not None and route.path not in (self.proved or ()):
            other = "/v1/chat/completions"
            raise RequestRefused(404, f"this llama.cpp ignores adapters at {route.path}; {other} applies them")

    async def ensure_effect(self, served: Served, owner: Owner) -> None:
        """Refuse an adapter with which the engine answers like the base. Tests now if `ready` could not.

        Raises:
            RequestRefused: 424.
        """
        await self._effects.ensure(served.label, served.digest, owner[0], served.asleep, self._asking(served, owner))

    def _asking(self, served: Served, owner: Owner) -> Ask:
        """Asks in a slot of the owner."""
        route, question = question_for(self.proved or frozenset())

        async def ask(is_adapted: bool) -> Told | None:  # noqa: FBT001 - see `Ask`
            async with self.slots.taken(owner) as slot:
                chosen = served if is_adapted else None
                slot.is_fresh = True  # what it now holds may be the base's
                return await told_by(self.engines[slot.engine], self.names, route, question, chosen, slot.number)

        return ask

    # ------------------------------------------------------------ what runs
    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count a request while the block runs."""
        self._running += 1
        self._is_idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._is_idle.set()

    async def idle(self) -> None:
        """Return when no request runs on it."""
        await self._is_idle.wait()

    def close(self) -> None:
        """Let every engine run, so that it can end."""
        self.slots.close()
