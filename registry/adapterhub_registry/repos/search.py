"""Searches of repositories and adapters: the conditions that a client may set, and the plan of each, a page at a time.

The SQL of a condition has its values as parameters, so that a search in another form of the same words needs no new
statement.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, get_args

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Column,
    ColumnElement,
    Integer,
    Row,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    exists,
    false,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.engine import Connection

from adapterhub.core.errors import shown
from adapterhub.formats.manifest import CONTRACT_FILE, SIGNATURE_FILE
from adapterhub.formats.relevance import (
    MOST_RANKED,
    All,
    Matched,
    Wording,
    find,
    matched,
    question_words,
    weigh,
)
from adapterhub_registry.database.db import adapters, places, repo_tags, repos
from adapterhub_registry.database.prepared import FoundNumbers, Met, Numbers, PreparedSql, numbers_of, plan_for_values
from adapterhub_registry.database.search_tables import (
    GRAM,
    NAMES,
    TEXTS,
    Trigrams,
    Unindexed,
    WordHolder,
    among,
    counted_repos,
    has_trigrams,
    tagged,
    texts,
    word_holder,
    wordings,
)
from adapterhub_registry.errors import bad_request

MAX_PAGE: Final = 100
MAX_WORDS: Final = 16
_COUNTED: Final = 250
_FIRST: Final = 64
"""So many builds with the words of the greatest weight come before all others, in the order of their texts."""
_CURSOR = re.compile(r"[0-9]{1,18}-[0-9]{1,18}")
BASE_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterQuery:
    """The conditions of a search; None matches anything. `base_sha256` is a prefix of at least 8 hex digits.

    With `by_relevance`, any word of `q` matches, in any inflection, and the best match comes first.
    """

    base: str | None = None
    base_sha256: str | None = None
    task: str | None = None
    rank_min: int | None = None
    rank_max: int | None = None
    peft_type: str | None = None
    license: str | None = None
    signed: bool | None = None
    tested: bool | None = None
    q: str | None = None
    by_relevance: bool = False
    cursor: str | None = None
    limit: int = 50

    @property
    def is_ranked(self) -> bool:
        """Whether the rows come by relevance: without words there is none."""
        return self.by_relevance and bool(question_words(self.q or ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How well a build fits the words of a search, and the part of its text that holds most of them."""

    score: float
    matched: Matched


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundAdapters:
    """One page of rows (adapters joined with their repository) and the cursor of the next; None on the last.

    `fits` has an entry for each row that comes by relevance, by the number of its repository.
    """

    rows: Sequence[Row[Any]]
    next_cursor: str | None
    fits: Mapping[int, Fit] = field(default_factory=dict)


SHOWN: Final = select(
    adapters,
    repos.c.full_name,
    repos.c.private,
    repos.c.downloads,
    repos.c.modified_at,
)
"""Adapters with what a list shows of their repositories; the join is up to the caller."""


def search_adapters(
    connection: Connection,
    query: AdapterQuery,
    visible: ColumnElement[bool] | Met,
    rank: Callable[..., FoundAdapters] | None = None,
) -> FoundAdapters:
    """One adapter for each repository that matches and that `visible` admits: newest first, or by relevance.

    `rank` gives the order by relevance, as `ranked` does.

    Raises:
        HttpRefusal: 400 for a malformed digest or cursor.
    """
    if query.is_ranked:
        wanted = met(conditions_of(connection, replace(query, q=None)), adapters.c.is_listed, visible)
        return (rank or ranked)(connection, query.q or "", wanted, cursor=query.cursor, limit=query.limit)
    narrow = narrowed(connection, conditions_of(connection, query), is_ordered=True)
    seen = met([], visible)
    given = {**narrow.given, **seen.given, "most": query.limit + 1}
    if query.cursor is not None:
        if not _CURSOR.fullmatch(query.cursor):
            raise bad_request(f"cursor `{shown(query.cursor)}` does not come from this server")
        given["value"], given["last"] = map(int, query.cursor.split("-"))
    rows: Sequence[Row[Any]] = _newest(query.cursor is not None, (*seen.filters, *narrow.filters)).rows(
        connection, **given
    )
    more = len(rows) > query.limit
    rows = rows[: query.limit]
    return FoundAdapters(rows=rows, next_cursor=f"{rows[-1].created_at}-{rows[-1].repo_id}" if more else None)


