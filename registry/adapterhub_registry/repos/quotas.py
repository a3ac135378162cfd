"""Quotas: bytes and repositories of a namespace, and bytes that a token uploads or chunks unpack to in a day.

Concurrent uploads do not see each other, so two of them may exceed a quota by the size of one.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, func, select, update
from sqlalchemy.engine import Connection

from adapterhub_registry.database.db import blobs, insert_new, now_ms, places, repos, slices, uploads, xet_use
from adapterhub_registry.errors import Refusal, too_many
from adapterhub_registry.settings import Limits

DAY_MS = 86_400_000
RETRY_AFTER_S = 3600


def check_upload(
    connection: Connection, limits: Limits, *, namespace: str, token_id: int | None, more_bytes: int
) -> None:
    """Raise when `more_bytes` would exceed the quota of a namespace or of a token.

    Raises:
        Refusal: 403 QuotaExceeded for the namespace, 429 with Retry-After for the token.
    """
    if limits.namespace_bytes:
        used = bytes_of(connection, namespace)
        if used + more_bytes > limits.namespace_bytes:
            message = f"quota reached: `{namespace}` has {used} of {limits.namespace_bytes} bytes"
            raise Refusal(403, "QuotaExceeded", f"{message}; {more_bytes} more do not fit")
    if limits.token_upload_bytes_per_day and token_id is not None:
        sent = _sent_today(connection, token_id)
        if sent + more_bytes > limits.token_upload_bytes_per_day:
            message = f"quota reached: this token sent {sent} of {limits.token_upload_bytes_per_day} bytes in a day"
            raise too_many(f"{message}; {more_bytes} more do not fit", after_s=RETRY_AFTER_S)


def sent_before(connection: Connection, repo_id: int, digests: Iterable[str]) -> set[str]:
    """Those of `digests` that were uploaded to a repository: they count already, even if their bytes are missing."""
    found: set[str] = set()
    for some in slices(list(digests)):
        mine = (uploads.c.repo_id == repo_id) & uploads.c.sha256.in_(some)
        found |= set(connection.scalars(select(uploads.c.sha256).where(mine)))
    return found


def record_chunks(connection: Connection, user: str, epoch: int, sent_bytes: int) -> None:
    """Record that `user` sent chunks of `sent_bytes`, and remove the rows of past epochs."""
    connection.execute(delete(xet_use).where(xet_use.c.user_name == user, xet_use.c.epoch < epoch - 2))
    _use(connection, user, epoch, sent_bytes=sent_bytes)


def count_unpacking(connection: Connection, limits: Limits, *, user: str, epoch: int, more_bytes: int) -> None:
    """Count `more_bytes` of files before unpacking them; a negative number gives them back.

    By compression and repetition, a few bytes of chunks can name files of any size. The bytes that a user may unpack in
    an epoch therefore grow with the bytes that the user sent in it.

    Raises:
        Refusal: 413 when they exceed what the chunks allow.
    """
    _use(connection, user, epoch, unpacked_bytes=more_bytes)
    row = connection.execute(select(xet_use).where(xet_use.c.user_name == user, xet_use.c.epoch == epoch)).one()
    allowed = limits.xet_free_bytes + limits.xet_ratio * row.sent_bytes
    if more_bytes > 0 and row.unpacked_bytes > allowed:
        before = row.unpacked_bytes - more_bytes
        raise Refusal(
            413,
            "TooLarge",
            f"the files have {more_bytes} bytes, but the {row.sent_bytes} bytes of chunks that you sent allow"
            f" {allowed}, of which {before} are used; upload them without Xet: set HF_HUB_DISABLE_XET=1",
        )


def _use(connection: Connection, user: str, epoch: int, *, sent_bytes: int = 0, unpacked_bytes: int = 0) -> None:
    mine = {"user_name": user, "epoch": epoch}
    insert_new(connection, xet_use, [mine | {"sent_bytes": 0, "unpacked_bytes": 0}])
    connection.execute(
        update(xet_use)
        .where(xet_use.c.user_name == user, xet_use.c.epoch == epoch)
        .values(sent_bytes=xet_use.c.sent_bytes + sent_bytes, unpacked_bytes=xet_use.c.unpacked_bytes + unpacked_bytes)
    )


def check_new_repo(connection: Connection, limits: Limits, namespace: str) -> None:
    """Raise 403 QuotaExceeded when a namespace cannot have another repository."""
    if not limits.namespace_repos:
        return
    count = connection.scalar(select(func.count()).where(repos.c.namespace == namespace)) or 0
    if count >= limits.namespace_repos:
        raise Refusal(
            403, "QuotaExceeded", f"quota reached: `{namespace}` has {count} of {limits.namespace_repos} repositories"
        )


def bytes_of(connection: Connection, namespace: str) -> int:
    """The bytes of all files and uploads in a namespace; each counts once in a repository."""
    mine = select(repos.c.id).where(repos.c.namespace == namespace)
    committed = select(places.c.repo_id, places.c.sha256).where(places.c.repo_id.in_(mine))
    sent = select(uploads.c.repo_id, uploads.c.sha256).where(uploads.c.repo_id.in_(mine))
    both = committed.union(sent).subquery()
    total = select(func.coalesce(func.sum(blobs.c.size), 0)).join(both, both.c.sha256 == blobs.c.sha256)
    return int(connection.scalar(total) or 0)


def _sent_today(connection: Connection, token_id: int) -> int:
    mine = (uploads.c.token_id == token_id) & (uploads.c.created_at > now_ms() - DAY_MS)
    total = select(func.coalesce(func.sum(blobs.c.size), 0)).join(uploads, uploads.c.sha256 == blobs.c.sha256)
    return int(connection.scalar(total.where(mine)) or 0)
