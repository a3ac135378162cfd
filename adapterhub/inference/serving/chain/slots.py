"""Shares the places of an engine among tenants: a request waits in the line of its tenant, and not in one line for all.

Each slot holds the keys and values of one tenant and one adapter at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass

Owner = tuple[str | None, str | None]
"""A tenant and a digest; None for no tenants, and for the base."""


@dataclass(slots=True)
class Slot:
    """A place for one sequence. `is_fresh`: what it holds, if anything, is of another owner, and is not reused."""

    number: int
    engine: int = 0
    owner: Owner | None = None
    used_at: int = 0
    is_fresh: bool = True


@dataclass(eq=False, slots=True)
class Waiting:
    """A request that waits for a slot."""

    owner: Owner
    slot: asyncio.Future[Slot]


class Slots:
    """The slots within one event loop. A free one goes to the tenant that holds the fewest, of at most `most`."""

    def __init__(self, count: int, most: Callable[[], int | None] = lambda: None, *, engines: int = 1) -> None:
        self._free = [Slot(number, engine) for engine in range(engines) for number in range(count)]
        self._most = most
        self._lines: dict[str | None, list[Waiting]] = {}
        self._asking = Counter[str | None]()
        self._held = Counter[str | None]()
        self._served_at = Counter[str | None]()
        self._turn = 0

    @contextlib.asynccontextmanager
    async def taken(self, owner: Owner) -> AsyncIterator[Slot]:
        """Hold a slot while the block runs, after waiting for it."""
        one = Waiting(owner, asyncio.get_running_loop().create_future())
        self._lines.setdefault(owner[0], []).append(one)
        self._asking[owner[0]] += 1
        is_left = False
        try:
            self._hand_out()
            slot = await one.slot
            is_left = True
            yield slot
            is_left = False
        finally:
            self._asking[owner[0]] -= 1
            if one.slot.done() and not one.slot.cancelled():
                self._give_back(one.slot.result(), owner, is_left=is_left)

    def _give_back(self, slot: Slot, owner: Owner, *, is_left: bool = False) -> None:  # noqa: ARG002 - for those that inherit
        self._free.append(slot)
        self._held[owner[0]] -= 1
        self._held += Counter()  # without those that hold none
        self._hand_out()

    def _hand_out(self) -> None:
        """Give free slots to those that wait."""
        while self._free:
            lines = {tenant: [one for one in line if not one.slot.done()] for tenant, line in self._lines.items()}
            self._lines = {
                tenant: line for tenant, line in lines.items() if line
            }  # without those that got one, or left
            found = self._next() if self._lines else None
            if found is None:
                return
            one, slot = found
            tenant = one.owner[0]
            self._turn += 1
            self._held[tenant] += 1
            self._served_at[tenant] = self._turn
            self._free.remove(slot)
            slot.is_fresh = slot.is_fresh or slot.owner != one.owner
            slot.owner, slot.used_at = one.owner, self._turn
            one.slot.set_result(slot)

    def _next(self) -> tuple[Waiting, Slot] | None:
        """Choose who gets a slot next; None if no one can have one now."""
        most = self._most()
        ready = [tenant for tenant in self._lines if most is None or self._held[tenant] < max(1, most)]
        if not ready:
            return None
        one = self._lines[self._first(ready)][0]
        return one, best_of(self._free, one.owner)

    def _first(self, tenants: Iterable[str | None]) -> str | None:
        return min(tenants, key=lambda one: (self._held[one], self._served_at[one]))


def best_of(slots: Sequence[Slot], owner: Owner) -> Slot:
    """Take the slot that held the same owner last, or else the one that was used longest ago."""
    return min(slots, key=lambda one: (one.owner != owner, one.used_at))
