"""How much may be kept: bytes and repositories of a namespace, and bytes that one token sends in a day.

What arrives at the same time is not seen, so two uploads at once may pass a bound by the size of one of them.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.engine import Connection

from adapterhub_registry.db import blobs, now_ms, places, repos, uploads
from adapterhub_registry.errors import Refusal, too_many
from adapterhub_registry.settings import Limits

DAY_MS = 86_400_000
RETRY_AFTER_S = 3600


def refuse_upload(
    connection: Connection, limits: Limits, *, namespace: str, token_id: int | None, more_bytes: int
) -> None:
    """Refuse `more_bytes` that would pass the quota of a namespace or of a token.

    Raises:
        Refusal: 403 QuotaExceeded for the namespace's, 429 with Retry-After for the token's.
    """
    if limits.namespace_bytes:
        used = bytes_of(connection, namespace)
        if used + more_bytes > limits.namespace_bytes:
            raise Refusal(
                403,
                "QuotaExceeded",
                f"`{namespace}` holds {used} of {limits.namespace_bytes} bytes; {more_bytes} more do not fit",
            )
    if limits.token_upload_bytes_per_day and token_id is not None:
        sent = _sent_today(connection, token_id)
        if sent + more_bytes > limits.token_upload_bytes_per_day:
            message = f"this token sent {sent} of {limits.token_upload_bytes_per_day} bytes within a day"
            raise too_many(f"{message}; {more_bytes} more do not fit", after_s=RETRY_AFTER_S)


def refuse_repo(connection: Connection, limits: Limits, namespace: str) -> None:
    """Refuse one more repository in a namespace that has as many as it may; 403 QuotaExceeded."""
    if not limits.namespace_repos:
        return
    count = connection.scalar(select(func.count()).where(repos.c.namespace == namespace)) or 0
    if count >= limits.namespace_repos:
        raise Refusal(403, "QuotaExceeded", f"`{namespace}` has {count} repositories, which is as many as it may")


def bytes_of(connection: Connection, namespace: str) -> int:
    """What the repositories of a namespace hold: each file of any commit and each upload, once in each repository."""
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
