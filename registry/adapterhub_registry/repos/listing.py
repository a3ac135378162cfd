"""Listings of repositories: the conditions that a client may set, and the plan of each, a page at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, get_args

from sqlalchemy import (
    Column,
    ColumnElement,
    Integer,
    Row,
    Text,
    bindparam,
    false,
    func,
    select,
    tuple_,
)
from sqlalchemy.engine import Connection

from adapterhub.core.errors import shown
from adapterhub_registry.database.counting import counted_repos
from adapterhub_registry.database.db import adapters, repo_tags, repos
from adapterhub_registry.database.prepared import Met, Numbers, PreparedSql, numbers_of
from adapterhub_registry.database.search_tables import (
    NAMES,
    Unindexed,
    among,
    tagged,
)
from adapterhub_registry.errors import bad_request, unknown_cursor
from adapterhub_registry.repos.search import (
    ESCAPE,
    MAX_WORDS,
    Condition,
    after_given,
    escaped,
    few_of,
    holding_words,
    met,
    rarest,
    words_of,
)

Sort = Literal["createdAt", "downloads", "lastModified", "likes", "trendingScore"]
SORTS: tuple[Sort, ...] = get_args(Sort)
MAX_LISTED: Final = 1000
MAX_FILTERS: Final = 32
_LIKELY: Final = 20
"""Of so many rows of a tag for each one of a page, some likely have the other tags."""
_LIST_CURSOR = re.compile(r"(\w+) ([0-9]{1,18}) ([0-9]{1,18})")
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
class RepoListing:
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
class ListPage:
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

    def first(self, count: int) -> ListPage:
        """Return the first `count` rows; the rest moves to the next page."""
        return self if count >= len(self.rows) else replace(self, rows=self.rows[:count], more=True)


def list_repos(connection: Connection, wanted: RepoListing, visible: ColumnElement[bool] | Met) -> ListPage:
    """Return the repositories that match and that `visible` admits, in descending order; ties newest first.

    It begins with those that meet a condition, or have all tags, where these are few. Else it goes through a tag or all
    repositories in the order of the list, which soon finds a page.

    Raises:
        HttpRefusal: 400 for a malformed cursor or number, or too many filters.
    """
    if len(wanted.filters) > MAX_FILTERS:
        raise bad_request(f"{len(wanted.filters)} filters, expected at most {MAX_FILTERS}")
    tags = list(dict.fromkeys(wanted.filters))
    conditions = _conditions(connection, wanted)
    filters, values = met(conditions, visible)
    given: dict[str, object] = {"most": wanted.limit + 1, **values}
    if wanted.cursor is not None:
        given["value"], given["last"] = _read_cursor(wanted.cursor, wanted.sort)
    reading = _PageReading(connection, wanted, tuple(filters), given)
    few = rarest(connection, conditions) if conditions or len(tags) > 1 else None
    if few is not None:
        return reading.among(few.found.numbers, tags)
    # a tag has its repositories in the order of their last change
    return reading.through_tag(tags) if tags and wanted.sort == "lastModified" else reading.through_all(tags)


_Begin = Literal["numbers", "tag", "part of a tag", "all"]


@dataclass(frozen=True, slots=True)
class _PageReading:
    """One page, in the ways to read it. Each form of its statement is prepared once."""

    connection: Connection
    wanted: RepoListing
    filters: tuple[ColumnElement[bool], ...]
    given: dict[str, object]

    def among(self, numbers: str, tags: Sequence[str] = ()) -> ListPage:
        """Of some repositories, as JSON, those that have the tags and meet the filters."""
        return self._page("numbers", tags, numbers=numbers)

    def through_tag(self, tags: Sequence[str]) -> ListPage:
        """Those with all tags, in the order of the first; SQLite goes through a part of a frequent one at first."""
        if len(tags) > 1 and self.connection.dialect.name == "sqlite":
            ends = {tag: self._end_of(tag) for tag in tags}
            tags = sorted(tags, key=lambda tag: ends[tag] is not None)
            end = ends[tags[0]]
            if end is not None:
                page = self._page("part of a tag", tags, end_value=end.modified_at, end_number=end.repo_id)
                numbers = None if page.more else self._tagged(tags)
                if page.more or numbers is not None:
                    return page if numbers is None else self.among(numbers)
        return self._page("tag", tags)

    def through_all(self, tags: Sequence[str]) -> ListPage:
        """Those with all tags, in any order."""
        numbers = self._tagged(tags) if tags else None
        return self._page("all", tags) if numbers is None else self.among(numbers)

    def _page(self, begin: _Begin, tags: Sequence[str], **more: object) -> ListPage:
        form = _PageForm(self.wanted.sort, begin, len(tags), self.wanted.cursor is not None, self.filters)
        rows = _page_of(form).rows(self.connection, **self.given, **_named(tags), **more)
        limit = self.wanted.limit
        return ListPage(rows=rows[:limit], more=len(rows) > limit, sort=self.wanted.sort)

    def _end_of(self, tag: str) -> Row[Any] | None:
        """Return the last row of a tag in a part that likely has a page; None for a tag without more rows."""
        end = _end_of(has_cursor=self.wanted.cursor is not None)
        return end.first(self.connection, **self.given, tag=tag, rows=_LIKELY * self.wanted.limit)

    def _tagged(self, tags: Sequence[str]) -> str | None:
        """Return the repositories with all tags, as JSON, unless it costs less to go through others for a page."""
        if self.connection.dialect.name != "sqlite":
            found = Numbers(_all_of(len(tags)), _named(tags)).read(self.connection, few_of(self.connection))
            return None if found is None else found.numbers
        most = math.isqrt(self.wanted.limit * counted_repos(self.connection))
        numbers = tagged(self.connection, tags, most=max(most, self.wanted.limit))
        return None if numbers is None else json.dumps(numbers)


class _PageForm(NamedTuple):
    """The form of a page's statement; `filters` are always the same objects for the same SQL."""

    sort: Sort
    begin: _Begin
    tags: int
    has_cursor: bool
    filters: tuple[ColumnElement[bool], ...]


