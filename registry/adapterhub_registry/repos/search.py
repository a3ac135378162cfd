"""Searches of adapters: the conditions that a client may set, and the plan of each, a page at a time.

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
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    FromClause,
    Integer,
    Row,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    false,
    func,
    literal,
    or_,
    select,
    true,
)
from sqlalchemy.engine import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from adapterhub.formats.manifest import CONTRACT_FILE, SIGNATURE_FILE
from adapterhub.formats.relevance import MOST_RANKED, All, Matched, Wording, find, matched, question_words, weigh
from adapterhub_registry.database.counting import about_repos, keep, recall
from adapterhub_registry.database.db import adapters, places, repo_tags, repos
from adapterhub_registry.database.prepared import FoundNumbers, Met, Numbers, PreparedSql, numbers_of, plan_for_values
from adapterhub_registry.database.search_tables import (
    GRAM,
    NAMES,
    SHORT,
    TEXTS,
    Trigrams,
    Unindexed,
    WordHolder,
    among,
    has_trigrams,
    texts,
    word_holder,
    wordings,
)
from adapterhub_registry.errors import bad_request, unknown_cursor
from adapterhub_registry.repos.bases import spans_of_base

MAX_PAGE: Final = 100
MAX_WORDS: Final = 16
_COUNTED: Final = 250
_FIRST: Final = 64
"""So many builds with the words of the greatest weight come before all others, in the order of their texts."""
_CURSOR = re.compile(r"[0-9]{1,18}-[0-9]{1,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterQuery:
    """The conditions of a search; None matches anything. `base_sha256` is a prefix of at least 8 hex digits.

    `kin` are the digests of other forms of that base, whose adapters also match. `every` counts all versions of an
    adapter among those for a base, as a feed does, not only those that a search shows. With `by_relevance`, any word of
    `q` matches, in any inflection, and the best match comes first.
    """

    base: str | None = None
    base_sha256: str | None = None
    kin: tuple[str, ...] = ()
    every: bool = False
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

    def first(self, count: int) -> FoundAdapters:
        """Return the first `count` rows of the first page of a ranking, as a page of so many."""
        return replace(self, rows=self.rows[:count], next_cursor=str(count)) if count < len(self.rows) else self


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

    `rank` gives the order by relevance in place of words, from the few that may match where the conditions name them.

    Raises:
        HttpRefusal: 400 for a malformed digest or cursor.
    """
    if query.is_ranked:
        conditions = conditions_of(connection, replace(query, q=None))
        text, others = query.q or "", (adapters.c.is_listed, visible)
        return by_relevance(connection, text, conditions, others, rank, cursor=query.cursor, limit=query.limit)
    conditions = conditions_of(connection, query)
    narrow = narrowed(conditions, rarest(connection, conditions), is_ordered=True)
    seen = met([], visible)
    given = {**narrow.given, **seen.given, "most": query.limit + 1}
    if query.cursor is not None:
        if not _CURSOR.fullmatch(query.cursor):
            raise unknown_cursor(query.cursor)
        given["value"], given["last"] = map(int, query.cursor.split("-"))
    statement = _newest(query.cursor is not None, (*seen.filters, *narrow.filters), narrow.by)
    rows: Sequence[Row[Any]] = statement.rows(connection, **given)
    more = len(rows) > query.limit
    rows = rows[: query.limit]
    return FoundAdapters(rows=rows, next_cursor=f"{rows[-1].created_at}-{rows[-1].repo_id}" if more else None)


def by_relevance(
    connection: Connection,
    text: str,
    conditions: Sequence[Condition],
    others: Sequence[ColumnElement[bool] | Met],
    rank: Callable[..., FoundAdapters] | None,
    **page: Any,
) -> FoundAdapters:
    """As `ranked`; `rank`, in its place, gets `is_few`: whether the conditions name the few that may match."""
    if rank is None:
        return ranked(connection, text, met(conditions, *others), **page)
    few = narrowed(conditions, rarest(connection, conditions), is_ordered=False)
    return rank(connection, text, met([], Met(few.filters, few.given), *others), is_few=few.is_few, **page)


