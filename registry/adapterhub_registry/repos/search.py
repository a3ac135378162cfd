"""Lists repositories by tags, words in the id and size, in an order, with a cursor that new entries do not shift."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, get_args

from sqlalchemy import Column, ColumnElement, Row, Select, bindparam, false, func, select
from sqlalchemy.engine import Connection

from adapterhub.core.errors import shown
from adapterhub_registry.database.db import adapters, repo_tags, repos
from adapterhub_registry.database.prepared import Prepared
from adapterhub_registry.database.search_tables import NAMES, Unindexed, among
from adapterhub_registry.errors import bad_request
from adapterhub_registry.repos.adapter_search import FEW, Condition, after, all_words, holders_of, rarest, words_of

Sort = Literal["createdAt", "downloads", "lastModified", "likes", "trendingScore"]
SORTS: tuple[Sort, ...] = get_args(Sort)
MAX_PAGE: Final = 1000
MAX_FILTERS: Final = 32
_CURSOR = re.compile(r"(\w+) ([0-9]{1,18}) ([0-9]{1,18})")
_SIZE = re.compile(r"(min|max):([0-9]{1,15}(?:\.[0-9]{1,6})?)([KMBT]?)")
_FACTOR = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}

# the registry has no likes and trends; downloads stand for both
_ORDER: dict[Sort, Column[Any]] = {
    "createdAt": repos.c.created_at,
    "lastModified": repos.c.modified_at,
    "downloads": repos.c.downloads,
    "likes": repos.c.downloads,
    "trendingScore": repos.c.downloads,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The conditions of a listing; empty and None match anything. Each of `filters` is a tag or the pipeline tag.

    `num_parameters` has the form `min:1M,max:7B`. `never` holds filters that no repository here can match.
    """

    filters: tuple[str, ...] = ()
    author: str | None = None
    search: str | None = None
    gated: bool | None = None
    num_parameters: str | None = None
    never: tuple[str, ...] = ()
    sort: Sort = "lastModified"
    cursor: str | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of repositories, as rows with their number and the head of `main`; with `more`, another page follows."""

    rows: Sequence[Row[Any]]
    more: bool
    sort: Sort

    @property
    def ids(self) -> list[int]:
        """The numbers of the repositories."""
        return [row.id for row in self.rows]

    @property
    def next_cursor(self) -> str | None:
        """The cursor of the next page; None on the last."""
        return f"{self.sort} {self.rows[-1].place} {self.rows[-1].id}" if self.more else None

    def first(self, count: int) -> Page:
        """The first `count` rows; the rest moves to the next page."""
        return self if count >= len(self.rows) else replace(self, rows=self.rows[:count], more=True)


def list_repos(connection: Connection, wanted: Listing, visible: ColumnElement[bool]) -> Page:
    """The repositories that match and that `visible` admits, in descending order; ties newest first.

    Raises:
        Refusal: 400 for a malformed cursor or number, or too many filters.
    """
    order: Column[Any] = _ORDER[wanted.sort]
    tags = list(dict.fromkeys(wanted.filters))
    conditions = _conditions(connection, wanted, tags)
    query = select(repos.c.id, repos.c.head, order.label("place"))
    place, number = order, repos.c.id
    by_tag = wanted.sort == "lastModified" and bool(tags)  # a tag has its repositories in this order
    few = 0 if by_tag and len(conditions) == 1 else rarest(connection, conditions)
    if by_tag and (few or 0) < len(tags):
        few, place, number = few or 0, repo_tags.c.modified_at, repo_tags.c.repo_id
        query = query.join_from(repo_tags, repos, repos.c.id == number).where(repo_tags.c.tag == tags[few])
    elif few is not None:
        query = query.where(repos.c.id.in_(_tagged(tags[few]) if few < len(tags) else conditions[few].those))
    elif len(tags) > 1:
        both = connection.scalars(_tagged(*tags).limit(FEW + 1)).all()
        if len(both) <= FEW:
            query, tags = query.where(among(repos.c.id, both)), []
    query = query.where(*(_has_tag(number, tag) for at, tag in enumerate(tags) if at != few))
    query = query.where(visible, *(one.filters for one in conditions))
    if wanted.cursor is not None:
        value, last = _read_cursor(wanted.cursor, wanted.sort)
        query = query.where(after(place, value, number, last))
    rows: Sequence[Any] = connection.execute(query.order_by(place.desc(), number.desc()).limit(wanted.limit + 1)).all()
    return Page(rows=rows[: wanted.limit], more=len(rows) > wanted.limit, sort=wanted.sort)


def _count_tagged(tag: str, connection: Connection) -> int:
    """How many repositories have a tag; one more than `FEW` for more."""
    row = _TAGGED.first(connection, tag=tag, most=FEW + 1)
    return 0 if row is None else int(row.number)


_some = select(repo_tags.c.repo_id).where(repo_tags.c.tag == bindparam("tag")).limit(bindparam("most")).subquery()
_TAGGED: Final = Prepared(select(func.count().label("number")).select_from(_some))


def _tagged(first: str, *others: str) -> Select[Any]:
    """The repositories with all these tags."""
    mine = select(repo_tags.c.repo_id).where(repo_tags.c.tag == first)
    return mine.where(*(_has_tag(repo_tags.c.repo_id, tag) for tag in others))


def _has_tag(number: ColumnElement[int], tag: str) -> ColumnElement[bool]:
    one = repo_tags.alias()
    return select(one.c.tag).where(one.c.repo_id == number, one.c.tag == tag).exists()


def _conditions(connection: Connection, wanted: Listing, tags: Sequence[str]) -> list[Condition]:
    """The conditions; those of the tags come first, without their filters."""
    if len(wanted.filters) > MAX_FILTERS:
        raise bad_request(f"{len(wanted.filters)} filters, expected at most {MAX_FILTERS}")
    conditions = [Condition(count=partial(_count_tagged, tag)) for tag in tags]
    mine = repos.alias()
    if wanted.author is not None:
        filters = Unindexed(repos.c.namespace) == wanted.author
        conditions.append(
            Condition(filters=filters, holders=select(mine.c.id).where(mine.c.namespace == wanted.author))
        )
    words = words_of("search", wanted.search)
    for word in words:
        named = func.lower(repos.c.full_name).contains(word, autoescape=True)
        conditions.append(Condition(filters=named, holders=holders_of(connection, NAMES, word)))
    conditions += all_words(connection, NAMES, words)
    if wanted.gated is not None:
        gated = repos.c.gated.is_not(None) if wanted.gated else repos.c.gated.is_(None)
        conditions.append(Condition(filters=gated))
    if wanted.num_parameters:
        sized = _of_size(wanted.num_parameters)
        conditions.append(Condition(filters=sized.where(adapters.c.repo_id == repos.c.id).exists(), holders=sized))
    if wanted.never:
        conditions.append(Condition(filters=false()))
    return conditions


def _of_size(text: str) -> Select[Any]:
    sized = select(adapters.c.repo_id).where(adapters.c.is_head)
    for part in text.split(","):
        found = _SIZE.fullmatch(part.strip())
        if found is None:
            raise bad_request(f"num_parameters `{shown(text)}`: expected a form such as `min:1M,max:7B`")
        bound = int(float(found.group(2)) * _FACTOR[found.group(3)])
        if bound >= 1 << 62:
            raise bad_request(f"num_parameters `{shown(text)}`: too large")
        column = adapters.c.parameters
        sized = sized.where(column >= bound if found.group(1) == "min" else column <= bound)
    return sized


def _read_cursor(text: str, sort: Sort) -> tuple[int, int]:
    """The value and the repository number of a cursor, which the API encrypts for clients."""
    found = _CURSOR.fullmatch(text)
    if found is None or found[1] != sort:
        raise bad_request(f"cursor `{shown(text)}` does not come from this server, or has another order")
    return int(found[2]), int(found[3])
