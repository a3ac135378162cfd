"""Counting downloads without a write for each: counts gather in memory; the app writes them every few seconds."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

from sqlalchemy import BindParameter, bindparam, select, update

from adapterhub_registry.database.db import Database, downloads, insert_new, repos

FLUSH_EVERY_S = 5.0
DAY_S = 86_400
STEP = 500


class Downloads:
    """The counts of one process. What a kill loses is the last seconds."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._lock = threading.Lock()
        self._pending: Counter[tuple[int, int]] = Counter()

    def count(self, repo_id: int) -> None:
        """One download of a repository; costs no input or output."""
        with self._lock:
            self._pending[repo_id, int(time.time()) // DAY_S] += 1

    def flush(self) -> None:
        """Write what has gathered; what could not be written is kept for the next time."""
        with self._lock:
            pending, self._pending = self._pending, Counter()
        # in one order: two servers that write the same rows would otherwise wait for each other
        items = sorted(pending.items())
        for start in range(0, len(items), STEP):
            try:
                self._write(items[start : start + STEP])
            except BaseException:
                with self._lock:
                    self._pending.update(dict(items[start:]))
                raise

    def _write(self, items: Sequence[tuple[tuple[int, int], int]]) -> None:
        """A few statements for many rows: with some for each row, a busy server had no time left to answer."""
        rows = [{"repo": repo_id, "on": day, "number": number} for (repo_id, day), number in items]
        more: BindParameter[int] = bindparam("number")
        total = update(repos).where(repos.c.id == bindparam("repo")).values(downloads=repos.c.downloads + more)
        of_day = (downloads.c.repo_id == bindparam("repo")) & (downloads.c.day == bindparam("on"))
        with self._db.begin() as connection:
            known = select(repos.c.id).where(repos.c.id.in_({row["repo"] for row in rows}))
            there = set(connection.scalars(known))
            rows = [row for row in rows if row["repo"] in there]  # the others were removed meanwhile
            if not rows:
                return
            connection.execute(total, [{"repo": row["repo"], "number": row["number"]} for row in rows])
            new = [{"repo_id": row["repo"], "day": row["on"], "count": 0} for row in rows]
            insert_new(connection, downloads, new)
            connection.execute(update(downloads).where(of_day).values(count=downloads.c.count + more), rows)