@lru_cache(maxsize=512)
def _newest(
    has_cursor: bool,  # noqa: FBT001 - part of a key
    conditions: tuple[ColumnElement[bool], ...],
    index: str | None,
) -> PreparedSql:
    """Return the statement of a page, newest first; the same SQL has the same objects in `conditions`."""
    found = SHOWN.join(repos, repos.c.id == adapters.c.repo_id).where(adapters.c.is_listed, *conditions)
    found = by_index(found, adapters, index)
    if has_cursor:
        found = found.where(after_given(adapters.c.created_at, adapters.c.repo_id))
    newest = (adapters.c.created_at.desc(), adapters.c.repo_id.desc())
    return PreparedSql(found.order_by(*newest).limit(bindparam("most", type_=Integer)))


def start_of(cursor: str | None) -> int:
    """Return the position at which a page of a ranking begins.

    Raises:
        HttpRefusal: 400 for a malformed cursor.
    """
    first = int(cursor) if cursor and cursor.isdecimal() else 0
    if cursor is not None and not 0 < first < MOST_RANKED:
        raise unknown_cursor(cursor)
    return first


def ranked(
    connection: Connection, text: str, wanted: Met, *, cursor: str | None, limit: int, fitted: int = MAX_PAGE
) -> FoundAdapters:
    """Return the rows that meet the conditions and hold a word of `text`, the best first, 200 on all pages together.

    Only these rows decide the weight of a word, so what a caller may not read changes no score and no order. The first
    `fitted` rows have their fits.

    Raises:
        HttpRefusal: 400 for a malformed cursor.
    """
    first = start_of(cursor)
    words, holds = question_words(text), word_holder(connection)
    steps = _ranking(holds, tuple(wanted.filters))

    def holders(condition: All, most: int) -> Sequence[int]:
        asked = holds.asked(condition)
        return [number for (number,) in steps.held.tuples(connection, **wanted.given, words=asked, most=most)]

    builds = _builds(connection, steps.counted, wanted.given)
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
            number: Fit(score=round(-score, 2), matched=matched(words, texts[number]))
            for score, number, words in page[:fitted]
        },
    )


def _builds(connection: Connection, counted: PreparedSql, given: Mapping[str, object]) -> int:
    """Return how many builds meet some conditions; for many, estimate to a power of two by their numbers."""
    key = counted, frozenset(given.items())
    many: int | None = recall(connection, key)
    if many is not None:
        return many
    ((few, newest),) = counted.tuples(connection, **given)
    if few < _COUNTED:
        return int(few)
    keep(connection, key, 1 << newest.bit_length())
    return 1 << int(newest).bit_length()


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
        known = by_index(known, adapters, SHORT if any(one is adapters.c.is_listed for one in conditions) else None)
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
    """Return the conditions on `adapters` and `repos`; raises 400 for too many words or a malformed digest."""
    conditions: list[Condition] = []
    if query.base_sha256 is not None:
        conditions.append(_of_base(connection, query))
    equal = {"base_model": query.base, "task": query.task, "peft_type": query.peft_type and query.peft_type.upper()}
    for name, wanted in equal.items():
        if wanted is not None:
            conditions.append(spanning({name: (wanted, wanted)}, every=query.every))
    conditions = [*_together(conditions), *conditions]
    if query.rank_min is not None or query.rank_max is not None:
        conditions.append(spanning({"rank": (query.rank_min, query.rank_max)}))
    for path, has in ((SIGNATURE_FILE, query.signed), (CONTRACT_FILE, query.tested)):
        if has is not None:
            conditions.append(holding(places, at_path(path), has=has, index=_OF_PATHS[path]))
    if query.license is not None:
        spellings = {"license_0": f"license:{query.license}", "license_1": f"license:{query.license.lower()}"}
        conditions.append(holding(repo_tags, _LICENSED, spellings))
    words = words_of("q", query.q)
    conditions += [Condition(filters=_in_texts(len(words)))] if words else []
    for at, word in enumerate(words):
        given = {f"word_{at}": escaped(word)}
        conditions.append(Condition(filters=_told(at), given=given))
    conditions += holding_words(connection, TEXTS, words)
    return conditions