@lru_cache(maxsize=512)
def _newest(has_cursor: bool, conditions: tuple[ColumnElement[bool], ...]) -> PreparedSql:  # noqa: FBT001 - part of a key
    """The statement of a page, newest first; the same SQL has the same objects in `conditions`."""
    found = SHOWN.join(repos, repos.c.id == adapters.c.repo_id).where(adapters.c.is_listed, *conditions)
    if has_cursor:
        found = found.where(after_given(adapters.c.created_at, adapters.c.repo_id))
    newest = (adapters.c.created_at.desc(), adapters.c.repo_id.desc())
    return PreparedSql(found.order_by(*newest).limit(bindparam("most", type_=Integer)))


def start_of(cursor: str | None) -> int:
    """Where a page of a ranking begins.

    Raises:
        HttpRefusal: 400 for a malformed cursor.
    """
    first = int(cursor) if cursor and cursor.isdecimal() else 0
    if cursor is not None and not 0 < first < MOST_RANKED:
        raise bad_request(f"cursor `{shown(cursor)}` does not come from this server")
    return first


def ranked(connection: Connection, text: str, wanted: Met, *, cursor: str | None, limit: int) -> FoundAdapters:
    """The rows that meet the conditions and hold a word of `text`, the best first, 200 on all pages together.

    Only these rows decide the weight of a word, so what a caller may not read changes no score and no order.

    Raises:
        HttpRefusal: 400 for a malformed cursor.
    """
    first = start_of(cursor)
    words, holds = question_words(text), word_holder(connection)
    steps = _ranking(holds, tuple(wanted.filters))

    def holders(condition: All, most: int) -> Sequence[int]:
        asked = holds.asked(condition)
        return [number for (number,) in steps.held.tuples(connection, **wanted.given, words=asked, most=most)]

    ((few, newest),) = steps.counted.tuples(connection, **wanted.given)
    # among many, the numbers tell how many there are, to a power of two
    builds = few if few < _COUNTED else 1 << newest.bit_length()
    # those of the first pages need not know the rest, apart from whether there is one
    found = find(words, builds, _FIRST + 1 if first + limit <= _FIRST else MOST_RANKED, holders)
    numbers = json.dumps([one.number for one in found])
    texts = {number: Wording(*said) for number, *said in _SAID.tuples(connection, numbers=numbers)}
    known = [(at >= _FIRST, one) for at, one in enumerate(found) if one.number in texts]  # others went meanwhile
    in_order = sorted((late, -weigh(one, texts[one.number]), one.number, one.words) for late, one in known)
    weighed = [one[1:] for one in in_order]
    page = weighed[first : first + limit]
    shown = json.dumps([number for _, number, _ in page])
    rows = {row.repo_id: row for row in steps.shown.rows(connection, **wanted.given, numbers=shown)}
    return FoundAdapters(
        rows=[rows[number] for _, number, _ in page if number in rows],
        next_cursor=str(first + limit) if first + limit < len(weighed) else None,
        fits={
            number: Fit(score=round(-score, 2), matched=matched(words, texts[number])) for score, number, words in page
        },
    )


_SAID: Final = PreparedSql(
    select(wordings.c.repo_id, *(wordings.c[name] for name in Wording._fields)).where(
        among(wordings.c.repo_id, "numbers")
    )
)


class _Ranking(NamedTuple):
    """The statements of a ranking: who holds words, how many there are with the last of them, and what a page shows."""

    held: PreparedSql
    counted: PreparedSql
    shown: PreparedSql


@lru_cache(maxsize=128)
def _ranking(holds: WordHolder, conditions: tuple[ColumnElement[bool], ...]) -> _Ranking:
    def meeting(number: ColumnElement[int]) -> Select[Any]:
        # an expression keeps a database from looking up each adapter in the index of words
        known = select(number).join_from(number.table, adapters, adapters.c.repo_id == number + 0)
        return known.join(repos, repos.c.id == adapters.c.repo_id).where(*conditions)

    held = meeting(holds.number).where(holds.condition).order_by(holds.number)
    by_number = meeting(wordings.c.repo_id)
    some = select(func.count()).select_from(by_number.limit(_COUNTED).subquery()).scalar_subquery()
    last = by_number.order_by(wordings.c.repo_id.desc()).limit(1).scalar_subquery()
    return _Ranking(
        held=PreparedSql(held.limit(bindparam("most", type_=Integer))),
        counted=PreparedSql(select(some.label("few"), last.label("newest"))),
        shown=PreparedSql(SHOWN.join(repos, repos.c.id == adapters.c.repo_id).where(*conditions, AMONG)),
    )


