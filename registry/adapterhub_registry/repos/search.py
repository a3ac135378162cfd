"""Lists repositories by tags, words in the id and size, in an order, with a cursor that new entries do not shift."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from sqlalchemy import Column, ColumnElement, Row, and_, false, func, or_, select
from sqlalchemy.engine import Connection

from adapterhub.core.errors import shown
from adapterhub_registry.database.db import adapters, repo_tags, repos
from adapterhub_registry.errors import bad_request

Sort = Literal["createdAt", "downloads", "lastModified", "likes", "trendingScore"]
SORTS: tuple[Sort, ...] = get_args(Sort)
MAX_PAGE: Final = 1000
MAX_FILTERS: Final = 32
MAX_WORDS: Final = 16
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
    order = _ORDER[wanted.sort]
    query = select(repos.c.id, repos.c.head, order.label("place")).where(visible, *_conditions(wanted))
    if wanted.cursor is not None:
        value, number = _read_cursor(wanted.cursor, wanted.sort)
        query = query.where(or_(order < value, and_(order == value, repos.c.id < number)))
    rows: Sequence[Any] = connection.execute(
        query.order_by(order.desc(), repos.c.id.desc()).limit(wanted.limit + 1)
    ).all()
    return Page(rows=rows[: wanted.limit], more=len(rows) > wanted.limit, sort=wanted.sort)


def _conditions(wanted: Listing) -> list[ColumnElement[bool]]:
    if len(wanted.filters) > MAX_FILTERS:
        raise bad_request(f"{len(wanted.filters)} filters, expected at most {MAX_FILTERS}")
    conditions: list[ColumnElement[bool]] = []
    for tag in wanted.filters:
        tagged = repos.c.id.in_(select(repo_tags.c.repo_id).where(repo_tags.c.tag == tag))
        # no pipeline tag has a colon; without the `or`, the database can join the matches of several filters
        conditions.append(tagged if ":" in tag else or_(tagged, repos.c.pipeline_tag == tag))
    if wanted.author is not None:
        conditions.append(repos.c.namespace == wanted.author)
    words = (wanted.search or "").lower().split()
    if len(words) > MAX_WORDS:
        raise bad_request(f"search has {len(words)} words, expected at most {MAX_WORDS}")
    conditions += [func.lower(repos.c.full_name).contains(word, autoescape=True) for word in words]
    if wanted.gated is not None:
        conditions.append(repos.c.gated.is_not(None) if wanted.gated else repos.c.gated.is_(None))
    if wanted.num_parameters:
        conditions.append(_of_size(wanted.num_parameters))
    if wanted.never:
        conditions.append(false())
    return conditions


def _of_size(text: str) -> ColumnElement[bool]:
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
    return repos.c.id.in_(sized)


def _read_cursor(text: str, sort: Sort) -> tuple[int, int]:
    """The value and the repository number of a cursor, which the API encrypts for clients."""
    found = _CURSOR.fullmatch(text)
    if found is None or found[1] != sort:
        raise bad_request(f"cursor `{shown(text)}` does not come from this server, or has another order")
    return int(found[2]), int(found[3])
