"""Searches the adapter index by base, task, rank, type and words, a page at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from packaging.version import Version
from sqlalchemy import ColumnElement, Row, Select, and_, func, or_, select
from sqlalchemy.engine import Connection

from adapterhub.core.errors import shown
from adapterhub_registry.database.db import adapters, blobs, commits, places, refs, releases, repos
from adapterhub_registry.errors import bad_request

MAX_PAGE: Final = 100
MAX_RELEASES: Final = 1000
MAX_WORDS: Final = 16
MAX_PLACES: Final = 1000
_CURSOR = re.compile(r"[0-9]{1,18}-[0-9]{1,18}")
BASE_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterQuery:
    """The conditions of a search; None matches anything. `base_sha256` is a prefix of at least 8 hex digits."""

    base: str | None = None
    base_sha256: str | None = None
    task: str | None = None
    rank_min: int | None = None
    rank_max: int | None = None
    peft_type: str | None = None
    q: str | None = None
    cursor: str | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPage:
    """One page of rows (adapters joined with their repository) and the cursor of the next; None on the last."""

    rows: Sequence[Row[Any]]
    next_cursor: str | None


SHOWN: Final = select(
    adapters,
    repos.c.full_name,
    repos.c.private,
    repos.c.downloads,
    repos.c.modified_at,
)
"""Adapters with what a list shows of their repositories; the join is up to the caller."""


def search_adapters(connection: Connection, query: AdapterQuery, visible: ColumnElement[bool]) -> AdapterPage:
    """One adapter for each repository that matches and that `visible` admits, newest first.

    Raises:
        Refusal: 400 for a malformed digest or cursor.
    """
    found = SHOWN.join(repos, repos.c.id == adapters.c.repo_id).where(
        adapters.c.is_listed, visible, *conditions_of(query)
    )
    if query.cursor is not None:
        if not _CURSOR.fullmatch(query.cursor):
            raise bad_request(f"cursor `{shown(query.cursor)}` does not come from this server")
        at, repo_id = map(int, query.cursor.split("-"))
        older = adapters.c.created_at < at
        found = found.where(or_(older, and_(adapters.c.created_at == at, adapters.c.repo_id < repo_id)))
    newest = (adapters.c.created_at.desc(), adapters.c.repo_id.desc())
    rows = connection.execute(found.order_by(*newest).limit(query.limit + 1)).all()
    more = len(rows) > query.limit
    rows = rows[: query.limit]
    return AdapterPage(rows=rows, next_cursor=f"{rows[-1].created_at}-{rows[-1].repo_id}" if more else None)


def conditions_of(query: AdapterQuery) -> list[ColumnElement[bool]]:
    """The conditions on `adapters` and `repos`; raises 400 for too many words or a malformed digest."""
    conditions: list[ColumnElement[bool]] = []
    if query.base is not None:
        conditions.append(adapters.c.base_model == query.base)
    if query.base_sha256 is not None:
        conditions.append(_base_begins(query.base_sha256))
    if query.task is not None:
        conditions.append(adapters.c.task == query.task)
    if query.rank_min is not None:
        conditions.append(adapters.c.rank >= query.rank_min)
    if query.rank_max is not None:
        conditions.append(adapters.c.rank <= query.rank_max)
    if query.peft_type is not None:
        conditions.append(adapters.c.peft_type == query.peft_type.upper())
    words = (query.q or "").lower().split()
    if len(words) > MAX_WORDS:
        raise bad_request(f"q has {len(words)} words, expected at most {MAX_WORDS}")
    for word in words:
        named = func.lower(repos.c.full_name).contains(word, autoescape=True)
        conditions.append(or_(named, adapters.c.words.contains(word, autoescape=True)))
    return conditions


def _base_begins(text: str) -> ColumnElement[bool]:
    """Match a prefix of any digest of the base's fingerprint: an adapter may know only that of the base's files."""
    if not BASE_DIGEST.fullmatch(text):
        raise bad_request(f"base_sha256 `{shown(text)}`: expected 8 to 64 lower-case hex digits")
    begin = text.removeprefix("sha256:")
    columns = (adapters.c.base_sha256, adapters.c.base_tensors, adapters.c.base_files)
    # a range, so that the database can use an index; `g` sorts after every hex digit
    return or_(*(and_(column >= begin, column < f"{begin}g") for column in columns))


def versions_of(connection: Connection, repo_id: int) -> Sequence[Row[Any]]:
    """Every release of a repository that has its tag, with its facts; the newest version first."""
    wanted = (
        select(
            adapters,
            releases.c.version.label("released_as"),
            releases.c.tag,
            releases.c.created_at.label("released_at"),
            releases.c.yanked_at,
            releases.c.yanked_by,
            releases.c.yanked_reason,
        )
        .join_from(
            releases,
            adapters,
            and_(adapters.c.repo_id == releases.c.repo_id, adapters.c.commit_id == releases.c.commit_id),
        )
        .join(
            refs,
            and_(refs.c.repo_id == releases.c.repo_id, refs.c.kind == "tag", refs.c.name == releases.c.tag),
        )
        .where(releases.c.repo_id == repo_id)
    )
    return sorted(connection.execute(wanted).all(), key=lambda row: Version(row.released_as), reverse=True)


def releases_in(
    connection: Connection, namespace: str, visible: ColumnElement[bool], *, cursor: str | None, limit: int
) -> AdapterPage:
    """Every release in a namespace that has its tag: its repository, adapter, version, digest, commit and yank.

    Raises:
        Refusal: 400 for a malformed cursor.
    """
    columns = (releases.c.version, releases.c.digest, releases.c.commit_id, releases.c.yanked_at, releases.c.repo_id)
    same = (adapters.c.repo_id == releases.c.repo_id) & (adapters.c.commit_id == releases.c.commit_id)
    tagged = (refs.c.repo_id == releases.c.repo_id) & (refs.c.kind == "tag") & (refs.c.name == releases.c.tag)
    found: Select[Any] = select(*columns, repos.c.full_name, adapters.c.name).join(
        repos, repos.c.id == releases.c.repo_id
    )
    found = found.join(adapters, same).join(refs, tagged).where(repos.c.namespace == namespace, visible)
    if cursor is not None:
        number, _, version = cursor.partition(" ")
        if not number.isdecimal():
            raise bad_request(f"cursor `{shown(cursor)}` does not come from this server")
        later = (releases.c.repo_id == int(number)) & (releases.c.version > version)
        found = found.where(or_(releases.c.repo_id > int(number), later))
    rows = connection.execute(found.order_by(releases.c.repo_id, releases.c.version).limit(limit + 1)).all()
    last = rows[limit - 1] if len(rows) > limit else None
    return AdapterPage(rows=rows[:limit], next_cursor=None if last is None else f"{last.repo_id} {last.version}")


def yanked_of(connection: Connection, digests: Sequence[str], visible: ColumnElement[bool]) -> Sequence[Row[Any]]:
    """The yanked releases with these digests, as `full_name`, `version`, `digest` and the columns of the yank."""
    wanted = (
        select(repos.c.full_name, releases)
        .join_from(releases, repos, repos.c.id == releases.c.repo_id)
        .where(releases.c.digest.in_(digests), releases.c.yanked_at.is_not(None), visible)
        .order_by(repos.c.full_name, releases.c.version)
    )
    return connection.execute(wanted).all()


def places_of(connection: Connection, sha256: str, visible: ColumnElement[bool]) -> Sequence[Row[Any]]:
    """The files with these bytes, as `full_name`, `gated`, `commit_id`, `path`, `size`; at most 1,000.

    The commit is the first one of the repository that added the file.
    """
    wanted: Select[Any] = (
        select(repos.c.full_name, repos.c.gated, places.c.commit_id, places.c.path, blobs.c.size)
        .join(repos, repos.c.id == places.c.repo_id)
        .join(blobs, blobs.c.sha256 == places.c.sha256)
        .join(commits, and_(commits.c.repo_id == places.c.repo_id, commits.c.id == places.c.commit_id))
        .where(places.c.sha256 == sha256, visible)
        .order_by(commits.c.created_at.desc(), repos.c.id, places.c.path)
        .limit(MAX_PLACES)
    )
    return connection.execute(wanted).all()