def conditions_of(connection: Connection, query: AdapterQuery) -> list[Condition]:
    """The conditions on `adapters` and `repos`; raises 400 for too many words or a malformed digest."""
    conditions: list[Condition] = []
    if query.base_sha256 is not None:
        conditions.append(_base_begins(connection, query.base_sha256))
    equal = {"base_model": query.base, "task": query.task, "peft_type": query.peft_type and query.peft_type.upper()}
    for name, wanted in equal.items():
        if wanted is not None:
            conditions.append(spanning({name: (wanted, wanted)}, in_order=name != "base_model"))
    if query.rank_min is not None or query.rank_max is not None:
        conditions.append(spanning({"rank": (query.rank_min, query.rank_max)}))
    for path, has in ((SIGNATURE_FILE, query.signed), (CONTRACT_FILE, query.tested)):
        if has is not None:
            conditions.append(holding(places, _at_path(path), has=has))
    if query.license is not None:
        spellings = {"license_0": f"license:{query.license}", "license_1": f"license:{query.license.lower()}"}
        conditions.append(holding(repo_tags, _LICENSED, spellings))
    words = words_of("q", query.q)
    for at, word in enumerate(words):
        given = {f"word_{at}": escaped(word)}
        conditions.append(Condition(filters=_told(at), given=given))
    conditions += holding_words(connection, TEXTS, words)
    return conditions


_LICENSED: Final = or_(repo_tags.c.tag == bindparam("license_0"), repo_tags.c.tag == bindparam("license_1"))


@lru_cache
def _at_path(path: str) -> ColumnElement[bool]:
    """The path stands in the SQL, so that SQLite finds the index over the rows with it."""
    return places.c.path == literal(path, literal_execute=True)


@lru_cache(maxsize=MAX_WORDS)
def _told(at: int) -> ColumnElement[bool]:
    """Whether the word at a place is in the name of the repository or the words of the adapter."""
    told = (func.lower(repos.c.full_name), adapters.c.words)
    return or_(*(text.contains(bindparam(f"word_{at}", type_=Text), escape=ESCAPE) for text in told))


def words_of(name: str, text: str | None) -> list[str]:
    """The words of a parameter, in lower case; raises 400 for too many."""
    words = (text or "").lower().split()
    if len(words) > MAX_WORDS:
        raise bad_request(f"{name} has {len(words)} words, expected at most {MAX_WORDS}")
    return words


_BASES: Final = ("base_sha256", "base_tensors", "base_files")


def _base_begins(connection: Connection, text: str) -> Condition:
    """Match a prefix of any digest of the base's fingerprint: an adapter may know only that of the base's files."""
    if not BASE_DIGEST.fullmatch(text):
        raise bad_request(f"base_sha256 `{shown(text)}`: expected 8 to 64 lower-case hex digits")
    begin = text.removeprefix("sha256:")
    # `g` sorts after every hex digit
    (found,) = _bases_within().tuples(connection, begin=begin, past=f"{begin}g")
    ends = {name: found[2 * at : 2 * at + 2] for at, name in enumerate(_BASES)}
    spans = {name: (least, most) for name, (least, most) in ends.items() if least is not None}
    return spanning(spans, in_order=list(spans) == ["base_sha256"])


@lru_cache
def _bases_within() -> PreparedSql:
    ends = []
    for name in _BASES:
        column = adapters.c[name]
        span = select(column).where(column >= bindparam("begin"), column < bindparam("past")).limit(1)
        ends += [span.order_by(column).scalar_subquery(), span.order_by(column.desc()).scalar_subquery()]
    return PreparedSql(select(*(end.label(f"end_{at}") for at, end in enumerate(ends))))


FEW: Final = 1000
"""Of what at most so many repositories meet, a search reads all."""


Place = int | BindParameter[int]


def after(order: ColumnElement[Any], value: Place, number: ColumnElement[Any], last: Place) -> ColumnElement[bool]:
    """The rows behind one in a list by `order`, then by number, both descending; an index serves the first part."""
    return and_(order <= value, or_(order < value, number < last))