_LICENSED: Final = or_(repo_tags.c.tag == bindparam("license_0"), repo_tags.c.tag == bindparam("license_1"))


_OF_PATHS: Final = {SIGNATURE_FILE: "places_signed", CONTRACT_FILE: "places_tested"}


@lru_cache
def at_path(path: str) -> ColumnElement[bool]:
    """Return the path stands in the SQL, so that SQLite finds the index over the rows with it."""
    return places.c.path == literal(path, literal_execute=True)


@lru_cache(maxsize=MAX_WORDS)
def _told(at: int) -> ColumnElement[bool]:
    """Return whether the word at a place is in the name of the repository or the words of the adapter."""
    told = (func.lower(repos.c.full_name), adapters.c.words)
    return or_(*(text.contains(bindparam(f"word_{at}", type_=Text), escape=ESCAPE) for text in told))


class _InSqlite(FunctionElement[bool]):
    """A condition that holds wherever those after it do; PostgreSQL, which orders conditions by cost, needs none."""

    inherit_cache = True

    def __init__(self, condition: ColumnElement[bool]) -> None:
        super().__init__(condition)
        self.type = condition.type


@compiles(_InSqlite)
def _always(_element: _InSqlite, _compiler: SQLCompiler, **_options: object) -> str:
    return "true"


@compiles(_InSqlite, "sqlite")
def _first(element: _InSqlite, compiler: SQLCompiler, **options: object) -> str:
    return compiler.process(element.clauses, **options)


@lru_cache(maxsize=MAX_WORDS)
def _in_texts(count: int) -> ColumnElement[bool]:
    """Return whether so many words are in the text of a repository, in a row much shorter than that of an adapter."""
    return _InSqlite(_text_of(adapters.c.repo_id, count))


@lru_cache(maxsize=MAX_WORDS)
def _text_of(number: ColumnElement[int], count: int) -> ColumnElement[bool]:
    words = (bindparam(f"word_{at}", type_=Text) for at in range(count))
    held = (texts.c.body.contains(word, escape=ESCAPE) for word in words)
    return select(texts.c.repo_id).where(texts.c.repo_id == number, *held).correlate(number.table).exists()


def by_repos(filters: Iterable[ColumnElement[bool]]) -> list[ColumnElement[bool]]:
    """Return filters of `narrowed` for a walk through repositories, which looks into a text before the adapter."""
    texts_of = {_in_texts(count): count for count in range(1, MAX_WORDS + 1)}
    return [_InSqlite(_text_of(repos.c.id, texts_of[one])) if one in texts_of else one for one in filters]


def words_of(name: str, text: str | None) -> list[str]:
    """Return the words of a parameter, in lower case; raises 400 for too many."""
    words = (text or "").lower().split()
    if len(words) > MAX_WORDS:
        raise bad_request(f"{name} has {len(words)} words, expected at most {MAX_WORDS}")
    return words


def _of_base(connection: Connection, query: AdapterQuery) -> Condition:
    """Match a prefix of any digest of the base's fingerprint: an adapter may know only that of the base's files."""
    spans = spans_of_base(connection, query.base_sha256 or "")
    in_order = list(spans) == ["base_sha256"] and not query.kin
    return spanning(spans, in_order=in_order, kin=query.kin, every=query.every)


FEW: Final = 1000
"""Of what at most so many repositories meet, a search reads all; of more in a registry of more than 40,000."""
_PAGE: Final = 25


def few_of(connection: Connection) -> int:
    """Of what at most so many repositories meet, it costs less to read all than to look for a page in order."""
    return max(FEW, math.isqrt(_PAGE * about_repos(connection)))


Place = int | BindParameter[int]


