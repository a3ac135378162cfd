"""Tells the requests that wait for an event when there is one, with one question to the database for all of them."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from starlette.concurrency import run_in_threadpool

from adapterhub_registry.database.db import Database
from adapterhub_registry.events import outbox

FRESH_S: Final = 0.25
"""How old the answer of the database may be."""


class Watch:
    """The newest event of one database, as the waiting requests of one server see it."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._asked_at = float("-inf")
        self._latest = 0
        self._asking = asyncio.Lock()

    async def latest(self) -> int:
        """A number that grows with each event."""
        async with self._asking:
            if time.monotonic() - self._asked_at > FRESH_S:
                self._latest = await run_in_threadpool(outbox.latest, self._db)
                self._asked_at = time.monotonic()
            return self._latest