def after_given(order: ColumnElement[Any], number: ColumnElement[Any]) -> ColumnElement[bool]:
    """As `after`, of the parameters `value` and `last`."""
    return after(order, bindparam("value", type_=BigInteger), number, bindparam("last", type_=Integer))


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition of a search, whose SQL has the values in `given` as parameters, so that it is always the same.

    `filters` holds for the rows of `adapters` that meet it, in a form that no index serves; None where others say so,
    too. `serves` is the same in a form whose index has the rows newest first, where there is one: the index of
    `column`. `holders` reads from an index the numbers of the repositories that may meet it; with `is_exact`, all of
    them meet it.
    """

    filters: ColumnElement[bool] | None
    given: Mapping[str, object] = field(default_factory=dict)
    serves: ColumnElement[bool] | None = None
    column: str | None = None
    holders: Numbers | None = None
    is_exact: bool = False


def met(conditions: Iterable[Condition], *others: ColumnElement[bool] | Met) -> Met:
    """All of some conditions, and others; those that are no `Met` have no values of their own."""
    given: dict[str, object] = {}
    filters: list[ColumnElement[bool]] = []
    for other in others:
        filters += other.filters if isinstance(other, Met) else [other]
        given |= other.given if isinstance(other, Met) else {}
    for one in conditions:
        filters += [] if one.filters is None else [one.filters]
        given |= one.given
    return Met(filters, given)


class Narrowed(NamedTuple):
    """As `Met`, and whether it names the few that may match."""

    filters: Sequence[ColumnElement[bool]]
    given: Mapping[str, object]
    is_few: bool


class Few(NamedTuple):
    """The repositories that may meet the condition at a place."""

    at: int
    found: FoundNumbers


_TOGETHER: Final = frozenset({"base_sha256", "task"})
"""Columns with an index of their own for both."""
AMONG: Final = among(adapters.c.repo_id, "numbers")
"""Whether an adapter is in one of the repositories of the parameter `numbers`."""


def narrowed(connection: Connection, conditions: Sequence[Condition], *, is_ordered: bool) -> Narrowed:
    """The conditions, in the form that reads the fewest rows; one more when it names the few that may match.

    A search begins with what few repositories meet, or else goes through the rows in order, which soon finds a page of
    what is frequent. `is_ordered` says that this order is newest first.
    """
    few = rarest(connection, conditions)
    given = dict(met(conditions).given)
    filters = [one.filters for one in conditions]
    if few is not None:
        given["numbers"] = few.found.numbers
        filters[few.at] = None if conditions[few.at].is_exact else filters[few.at]
        return Narrowed([AMONG, *(one for one in filters if one is not None)], given, is_few=True)
    served = [at for at, one in enumerate(conditions) if one.serves is not None] if is_ordered else []
    both = [at for at in served if conditions[at].column in _TOGETHER]
    for at in both if len(both) == len(_TOGETHER) else served[:1]:
        filters[at] = conditions[at].serves
    return Narrowed([one for one in filters if one is not None], given, is_few=False)


def rarest(connection: Connection, conditions: Sequence[Condition]) -> Few | None:
    """The condition that the fewest repositories meet, and their numbers, if those are at most `FEW`.

    A database that knows no frequencies, such as SQLite, may begin with a condition that nearly every row meets. So
    this reads who meets each, up to `FEW`. PostgreSQL does, and plans the rest of the transaction for its values.
    """
    plan_for_values(connection)
    few: Few | None = None
    for at, one in enumerate(conditions):
        most = FEW if few is None else few.found.many - 1
        found = None if one.holders is None or most < 0 else one.holders.read(connection, most)
        few = few if found is None else Few(at, found)
    return few


def holding(
    table: Table, of_it: ColumnElement[bool], given: Mapping[str, object] | None = None, *, has: bool = True
) -> Condition:
    """Whether a table has rows about the repository for which `of_it` holds, which is always the same object."""
    there, holders = _held(table, of_it)
    if not has:
        return Condition(filters=_held_not(table, of_it), given=given or {})
    return Condition(filters=there, given=given or {}, holders=Numbers(holders, given or {}), is_exact=True)


@lru_cache
def _held(table: Table, of_it: ColumnElement[bool]) -> tuple[ColumnElement[bool], PreparedSql]:
    there = exists().where(table.c.repo_id == adapters.c.repo_id, of_it)
    return there, numbers_of(select(table.c.repo_id).where(of_it))


@lru_cache
def _held_not(table: Table, of_it: ColumnElement[bool]) -> ColumnElement[bool]:
    return ~_held(table, of_it)[0]


ESCAPE: Final = "/"


def escaped(word: str) -> str:
    """A word for `contains`, which has signs of its own, with `ESCAPE`."""
    for sign in (ESCAPE, "%", "_"):
        word = word.replace(sign, ESCAPE + sign)
    return word


def holding_words(connection: Connection, index: Trigrams, words: Sequence[str]) -> list[Condition]:
    """Who may have words, by an index: one condition for all of three characters or more, as that tells more."""
    longer, short = ([word for word in words if (len(word) >= GRAM) is long] for long in (True, False))
    groups = [longer] * bool(longer) + [[word] for word in short]
    return [Condition(filters=None, holders=_holders_of(connection, index, group)) for group in groups]


def _holders_of(connection: Connection, index: Trigrams, words: Sequence[str]) -> Numbers:
    if has_trigrams(connection):
        return index.holding(words)
    return Numbers(_containing(index, len(words)), {f"part_{at}": escaped(word) for at, word in enumerate(words)})


@lru_cache
def _containing(index: Trigrams, count: int) -> PreparedSql:
    number, body = (repos.c.id, func.lower(repos.c.full_name)) if index is NAMES else (texts.c.repo_id, texts.c.body)
    parts = (bindparam(f"part_{at}", type_=Text) for at in range(count))
    return numbers_of(select(number).where(*(body.contains(part, escape=ESCAPE) for part in parts)))


class _Within(NamedTuple):
    filters: ColumnElement[bool]
    serves: ColumnElement[bool]
    holders: PreparedSql


def spanning(spans: Mapping[str, tuple[Any, Any]], *, in_order: bool = True) -> Condition:
    """A value within the bounds, both included and None without one, in any of the columns."""
    one = in_order and len(spans) == 1 and all(least == most for least, most in spans.values())
    form: list[tuple[str, bool, bool, bool]] = []
    given: dict[str, object] = {}
    for name, (least, most) in spans.items():
        form.append((name, least is not None, most is not None, least == most))
        given |= {f"{name}_least": least, f"{name}_most": most}
    given = {name: value for name, value in given.items() if value is not None}
    within = _within(tuple(form))
    return Condition(
        filters=within.filters,
        given=given,
        serves=within.serves if one else None,
        column=next(iter(spans)) if one else None,
        holders=Numbers(within.holders, given),
    )


@lru_cache(maxsize=64)
def _within(form: tuple[tuple[str, bool, bool, bool], ...]) -> _Within:
    """The SQL for bounds: of each column its name, whether it has a least and a most, and whether they are equal."""

    def within(columns: Mapping[str, ColumnElement[Any]]) -> ColumnElement[bool]:
        of_each = []
        for name, has_least, has_most, is_equal in form:
            column = columns[name]
            least, most = (bindparam(f"{name}_{end}", type_=column.type) for end in ("least", "most"))
            if has_least and is_equal:
                of_each.append(column == least)
            else:
                of_each.append(and_(true(), *([column >= least] * has_least), *([column <= most] * has_most)))
        return or_(false(), *of_each)

    holding = adapters.alias()
    return _Within(
        filters=within({name: Unindexed(adapters.c[name]) for name, *_ in form}),
        serves=within(dict(adapters.c.items())),
        holders=numbers_of(select(holding.c.repo_id).where(within(dict(holding.c.items())))),
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
        """The first `count` rows; the rest moves to the next page."""
        return self if count >= len(self.rows) else replace(self, rows=self.rows[:count], more=True)


def list_repos(connection: Connection, wanted: RepoListing, visible: ColumnElement[bool] | Met) -> ListPage:
    """The repositories that match and that `visible` admits, in descending order; ties newest first.

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
        """The last row of a tag in a part that likely has a page; None for a tag without more rows."""
        end = _end_of(has_cursor=self.wanted.cursor is not None)
        return end.first(self.connection, **self.given, tag=tag, rows=_LIKELY * self.wanted.limit)

    def _tagged(self, tags: Sequence[str]) -> str | None:
        """The repositories with all tags, as JSON, unless it costs less to go through others until a page is full."""
        if self.connection.dialect.name != "sqlite":
            found = Numbers(_all_of(len(tags)), _named(tags)).read(self.connection, FEW)
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
        conditions.append(Condition(filters=_GATED if wanted.gated else _OPEN))
    if wanted.num_parameters:
        conditions.append(_sized(wanted.num_parameters))
    if wanted.never:
        conditions.append(Condition(filters=_NEVER))
    return conditions


_BY_AUTHOR: Final = Unindexed(repos.c.namespace) == bindparam("author")
_OF_AUTHOR: Final = numbers_of(select(repos.c.id).where(repos.c.namespace == bindparam("author")))
_GATED, _OPEN, _NEVER = repos.c.gated.is_not(None), repos.c.gated.is_(None), false()


def of_namespace(name: str) -> Numbers:
    """The repositories of a namespace."""
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
            raise bad_request(f"num_parameters `{shown(text)}`: too large")
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
    """The value and the repository number of a cursor, which the API encrypts for clients."""
    found = _LIST_CURSOR.fullmatch(text)
    if found is None or found[1] != sort:
        raise bad_request(f"cursor `{shown(text)}` does not come from this server, or has another order")
    return int(found[2]), int(found[3])