def after(order: ColumnElement[Any], value: Place, number: ColumnElement[Any], last: Place) -> ColumnElement[bool]:
    """Return the rows behind one in a list by `order`, then by number, both descending.

    An index serves the first part.
    """
    return and_(order <= value, or_(order < value, number < last))


def after_given(order: ColumnElement[Any], number: ColumnElement[Any]) -> ColumnElement[bool]:
    """As `after`, of the parameters `value` and `last`."""
    return after(order, bindparam("value", type_=BigInteger), number, bindparam("last", type_=Integer))


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition of a search, whose SQL has the values in `given` as parameters, so that it is always the same.

    `filters` holds for the rows of `adapters` that meet it, in a form that no index serves; None if other conditions
    cover it. `serves` is the same in a form whose index has the rows newest first, where there is one: the index of
    `column`. `holders` reads from an index the numbers of the repositories that may meet it; with `is_exact`, all of
    them meet it; `newest` reads the newest of many first, where an index can. A row that meets it also meets those of
    the columns `covers`.
    """

    filters: ColumnElement[bool] | None
    given: Mapping[str, object] = field(default_factory=dict)
    serves: ColumnElement[bool] | None = None
    column: str | None = None
    holders: Numbers | None = None
    is_exact: bool = False
    covers: frozenset[str] = frozenset()
    newest: Numbers | None = None


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
    by: str | None = None
    """An index of `adapters`, of the rows that a search lists."""


class Few(NamedTuple):
    """The repositories that may meet the condition at a place."""

    at: int
    found: FoundNumbers


_TOGETHER: Final = frozenset({"base_sha256", "task"})
"""Columns with an index of their own for both."""
_RANGE: Final = "adapters_by_base_and_task"
_LISTED_BY: Final = {"base_sha256": "adapters_of_base", "base_model": "adapters_of_base_name"}
"""By column: the index of the listed rows, where one of all rows would serve, too."""
AMONG: Final = among(adapters.c.repo_id, "numbers")
"""Whether an adapter is in one of the repositories of the parameter `numbers`."""


def narrowed(conditions: Sequence[Condition], few: Few | None, *, is_ordered: bool, in_range: bool = False) -> Narrowed:
    """Return the conditions, in the form that reads the fewest rows; one more for the `few` that may match.

    A search begins with a condition that few repositories meet, or goes through the rows in order, which soon finds a
    page of frequent matches. `is_ordered` says that this order is newest first. With `in_range`, the few stand side by
    side in the index `by` where there is one, which saves a look for each.
    """
    given = dict(met(conditions).given)
    filters = [one.filters for one in conditions]
    rare = None if few is None else conditions[few.at]
    spanned = _spanned(rare) if rare is not None else frozenset()
    if "base_sha256" in spanned and in_range:
        filters = [one.serves if one.column in spanned else one.filters for one in conditions]
        return Narrowed([one for one in filters if one is not None], given, is_few=True, by=_RANGE)
    if few is not None and not (is_ordered and spanned):
        given["numbers"] = few.found.numbers
        filters[few.at] = None if conditions[few.at].is_exact else filters[few.at]
        return Narrowed([AMONG, *(one for one in filters if one is not None)], given, is_few=True)
    served = [at for at, one in enumerate(conditions) if one.serves is not None] if is_ordered else []
    both = [at for at in served if conditions[at].column in _TOGETHER]
    rarest_of = [at for at in served if conditions[at].column in spanned]
    chosen = both if len(both) == len(_TOGETHER) and spanned <= _TOGETHER else (rarest_of or served)[:1]
    for at in chosen:
        filters[at] = conditions[at].serves
    index = _LISTED_BY.get(conditions[chosen[0]].column or "") if len(chosen) == 1 else None
    return Narrowed([one for one in filters if one is not None], given, is_few=False, by=index)


def _spanned(rare: Condition) -> frozenset[str]:
    """Return the columns of an index that has those who meet a condition side by side, the newest at the end."""
    return rare.covers or (frozenset() if rare.serves is None else frozenset({rare.column or ""}))


def rarest(
    connection: Connection,
    conditions: Sequence[Condition],
    known: dict[object, tuple[int, FoundNumbers | None]] | None = None,
) -> Few | None:
    """Return the condition that the fewest repositories meet, and their numbers, if those are at most `few_of`.

    A database that knows no frequencies, such as SQLite, may begin with a condition that nearly every row meets. So
    this reads who meets each, up to `few_of`. PostgreSQL does, and plans the rest of the transaction for its values.
    `known` has what earlier calls in the same snapshot read.
    """
    plan_for_values(connection)
    few, enough = None, few_of(connection) if conditions else 0
    for at, one in enumerate(conditions):
        if few is not None and one.column in conditions[few.at].covers:
            continue
        most = enough if few is None else few.found.many - 1
        found = None if one.holders is None or most < 0 else _read(connection, one.holders, most, known)
        few = few if found is None else Few(at, found)
    return few


def _read(
    connection: Connection, holders: Numbers, most: int, known: dict[object, tuple[int, FoundNumbers | None]] | None
) -> FoundNumbers | None:
    key = holders.statement, frozenset(holders.given.items())
    asked, found = (-1, None) if known is None else known.get(key, (-1, None))
    if found is None and asked < most and (recall(connection, key) or 0) < most:
        found = holders.read(connection, most)
        if found is None:  # there were more a moment ago: no request looks again for a minute
            keep(connection, key, most)
        if known is not None:
            known[key] = most, found
    return found if found is not None and found.many <= most else None


def holding(
    table: Table,
    of_it: ColumnElement[bool],
    given: Mapping[str, object] | None = None,
    *,
    has: bool = True,
    index: str | None = None,
) -> Condition:
    """Return whether a table has rows about the repository for which `of_it` holds, which is always the same object.

    `index` is one over the rows for which it holds: SQLite would rather go through all rows of a repository.
    """
    there, holders = _held(table, of_it, index)
    if not has:
        return Condition(filters=_held_not(table, of_it, index), given=given or {})
    return Condition(filters=there, given=given or {}, holders=Numbers(holders, given or {}), is_exact=True)


@lru_cache
def _held(table: Table, of_it: ColumnElement[bool], index: str | None) -> tuple[ColumnElement[bool], PreparedSql]:
    mine = select(table.c.repo_id).where(table.c.repo_id == adapters.c.repo_id, of_it).correlate(adapters)
    return by_index(mine, table, index).exists(), numbers_of(select(table.c.repo_id).where(of_it))


@lru_cache
def _held_not(table: Table, of_it: ColumnElement[bool], index: str | None) -> ColumnElement[bool]:
    return ~_held(table, of_it, index)[0]


def by_index(statement: Select[Any], table: FromClause, index: str | None) -> Select[Any]:
    """Return the statement, for which SQLite, which knows no frequencies, reads a table by this index."""
    return statement if index is None else statement.with_hint(table, f"INDEXED BY {index}", "sqlite")


ESCAPE: Final = "/"


def escaped(word: str) -> str:
    """Return a word for `contains`, which has signs of its own, with `ESCAPE`."""
    for sign in (ESCAPE, "%", "_"):
        word = word.replace(sign, ESCAPE + sign)
    return word


def holding_words(connection: Connection, index: Trigrams, words: Sequence[str]) -> list[Condition]:
    """Build index conditions for repositories that may have the words.

    All words of three characters or more share one, because together they exclude more.
    """
    longer, short = ([word for word in words if (len(word) >= GRAM) is long] for long in (True, False))
    groups = [longer] * bool(longer) + [[word] for word in short]
    newest = index.newest(longer) if longer and has_trigrams(connection) else None
    return [
        Condition(
            filters=None,
            holders=_holders_of(connection, index, group),
            newest=newest if group is longer else None,
        )
        for group in groups
    ]


def _holders_of(connection: Connection, index: Trigrams, words: Sequence[str]) -> Numbers:
    if has_trigrams(connection):
        return index.holding(words)
    return Numbers(_containing(index, len(words)), {f"part_{at}": escaped(word) for at, word in enumerate(words)})


@lru_cache
def _containing(index: Trigrams, count: int) -> PreparedSql:
    number, body = (repos.c.id, func.lower(repos.c.full_name)) if index is NAMES else (texts.c.repo_id, texts.c.body)
    parts = (bindparam(f"part_{at}", type_=Text) for at in range(count))
    return numbers_of(select(number).where(*(body.contains(part, escape=ESCAPE) for part in parts)))


def _together(conditions: Sequence[Condition]) -> list[Condition]:
    """Return the condition of the columns `_TOGETHER` where the others ask for one value of each."""
    one = {of.column: of for of in conditions if of.column in _TOGETHER and of.serves is not None}
    if one.keys() != _TOGETHER:
        return []
    given = {name: value for of in one.values() for name, value in of.given.items()}
    return [Condition(filters=None, holders=Numbers(_OF_BOTH, given), covers=_TOGETHER)]


class _Within(NamedTuple):
    filters: ColumnElement[bool]
    serves: ColumnElement[bool]
    holders: PreparedSql


def spanning(
    spans: Mapping[str, tuple[Any, Any]], *, in_order: bool = True, kin: Sequence[str] = (), every: bool = False
) -> Condition:
    """Return a value within the bounds, both included and None without one, in any of the columns.

    Or the base is of `kin`.

    With `every`, of any version of an adapter.
    """
    one = in_order and len(spans) == 1 and all(least == most for least, most in spans.values())
    form: list[tuple[str, bool, bool, bool]] = []
    given: dict[str, object] = {}
    for name, (least, most) in spans.items():
        form.append((name, least is not None, most is not None, least == most))
        given |= {f"{name}_least": least, f"{name}_most": most}
    given = {name: value for name, value in given.items() if value is not None}
    given |= {"kin": json.dumps(kin)} if kin else {}
    within = _within(tuple(form), has_kin=bool(kin), every=every)
    return Condition(
        filters=within.filters,
        given=given,
        serves=within.serves if one else None,
        column=next(iter(spans)) if one else None,
        holders=Numbers(within.holders, given),
    )


@lru_cache(maxsize=64)
def _within(form: tuple[tuple[str, bool, bool, bool], ...], *, has_kin: bool, every: bool) -> _Within:
    """Return the SQL for bounds: each column's name, whether it has a least and a most, and whether they are equal."""

    def within(columns: Mapping[str, ColumnElement[Any]]) -> ColumnElement[bool]:
        of_each = []
        for name, has_least, has_most, is_equal in form:
            column = columns[name]
            least, most = (bindparam(f"{name}_{end}", type_=column.type) for end in ("least", "most"))
            if has_least and is_equal:
                of_each.append(column == least)
            else:
                of_each.append(and_(true(), *([column >= least] * has_least), *([column <= most] * has_most)))
        of_each += [among(columns["base_sha256"], "kin")] * has_kin
        return or_(false(), *of_each)

    holding = adapters.alias()
    is_shown = true() if every else holding.c.is_listed | holding.c.is_warned
    held = select(holding.c.repo_id).where(within(dict(holding.c.items())), is_shown)
    one = form[0][0] if len(form) == 1 and form[0][3] and not has_kin and not every else ""
    of_shown = {"base_sha256": "adapters_by_base_and_task", "base_model": "adapters_of_base_name"}.get(one)
    return _Within(
        filters=within({name: Unindexed(column) for name, column in adapters.c.items()}),
        serves=within(dict(adapters.c.items())),
        holders=numbers_of(by_index(held, holding, of_shown)),
    )


def _of_both() -> PreparedSql:
    holding = adapters.alias()
    values = (holding.c[name] == bindparam(f"{name}_least", type_=holding.c[name].type) for name in sorted(_TOGETHER))
    held = select(holding.c.repo_id).where(*values, holding.c.is_listed | holding.c.is_warned)
    return numbers_of(by_index(held, holding, _RANGE))


_OF_BOTH: Final = _of_both()
