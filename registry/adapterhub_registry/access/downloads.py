"""Counts downloads in memory; the application writes the counts to the database every few seconds."""

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
    """The counts of one process. Killing it loses the last few seconds."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._lock = threading.Lock()
        self._pending: Counter[tuple[int, int]] = Counter()

    def count(self, repo_id: int) -> None:
        """Count one download of a repository, without any input or output."""
        with self._lock:
            self._pending[repo_id, int(time.time()) // DAY_S] += 1

    def flush(self) -> None:
        """Write the pending counts; those that fail stay for the next time."""
        with self._lock:
            pending, self._pending = self._pending, Counter()
        # sorted: two servers that write the same rows in different orders would deadlock
        items = sorted(pending.items())
        for start in range(0, len(items), STEP):
            try:
                self._write(items[start : start + STEP])
            except BaseException:
                with self._lock:
                    self._pending.update(dict(items[start:]))
                raise

    def _write(self, items: Sequence[tuple[tuple[int, int], int]]) -> None:
        """Write many rows with few statements: several statements a row would leave a busy server no time to answer."""
        rows = [{"repo": repo_id, "on": day, "number": number} for (repo_id, day), number in items]
        more: BindParameter[int] = bindparam("number")
        total = update(repos).where(repos.c.id == bindparam("repo")).values(downloads=repos.c.downloads + more)
        of_day = (downloads.c.repo_id == bindparam("repo")) & (downloads.c.day == bindparam("on"))
        with self._db.begin() as connection:
            wanted = select(repos.c.id).where(repos.c.id.in_({row["repo"] for row in rows}))
            known = set(connection.scalars(wanted))
            rows = [row for row in rows if row["repo"] in known]  # skips repositories that were removed meanwhile
            if not rows:
                return
            connection.execute(total, [{"repo": row["repo"], "number": row["number"]} for row in rows])
            new = [{"repo_id": row["repo"], "day": row["on"], "count": 0} for row in rows]
            insert_new(connection, downloads, new)
            connection.execute(update(downloads).where(of_day).values(count=downloads.c.count + more), rows)
