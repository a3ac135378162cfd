"""Shares the engine's slots among tenants: each slot holds the keys and values of one tenant and one adapter at a time.

The engine would choose a slot by the likeness of prompts, of any tenant, and wait in one line for all. Here a
request waits in the line of its tenant, and a slot that is free goes to the tenant that has the fewest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

Owner = tuple[str | None, str | None]
"""A tenant and a digest; None for no tenants, and for the base."""


@dataclass(slots=True)
class Slot:
    """A place of the engine for one sequence. `is_fresh`: what it holds is of another owner, and must not be reused."""

    number: int
    owner: Owner | None = None
    used_at: int = 0
    is_fresh: bool = True


class Slots:
    """The slots of one engine, within one event loop. `most` is how many one tenant may hold."""

    def __init__(self, count: int, most: int | None = None) -> None:
        self._free = [Slot(number) for number in range(count)]
        self._most = count if most is None else max(1, most)
        self._waiting: dict[str | None, deque[tuple[asyncio.Future[Slot], Owner]]] = {}
        self._held: dict[str | None, int] = {}
        self._served_at: dict[str | None, int] = {}
        self._turn = 0

    @contextlib.asynccontextmanager
    async def taken(self, owner: Owner) -> AsyncIterator[Slot]:
        """Hold a slot while the block runs, after waiting for it."""
        tenant = owner[0]
        place: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append((place, owner))
        self._hand_out()
        try:
            slot = await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._give_back(tenant, place.result())
            raise
        try:
            yield slot
        finally:
            self._give_back(tenant, slot)

    def _give_back(self, tenant: str | None, slot: Slot) -> None:
        self._free.append(slot)
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        self._hand_out()

    def _hand_out(self) -> None:
        """Give free slots to those that wait: to the tenant that holds the fewest, then the one served longest ago."""
        while self._free:
            for tenant, line in [*self._waiting.items()]:
                while line and line[0][0].done():  # it left
                    line.popleft()
                if not line:
                    del self._waiting[tenant]
            ready = [tenant for tenant in self._waiting if self._held.get(tenant, 0) < self._most]
            if not ready:
                return
            tenant = min(ready, key=lambda one: (self._held.get(one, 0), self._served_at.get(one, 0)))
            place, owner = self._waiting[tenant].popleft()
            self._turn += 1
            self._served_at[tenant] = self._turn
            self._held[tenant] = self._held.get(tenant, 0) + 1
            place.set_result(self._slot_for(owner))

    def _slot_for(self, owner: Owner) -> Slot:
        """Take the free slot that held the same owner last, or else the one that was used longest ago."""
        slot = min(self._free, key=lambda one: (one.owner != owner, one.used_at))
        self._free.remove(slot)
        slot.is_fresh = slot.is_fresh or slot.owner != owner
        slot.owner, slot.used_at = owner, self._turn
        return slot
