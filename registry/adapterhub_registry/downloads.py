"""Counting downloads without a write for each: counts gather in memory; the app writes them every few seconds."""

from __future__ import annotations

import threading
import time
from collections import Counter

from sqlalchemy import update

from adapterhub_registry.db import Database, downloads, insert_new, repos

FLUSH_EVERY_S = 5.0
DAY_S = 86_400


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
        """Write what has gathered."""
        with self._lock:
            pending, self._pending = self._pending, Counter()
        if not pending:
            return
        with self._db.begin() as connection:
            for (repo_id, day), number in pending.items():
                total = update(repos).where(repos.c.id == repo_id).values(downloads=repos.c.downloads + number)
                if not connection.execute(total).rowcount:
                    continue  # removed meanwhile
                insert_new(connection, downloads, [{"repo_id": repo_id, "day": day, "count": 0}])
                of_day = (downloads.c.repo_id == repo_id) & (downloads.c.day == day)
                connection.execute(update(downloads).where(of_day).values(count=downloads.c.count + number))