@lru_cache(maxsize=512)
def _page_of(form: _PageForm) -> PreparedSql:
    order: Column[Any] = _ORDER[form.sort]
    query = select(repos.c.id, repos.c.head, order.label("place"))
    place, number = order, repos.c.id
    others = range(form.tags)
    if form.begin == "numbers":
        query = query.where(among(number, "numbers"))
    elif form.begin != "all":
        place, number, others = repo_tags.c.modified_at, repo_tags.c.repo_id, range(1, form.tags)
        query = query.join_from(repo_tags, repos, repos.c.id == number).where(repo_tags.c.tag == bindparam("tag_0"))
    if form.begin == "part of a tag":
        query = query.where(tuple_(place, number) >= tuple_(bindparam("end_value"), bindparam("end_number")))
    query = query.where(*(_has_tag(number, at) for at in others), *form.filters)
    if form.has_cursor:
        query = query.where(after_given(place, number))
    return PreparedSql(query.order_by(place.desc(), number.desc()).limit(bindparam("most", type_=Integer)))


@lru_cache
def _end_of(*, has_cursor: bool) -> PreparedSql:
    place, number = repo_tags.c.modified_at, repo_tags.c.repo_id
    query = select(place, number).where(repo_tags.c.tag == bindparam("tag"))
    if has_cursor:
        query = query.where(after_given(place, number))
    return PreparedSql(query.order_by(place.desc(), number.desc()).limit(1).offset(bindparam("rows", type_=Integer)))


@lru_cache(maxsize=MAX_FILTERS)
def _all_of(tags: int) -> PreparedSql:
    mine = select(repo_tags.c.repo_id).where(repo_tags.c.tag == bindparam("tag_0"))
    return numbers_of(mine.where(*(_has_tag(repo_tags.c.repo_id, at) for at in range(1, tags))))


