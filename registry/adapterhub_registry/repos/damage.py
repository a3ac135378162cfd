"""Which stored files were found damaged: a check that reads them sets the mark, an upload of their bytes removes it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.engine import Connection

from adapterhub_registry.database.db import blobs, now_ms, slices


def marked(connection: Connection, digests: Sequence[str]) -> set[str]:
    """Those of `digests` that are marked."""
    found: set[str] = set()
    for some in slices(digests):
        found |= set(
            connection.scalars(select(blobs.c.sha256).where(blobs.c.sha256.in_(some), blobs.c.damaged_at.is_not(None)))
        )
    return found


def mark(connection: Connection, digests: Sequence[str]) -> None:
    """Say that other bytes lie under these digests, or bytes that cannot be read."""
    for some in slices(digests):
        connection.execute(update(blobs).where(blobs.c.sha256.in_(some)).values(damaged_at=now_ms()))


def unmark(connection: Connection, digests: Sequence[str]) -> None:
    """Say that the right bytes are stored under these digests."""
    for some in slices(digests):
        these = blobs.c.sha256.in_(some) & blobs.c.damaged_at.is_not(None)
        connection.execute(update(blobs).where(these).values(damaged_at=None))
