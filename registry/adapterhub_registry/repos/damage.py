"""Marks damaged blobs: a check that reads them sets the mark, and an upload of the right bytes removes it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.engine import Connection

from adapterhub_registry.database.db import blobs, now_ms, slices


def marked(connection: Connection, digests: Sequence[str]) -> set[str]:
    """The marked ones among `digests`."""
    found: set[str] = set()
    for some in slices(digests):
        found |= set(
            connection.scalars(select(blobs.c.sha256).where(blobs.c.sha256.in_(some), blobs.c.damaged_at.is_not(None)))
        )
    return found


def mark(connection: Connection, digests: Sequence[str]) -> None:
    """Mark blobs whose bytes are wrong or unreadable."""
    for some in slices(digests):
        connection.execute(update(blobs).where(blobs.c.sha256.in_(some)).values(damaged_at=now_ms()))


def unmark(connection: Connection, digests: Sequence[str]) -> None:
    """Remove the mark from blobs whose bytes are right."""
    for some in slices(digests):
        these = blobs.c.sha256.in_(some) & blobs.c.damaged_at.is_not(None)
        connection.execute(update(blobs).where(these).values(damaged_at=None))