def _has_tag(number: ColumnElement[int], at: int) -> ColumnElement[bool]:
    one = repo_tags.alias()
    return select(one.c.tag).where(one.c.repo_id == number, one.c.tag == bindparam(f"tag_{at}")).exists()


def _named(tags: Sequence[str]) -> dict[str, str]:
    return {f"tag_{at}": tag for at, tag in enumerate(tags)}


# ------------------------------------------------------------ conditions
def _conditions(connection: Connection, wanted: RepoListing) -> list[Condition]:
    conditions: list[Condition] = []
    if wanted.author is not None:
        given = {"author": wanted.author}
        conditions.append(Condition(filters=_BY_AUTHOR, given=given, holders=of_namespace(wanted.author)))
    words = words_of("search", wanted.search)
    for at, word in enumerate(words):
        given = {f"word_{at}": escaped(word)}
        conditions.append(Condition(filters=_in_name(at), given=given))
    conditions += holding_words(connection, NAMES, words)
    if wanted.gated is not None:
        gated = Condition(filters=_GATED, holders=Numbers(_ALL_GATED, {}))
        conditions.append(gated if wanted.gated else Condition(filters=_OPEN))
    if wanted.num_parameters:
        conditions.append(_sized(wanted.num_parameters))
    if wanted.never:
        conditions.append(Condition(filters=_NEVER))
    return conditions


_BY_AUTHOR: Final = Unindexed(repos.c.namespace) == bindparam("author")
_OF_AUTHOR: Final = numbers_of(select(repos.c.id).where(repos.c.namespace == bindparam("author")))
_GATED, _OPEN, _NEVER = repos.c.gated.is_not(None), repos.c.gated.is_(None), false()
_ALL_GATED: Final = numbers_of(select(repos.c.id).where(_GATED))


def of_namespace(name: str) -> Numbers:
    """Return the repositories of a namespace."""
    return Numbers(_OF_AUTHOR, {"author": name})


@lru_cache(maxsize=MAX_WORDS)
def _in_name(at: int) -> ColumnElement[bool]:
    return func.lower(repos.c.full_name).contains(bindparam(f"word_{at}", type_=Text), escape=ESCAPE)


def _sized(text: str) -> Condition:
    bounds: list[tuple[str, int]] = []
    for part in text.split(","):
        found = _SIZE.fullmatch(part.strip())
        if found is None:
            raise bad_request(f"num_parameters `{shown(text)}`: expected a form such as `min:1M,max:7B`")
        bound = int(float(found.group(2)) * _FACTOR[found.group(3)])
        if bound >= 1 << 62:
            raise bad_request(f"num_parameters `{shown(text)}`: expected at most 4 quintillion")
        bounds.append((found.group(1), bound))
    # several bounds of one kind are one
    least = max((bound for kind, bound in bounds if kind == "min"), default=0)
    most = min((bound for kind, bound in bounds if kind == "max"), default=1 << 62)
    given = {"size_min": least, "size_max": most}
    return Condition(filters=_HAS_SIZE, given=given, holders=Numbers(_SIZED, given))


_OF_SIZE: Final = select(adapters.c.repo_id).where(
    adapters.c.is_head, adapters.c.parameters.between(bindparam("size_min"), bindparam("size_max"))
)
_HAS_SIZE: Final = _OF_SIZE.where(adapters.c.repo_id == repos.c.id).exists()
_SIZED: Final = numbers_of(_OF_SIZE)


def _read_cursor(text: str, sort: Sort) -> tuple[int, int]:
    """Return the value and the repository number of a cursor, which the API encrypts for clients."""
    found = _LIST_CURSOR.fullmatch(text)
    if found is None or found[1] != sort:
        raise unknown_cursor(text)
    return int(found[2]), int(found[3])
