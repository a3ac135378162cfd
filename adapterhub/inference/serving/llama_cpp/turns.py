"""Decides which of llama.cpp's engines computes, and for whom.

llama.cpp computes the answers of different adapters one after the other, each to its end, and a long prompt at one go.
So an engine here computes for one tenant and one adapter at a time. Several tenants get engines of their own, of which
one runs at a time. A signal stops the others in the midst of whatever they do, and they go on later as if nothing had
been. So this holds for every request, including sampled answers, grammars, pictures and long prompts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final

from adapterhub.inference.serving.chain.slots import Owner, Slot, Slots, Waiting, best_of

SLICE_S: Final = 0.05
"""How much longer than another tenant one may compute before that one has its turn."""

FORGOTTEN_S: Final = 5.0
"""Half of the time that a tenant used counts no longer after these seconds."""

NOTICED_S: Final = 1.5
"""Within this time, llama.cpp notices that a client has left, and ends its work."""

_FEW: Final = 3
_STOP, _GO = (getattr(signal, name, None) for name in ("SIGSTOP", "SIGCONT"))
CAN_STOP: Final = _STOP is not None
"""Whether this system can stop a process for a while."""


class Turns:
    """While several engines have work, lets one of them run: that of the tenant that has used least of its share.

    The tenant with the fewest requests gets three quarters of the time if it asks all the time; the others, the rest.
    `asking` counts the requests of each tenant. `pids` are the processes of the engines.
    """

    def __init__(self, pids: Sequence[int], asking: Mapping[str | None, int]) -> None:
        self._pids = pids if CAN_STOP else ()
        self._asking = asking
        self._at_work: dict[int, str | None] = {}
        self._used: dict[str | None, float] = {}
        self._runs: int | None = None
        self._stopped: set[int] = set()
        self._seen = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begins(self, engine: int, tenant: str | None) -> None:
        """Count an engine as at work for a tenant."""
        self._count()
        self._at_work[engine] = tenant
        self._settle()

    def ends(self, engine: int) -> None:
        """Count an engine as idle."""
        self._count()
        self._at_work.pop(engine, None)
        self._settle()

    def close(self) -> None:
        """Let every engine run, so that it can end."""
        self._at_work.clear()
        self._settle()
        self._pids = ()  # another process may get the number of one that has ended

    def _count(self) -> None:
        """Add the time since the last call to the time that the tenant of the running engine has used."""
        now = asyncio.get_running_loop().time()
        spent, self._seen = now - self._seen, now
        kept = 0.5 ** (spent / FORGOTTEN_S)
        self._used = {tenant: used * kept for tenant, used in self._used.items() if used * kept > SLICE_S / 100}
        if self._at_work:
            tenant = self._at_work.get(self._runs, next(iter(self._at_work.values())))  # type: ignore[arg-type]  # None is no engine
            self._used[tenant] = self._used.get(tenant, 0.0) + spent

    def _settle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waits = set[int]()
        if self._pids and len(self._at_work) > 1:
            fewest = min(filter(None, map(self._asking.__getitem__, self._at_work.values())), default=0)
            runs = min(self._at_work, key=lambda one: self._share_used(one, fewest) - SLICE_S * (one == self._runs))
            waits, self._runs = self._at_work.keys() - {runs}, runs
            self._timer = asyncio.get_running_loop().call_later(SLICE_S, self._look)
        else:
            self._runs = next(iter(self._at_work), None)
        for engine in waits - self._stopped:
            self._signal(engine, _STOP)
        for engine in self._stopped - waits:
            self._signal(engine, _GO)
        self._stopped = waits

    def _share_used(self, engine: int, fewest: int) -> float:
        tenant = self._at_work[engine]
        return self._used.get(tenant, 0.0) / (_FEW if self._asking[tenant] == fewest else 1)

    def _look(self) -> None:
        self._count()
        self._settle()

    def _signal(self, engine: int, number: signal.Signals | None) -> None:
        assert number is not None  # else there is no engine to stop
        with contextlib.suppress(ProcessLookupError):  # it ended, which `wait_for` says
            os.kill(self._pids[engine], number)


class EngineSlots(Slots):
    """The slots of several engines, each of which works for one owner at a time. A tenant has one engine at a time.

    An engine that becomes idle takes the oldest request of the tenant that was served longest ago, and all that wait of
    the same owner. While a tenant waits for an engine, or its tenant for another adapter, it takes no more.
    """

    def __init__(self, count: int, pids: Sequence[int] = (), *, engines: int = 1) -> None:
        super().__init__(count, engines=engines)
        self._turns = Turns(pids, self._asking)
        self._owners: dict[int, Owner] = {}
        self._running = [0] * engines
        self._filled: int | None = None

    def close(self) -> None:
        """Let every engine run, so that it can end."""
        self._turns.close()

    def _hand_out(self) -> None:
        self._filled = None
        super()._hand_out()

    def _next(self) -> tuple[Waiting, Slot] | None:
        at_work = {owner[0]: engine for engine, owner in self._owners.items()}
        new = [tenant for tenant in self._lines if tenant not in at_work]
        for slot in self._free:
            owner = self._owners.get(slot.engine)
            if owner is None or owner[0] not in self._lines:
                continue
            line = self._lines[owner[0]]
            able = line if slot.engine == self._filled else [] if new else line[:1]
            one = next((one for one in able if one.owner == owner), None)
            if one is not None:
                return self._given(one, [free for free in self._free if free.engine == slot.engine])
        idle = [slot for slot in self._free if slot.engine not in self._owners]
        if not idle or not new:
            return None
        one = self._lines[self._first(new)][0]
        found = self._given(one, idle)
        self._filled = found[1].engine
        self._owners[self._filled] = one.owner
        self._turns.begins(self._filled, one.owner[0])
        return found

    def _given(self, one: Waiting, slots: Sequence[Slot]) -> tuple[Waiting, Slot]:
        slot = best_of(slots, one.owner)
        self._running[slot.engine] += 1
        return one, slot

    def _give_back(self, slot: Slot, owner: Owner, *, is_left: bool = False) -> None:
        if is_left:
            asyncio.get_running_loop().call_later(NOTICED_S, self._end, slot.engine)
        else:
            self._end(slot.engine, hands_out=False)
        super()._give_back(slot, owner)

    def _end(self, engine: int, *, hands_out: bool = True) -> None:
        """Count a request as ended; one whose client left, when the engine has had time to notice."""
        self._running[engine] -= 1
        if not self._running[engine]:
            del self._owners[engine]
            self._turns.ends(engine)
        if hands_out:
            self._hand_out()
