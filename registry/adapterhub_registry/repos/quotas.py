"""Quotas: bytes and repositories of a namespace, and bytes that a token uploads or chunks unpack to in a day.

Bytes that a client announces count at once, until they were sent or their links end; counts are decided in one order
for each namespace. So uploads at the same time never exceed a quota together. Every refusal is 400 QuotaExceeded: of
403 the hub client says that the token lacks a permission, and after 429 it waits silently.

A check that reads blobs marks damaged ones, and an upload of the right bytes removes the mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, bindparam, delete, exists, func, insert, select, update
from sqlalchemy.engine import Connection

from adapterhub.core.display import size_text
from adapterhub_registry.database.counting import space_of
from adapterhub_registry.database.db import (
    blobs,
    insert_new,
    lock_name,
    now_ms,
    places,
    repos,
    reservations,
    slices,
    token_use,
    uploads,
    xet_use,
)
from adapterhub_registry.database.search_tables import Unindexed
from adapterhub_registry.errors import HttpRefusal, quota_exceeded
from adapterhub_registry.repos.commits import ATTRIBUTES_SHA256
from adapterhub_registry.settings import ServerLimits
from adapterhub_registry.storage.blobs import StoredBlob

DAY_MS = 86_400_000


def reserve(
    connection: Connection, limits: ServerLimits, repo: Row[Any], *, token_id: int | None, sizes: Mapping[str, int]
) -> None:
    """Let the files of `sizes` (sha256: size) count from now on, until they are recorded or their links end.

    Raises:
        HttpRefusal: 400 QuotaExceeded; then none of them counts.
    """
    if not is_limited(limits) or not sizes:
        return
    lock_name(connection, f"quota of {repo.namespace}")
    connection.execute(delete(reservations).where(reservations.c.ends_at < now_ms()))
    release(connection, repo.id, sizes)
    check_upload(
        connection, limits, namespace=repo.namespace, token_id=token_id, more_bytes=sum(sizes.values()), writes=True
    )
    ends_at = now_ms() + 1000 * limits.href_ttl_s
    mine = {"repo_id": repo.id, "token_id": token_id, "ends_at": ends_at}
    connection.execute(insert(reservations), [{**mine, "sha256": oid, "size": size} for oid, size in sizes.items()])


def release(connection: Connection, repo_id: int, digests: Iterable[str]) -> None:
    """Let announced files no longer count as such."""
    for some in slices(list(digests)):
        mine = (reservations.c.repo_id == repo_id) & reservations.c.sha256.in_(some)
        connection.execute(delete(reservations).where(mine))


def take(
    connection: Connection, limits: ServerLimits, repo: Row[Any], *, token_id: int | None, blob: StoredBlob
) -> None:
    """Count a file that has arrived, in the transaction that records it.

    Raises:
        HttpRefusal: 400 QuotaExceeded, where it was not announced, or a limit is lower by now.
    """
    if not is_limited(limits):
        return
    lock_name(connection, f"quota of {repo.namespace}")
    release(connection, repo.id, [blob.sha256])
    committed = (places.c.repo_id == repo.id) & (places.c.sha256 == blob.sha256)
    if connection.scalar(select(places.c.sha256).where(committed).limit(1)) is not None:
        return
    if not sent_before(connection, repo.id, [blob.sha256]):
        check_upload(connection, limits, namespace=repo.namespace, token_id=token_id, more_bytes=blob.size, writes=True)
        if limits.token_upload_bytes_per_day and token_id is not None:
            _count_sent(connection, token_id, blob.size)


def is_limited(limits: ServerLimits) -> bool:
    """Return whether bytes have a quota here."""
    return bool(limits.namespace_bytes or limits.token_upload_bytes_per_day)


def check_chunks(connection: Connection, limits: ServerLimits, user: str, epoch: int) -> None:
    """Limit the chunks that a user sent in an epoch, and that do not belong to a file yet, to one quota.

    They may become a file that counts already, so that the other files do not count against them.

    Raises:
        HttpRefusal: 400 QuotaExceeded.
    """
    most = min(filter(None, (limits.namespace_bytes, limits.token_upload_bytes_per_day)), default=0)
    row = connection.execute(select(xet_use).where(xet_use.c.user_name == user, xet_use.c.epoch == epoch)).one_or_none()
    waiting = 0 if row is None else row.sent_bytes - row.unpacked_bytes
    if most and waiting > most:
        raise quota_exceeded(f"{size_text(waiting)} of your chunks belong to no file yet")


def check_upload(
    connection: Connection,
    limits: ServerLimits,
    *,
    namespace: str,
    token_id: int | None,
    more_bytes: int,
    writes: bool = False,
) -> None:
    """Raise when `more_bytes` would exceed the quota of a namespace or of a token.

    A transaction that `writes` keeps the counts that it had to make.

    Raises:
        HttpRefusal: 400 QuotaExceeded.
    """
    if limits.namespace_bytes:
        announced = _announced(connection, Unindexed(repos.c.namespace) == namespace)
        room = limits.namespace_bytes - announced - more_bytes
        used = _used(connection, namespace, room, writes=writes) + announced
        if used + more_bytes > limits.namespace_bytes:
            raise _exceeded(f"`{namespace}` has {_of(used, limits.namespace_bytes)}", more_bytes)
    if limits.token_upload_bytes_per_day and token_id is not None:
        sent = _sent_today(connection, token_id) + _announced(connection, reservations.c.token_id == token_id)
        if sent + more_bytes > limits.token_upload_bytes_per_day:
            raise _exceeded(f"this token sent {_of(sent, limits.token_upload_bytes_per_day)} in a day", more_bytes)


def check_announced(
    connection: Connection, limits: ServerLimits, repo: Row[Any], *, token_id: int | None, sizes: Sequence[int]
) -> None:
    """Raise as `check_upload` when files of these sizes cannot fit; a Xet client shows no later refusal to its user.

    Their digests are still unknown. A file of the size of one that counts already, or is announced, may be that file,
    so it passes.
    """
    if not is_limited(limits) or not sizes:
        return
    try:
        check_upload(connection, limits, namespace=repo.namespace, token_id=token_id, more_bytes=sum(sizes))
    except HttpRefusal:
        pass  # some may be there
    else:
        return
    committed = select(places.c.sha256).where(places.c.repo_id == repo.id)
    both = committed.union(select(uploads.c.sha256).where(uploads.c.repo_id == repo.id))
    known = set(connection.scalars(select(blobs.c.size).where(blobs.c.size.in_(set(sizes)), blobs.c.sha256.in_(both))))
    mine = (reservations.c.repo_id == repo.id) & reservations.c.size.in_(set(sizes))
    known |= set(connection.scalars(select(reservations.c.size).where(mine)))
    more = sum(size for size in sizes if size not in known)
    if more:
        check_upload(connection, limits, namespace=repo.namespace, token_id=token_id, more_bytes=more)


def _announced(connection: Connection, which: ColumnElement[bool]) -> int:
    """Return the bytes of those announced files that do not count by themselves yet."""
    sent = exists().where(uploads.c.repo_id == reservations.c.repo_id, uploads.c.sha256 == reservations.c.sha256)
    total = select(func.coalesce(func.sum(reservations.c.size), 0)).join(repos, repos.c.id == reservations.c.repo_id)
    return int(connection.scalar(total.where(which, reservations.c.ends_at >= now_ms(), ~sent)) or 0)


def _exceeded(state: str, more_bytes: int) -> HttpRefusal:
    more = f"{size_text(more_bytes)} more do not fit"
    return quota_exceeded(f"{state}; {more}, so nothing was published")


def _of(used_bytes: int, limit_bytes: int) -> str:
    return f"{size_text(used_bytes)} of {size_text(limit_bytes)}"


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


def count_unpacking(connection: Connection, limits: ServerLimits, *, user: str, epoch: int, more_bytes: int) -> None:
    """Count `more_bytes` of files before unpacking them; a negative number gives them back.

    By compression and repetition, a few bytes of chunks can name files of any size. The bytes that a user may unpack in
    an epoch therefore grow with the bytes that the user sent in it.

    Raises:
        HttpRefusal: 413 when they exceed what the chunks allow.
    """
    _use(connection, user, epoch, unpacked_bytes=more_bytes)
    row = connection.execute(select(xet_use).where(xet_use.c.user_name == user, xet_use.c.epoch == epoch)).one()
    allowed = limits.xet_free_bytes + limits.xet_ratio * row.sent_bytes
    if more_bytes > 0 and row.unpacked_bytes > allowed:
        before = row.unpacked_bytes - more_bytes
        raise HttpRefusal(
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


def check_new_repo(connection: Connection, limits: ServerLimits, namespace: str) -> None:
    """Raise 400 QuotaExceeded when a namespace cannot have another repository."""
    if not limits.namespace_repos:
        return
    count = space_of(connection, namespace).repos
    if count >= limits.namespace_repos:
        raise quota_exceeded(f"`{namespace}` has {count} of {limits.namespace_repos} repositories")


def _used(connection: Connection, namespace: str, room: int, *, writes: bool) -> int:
    """Return the bytes of a namespace, or no less than these where even that leaves `room`.

    Bytes that a repository gains are added to `repos.most_bytes`, and bytes that it loses are not taken off. So most
    checks count nothing.
    """
    mine, total = repos.c.namespace == namespace, space_of(connection, namespace).bytes
    if total <= room:
        return total
    if writes:
        connection.execute(update(repos).where(mine).values(most_bytes=0))  # who adds to one waits until this ends
    held = bytes_of(connection, namespace)
    if writes and held:
        rows = [{"repo": number, "bytes": size} for number, size in held.items()]
        one = update(repos).where(repos.c.id == bindparam("repo")).values(most_bytes=bindparam("bytes"))
        connection.execute(one, rows)
    return sum(held.values())


def bytes_of(connection: Connection, namespace: str) -> dict[int, int]:
    """Return the bytes of each repository of a namespace.

    A file or upload counts once, the first file of each never.
    """
    mine = select(repos.c.id).where(repos.c.namespace == namespace)
    committed = select(places.c.repo_id, places.c.sha256).where(
        places.c.repo_id.in_(mine), places.c.sha256 != ATTRIBUTES_SHA256
    )
    sent = select(uploads.c.repo_id, uploads.c.sha256).where(uploads.c.repo_id.in_(mine))
    both = committed.union(sent).subquery()
    total = select(both.c.repo_id, func.sum(blobs.c.size)).join(both, both.c.sha256 == blobs.c.sha256)
    return {number: int(size) for number, size in connection.execute(total.group_by(both.c.repo_id))}


def _sent_today(connection: Connection, token_id: int) -> int:
    mine = (token_use.c.token_id == token_id) & (token_use.c.slot > _slot() - _SLOTS)
    return int(connection.scalar(select(func.coalesce(func.sum(token_use.c.bytes), 0)).where(mine)) or 0)


def _count_sent(connection: Connection, token_id: int, more_bytes: int) -> None:
    slot = _slot()
    over = (token_use.c.token_id == token_id) & (token_use.c.slot <= slot - _SLOTS)
    connection.execute(delete(token_use).where(over))
    insert_new(connection, token_use, [{"token_id": token_id, "slot": slot, "bytes": 0}])
    now = (token_use.c.token_id == token_id) & (token_use.c.slot == slot)
    connection.execute(update(token_use).where(now).values(bytes=token_use.c.bytes + more_bytes))


_SLOT_MS: Final = 600_000
_SLOTS: Final = DAY_MS // _SLOT_MS


def _slot() -> int:
    return now_ms() // _SLOT_MS


def marked(connection: Connection, digests: Sequence[str]) -> set[str]:
    """Return the marked ones among `digests`."""
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
