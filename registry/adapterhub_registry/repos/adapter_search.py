"""Searches the adapter index by base, task, rank, type and words, a page at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from packaging.version import Version
from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    exists,
    false,
    func,
    literal,
    or_,
    select,
    true,
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
from adapterhub_registry.database.db import adapters, places, refs, releases, repo_tags, repos
from adapterhub_registry.database.search_tables import (
    GRAM,
    NAMES,
    TEXTS,
    Trigrams,
    Unindexed,
    has_trigrams,
    texts,
    word_holder,
    wordings,
)
from adapterhub_registry.errors import bad_request

MAX_PAGE: Final = 100
MAX_RELEASES: Final = 1000
MAX_WORDS: Final = 16
FEW: Final = 2000
"""Of what at most so many repositories meet, a search reads all."""
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
class AdapterPage:
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
    visible: ColumnElement[bool],
    rank: Callable[..., AdapterPage] | None = None,
) -> AdapterPage:
    """One adapter for each repository that matches and that `visible` admits: newest first, or by relevance.

    `rank` gives the order by relevance, as `ranked` does.

    Raises:
        Refusal: 400 for a malformed digest or cursor.
    """
    if query.is_ranked:
        met = [one.filters for one in conditions_of(connection, replace(query, q=None))]
        met += [adapters.c.is_listed, visible]
        return (rank or ranked)(connection, query.q or "", met, cursor=query.cursor, limit=query.limit)
    conditions = narrowed(connection, conditions_of(connection, query), is_ordered=True)
    found = SHOWN.join(repos, repos.c.id == adapters.c.repo_id).where(adapters.c.is_listed, visible, *conditions)
    if query.cursor is not None:
        if not _CURSOR.fullmatch(query.cursor):
            raise bad_request(f"cursor `{shown(query.cursor)}` does not come from this server")
        at, repo_id = map(int, query.cursor.split("-"))
        found = found.where(after(adapters.c.created_at, at, adapters.c.repo_id, repo_id))
    newest = (adapters.c.created_at.desc(), adapters.c.repo_id.desc())
    rows = connection.execute(found.order_by(*newest).limit(query.limit + 1)).all()
    more = len(rows) > query.limit
    rows = rows[: query.limit]
    return AdapterPage(rows=rows, next_cursor=f"{rows[-1].created_at}-{rows[-1].repo_id}" if more else None)


def start_of(cursor: str | None) -> int:
    """Where a page of a ranking begins.

    Raises:
        Refusal: 400 for a malformed cursor.
    """
    first = int(cursor) if cursor and cursor.isdecimal() else 0
    if cursor is not None and not 0 < first < MOST_RANKED:
        raise bad_request(f"cursor `{shown(cursor)}` does not come from this server")
    return first


def ranked(
    connection: Connection, text: str, conditions: Sequence[ColumnElement[bool]], *, cursor: str | None, limit: int
) -> AdapterPage:
    """The rows that meet the conditions and hold a word of `text`, the best first, 200 on all pages together.

    Only these rows decide the weight of a word, so what a caller may not read changes no score and no order.

    Raises:
        Refusal: 400 for a malformed cursor.
    """
    first = start_of(cursor)
    words, holds = question_words(text), word_holder(connection)

    def meeting(number: ColumnElement[int]) -> Select[Any]:
        # an expression keeps a database from looking up each adapter in the index of words
        known = select(number).join_from(number.table, adapters, adapters.c.repo_id == number + 0)
        return known.join(repos, repos.c.id == adapters.c.repo_id).where(*conditions)

    by_word, by_number = meeting(holds.number), meeting(wordings.c.repo_id)

    held = by_word.where(holds.condition).order_by(holds.number).limit(bindparam("most", type_=Integer))

    def holders(condition: All, most: int) -> Sequence[int]:
        return connection.scalars(held, {"words": holds.asked(condition), "most": most}).all()

    some = select(func.count()).select_from(by_number.limit(_COUNTED).subquery()).scalar_subquery()
    last = by_number.order_by(wordings.c.repo_id.desc()).limit(1).scalar_subquery()
    few, newest = connection.execute(select(some.label("few"), last.label("newest"))).one()
    # among many, the numbers tell how many there are, to a power of two
    builds = few if few < _COUNTED else 1 << newest.bit_length()
    # those of the first pages need not know the rest, apart from whether there is one
    found = find(words, builds, _FIRST + 1 if first + limit <= _FIRST else MOST_RANKED, holders)
    told = (wordings.c[name] for name in Wording._fields)
    said = select(wordings.c.repo_id, *told).where(wordings.c.repo_id.in_([one.number for one in found]))
    texts = {row[0]: Wording(*row[1:]) for row in connection.execute(said)}
    known = [(at >= _FIRST, one) for at, one in enumerate(found) if one.number in texts]  # others went meanwhile
    in_order = sorted((late, -weigh(one, texts[one.number]), one.number, one.words) for late, one in known)
    weighed = [one[1:] for one in in_order]
    page = weighed[first : first + limit]
    query = SHOWN.join(repos, repos.c.id == adapters.c.repo_id).where(*conditions)
    query = query.where(adapters.c.repo_id.in_([number for _, number, _ in page]))
    rows = {row.repo_id: row for row in connection.execute(query)}
    return AdapterPage(
        rows=[rows[number] for _, number, _ in page if number in rows],
        next_cursor=str(first + limit) if first + limit < len(weighed) else None,
        fits={
            number: Fit(score=round(-score, 2), matched=matched(words, texts[number])) for score, number, words in page
        },
    )


def after(order: ColumnElement[Any], value: int, number: ColumnElement[Any], repo_id: int) -> ColumnElement[bool]:
    """The rows behind one in a list by `order`, then by number, both descending; an index serves the first part."""
    return and_(order <= value, or_(order < value, number < repo_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition of a search.

    `filters` holds for the rows of `adapters` that meet it, in a form that no index serves. `serves` is the same in a
    form whose index has the rows newest first, where there is one: the index of `column`. `holders` reads from an index
    the numbers of the repositories that may meet it; with `is_exact`, all of them meet it. `count` counts them faster,
    up to one more than `FEW`. What `joins` others counts only where none of those is rare.
    """

    filters: ColumnElement[bool] = field(default_factory=true)
    serves: ColumnElement[bool] | None = None
    column: str | None = None
    holders: Select[Any] | None = None
    count: Callable[[Connection], int] | None = None
    is_exact: bool = False
    joins: bool = False

    @property
    def those(self) -> Select[Any]:
        """The `holders` of a condition that has them."""
        assert self.holders is not None
        return self.holders


_TOGETHER: Final = frozenset({"base_sha256", "task"})
"""Columns with an index of their own for both."""


def narrowed(
    connection: Connection, conditions: Sequence[Condition], *, is_ordered: bool
) -> Sequence[ColumnElement[bool]]:
    """The conditions, in the form that reads the fewest rows; one more when it names the few that may match.

    A search begins with what few repositories meet, or else goes through the rows in order, which soon finds a page of
    what is frequent. `is_ordered` says that this order is newest first.
    """
    few = rarest(connection, conditions)
    filters = [one.filters for one in conditions]
    if few is not None:
        filters[few] = true() if conditions[few].is_exact else filters[few]
        return [adapters.c.repo_id.in_(conditions[few].those), *filters]
    served = [at for at, one in enumerate(conditions) if one.serves is not None] if is_ordered else []
    both = [at for at in served if conditions[at].column in _TOGETHER]
    for at in both if len(both) == len(_TOGETHER) else served[:1]:
        serves = conditions[at].serves
        assert serves is not None
        filters[at] = serves
    return filters


def rarest(connection: Connection, conditions: Sequence[Condition]) -> int | None:
    """The place of the condition that the fewest repositories meet, if those are at most `FEW`.

    A database that knows no frequencies, such as SQLite, may begin with a condition that nearly every row meets. So
    this counts who meets each, up to `FEW`. PostgreSQL does, and plans the rest of the transaction for its values.
    """
    if connection.dialect.name == "postgresql":  # a plan for any word would read all words
        connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_custom_plan")
    for joins in (False, True):
        some = [(at, one) for at, one in enumerate(conditions) if one.joins is joins]
        counted = [(_count(connection, one), at) for at, one in some if one.count or one.holders is not None]
        fewest, at = min(counted, default=(FEW + 1, 0))
        if fewest <= FEW:
            return at
    return None


def _count(connection: Connection, one: Condition) -> int:
    if one.count is not None:
        return one.count(connection)
    return connection.scalar(select(func.count()).select_from(one.those.limit(FEW + 1).subquery())) or 0


def conditions_of(connection: Connection, query: AdapterQuery) -> list[Condition]:
    """The conditions on `adapters` and `repos`; raises 400 for too many words or a malformed digest."""
    conditions: list[Condition] = []
    if query.base_sha256 is not None:
        conditions.append(_base_begins(connection, query.base_sha256))
    equal = {"base_model": query.base, "task": query.task, "peft_type": query.peft_type and query.peft_type.upper()}
    for name, wanted in equal.items():
        if wanted is not None:
            conditions.append(_where({name: (wanted, wanted)}, in_order=name != "base_model"))
    if query.rank_min is not None or query.rank_max is not None:
        conditions.append(_where({"rank": (query.rank_min, query.rank_max)}))
    for path, has in ((SIGNATURE_FILE, query.signed), (CONTRACT_FILE, query.tested)):
        if has is not None:  # the path stands in the SQL, so that SQLite finds the index over the rows with it
            conditions.append(holding(places, places.c.path == literal(path, literal_execute=True), has=has))
    if query.license is not None:
        spellings = {f"license:{name}" for name in (query.license, query.license.lower())}
        conditions.append(holding(repo_tags, repo_tags.c.tag.in_(spellings)))
    for word in words_of("q", query.q):
        named = func.lower(repos.c.full_name).contains(word, autoescape=True)
        holds = or_(named, adapters.c.words.contains(word, autoescape=True))
        conditions.append(Condition(filters=holds, holders=holders_of(connection, TEXTS, word)))
    conditions += all_words(connection, TEXTS, words_of("q", query.q))
    return conditions


def holding(table: Table, of_it: ColumnElement[bool], *, has: bool = True) -> Condition:
    """Whether a table has rows about the repository for which `of_it` holds."""
    there = exists().where(table.c.repo_id == adapters.c.repo_id, of_it)
    if not has:
        return Condition(filters=~there)
    return Condition(filters=there, holders=select(table.c.repo_id).where(of_it), is_exact=True)


def words_of(name: str, text: str | None) -> list[str]:
    """The words of a parameter, in lower case; raises 400 for too many."""
    words = (text or "").lower().split()
    if len(words) > MAX_WORDS:
        raise bad_request(f"{name} has {len(words)} words, expected at most {MAX_WORDS}")
    return words


def holders_of(connection: Connection, index: Trigrams, *words: str) -> Select[Any]:
    """The repositories whose text in an index may have a word, or several of three characters or more."""
    if has_trigrams(connection):
        return index.matching(words) if len(words[0]) >= GRAM else index.beginning(words[0])
    number, body = (repos.c.id, func.lower(repos.c.full_name)) if index is NAMES else (texts.c.repo_id, texts.c.body)
    return select(number).where(*(body.contains(word, autoescape=True) for word in words))


def all_words(connection: Connection, index: Trigrams, words: Sequence[str]) -> list[Condition]:
    """One more condition that several words make at once: an index knows who may have all of them."""
    longer = [word for word in words if len(word) >= GRAM]
    return [Condition(holders=holders_of(connection, index, *longer), joins=True)] if len(longer) > 1 else []


def _where(spans: Mapping[str, tuple[Any, Any]], *, in_order: bool = True) -> Condition:
    """A value within the bounds, both included and None without one, in any of the columns."""
    holding = adapters.alias()
    one = in_order and len(spans) == 1 and all(least == most for least, most in spans.values())

    def within(columns: Mapping[str, ColumnElement[Any]]) -> ColumnElement[bool]:
        return or_(false(), *(_within(columns[name], *span) for name, span in spans.items()))

    return Condition(
        filters=within({name: Unindexed(adapters.c[name]) for name in spans}),
        serves=within(dict(adapters.c.items())) if one else None,
        column=next(iter(spans)) if one else None,
        holders=select(holding.c.repo_id).where(within(dict(holding.c.items()))),
    )


def _within(column: ColumnElement[Any], least: object, most: object) -> ColumnElement[bool]:
    if least is not None and least == most:
        return column == least
    above = [column >= least] if least is not None else []
    return and_(*above, *([column <= most] if most is not None else []))


def _base_begins(connection: Connection, text: str) -> Condition:
    """Match a prefix of any digest of the base's fingerprint: an adapter may know only that of the base's files."""
    if not BASE_DIGEST.fullmatch(text):
        raise bad_request(f"base_sha256 `{shown(text)}`: expected 8 to 64 lower-case hex digits")
    begin = text.removeprefix("sha256:")
    names = ("base_sha256", "base_tensors", "base_files")
    ends = []
    for name in names:
        column = adapters.c[name]
        # `g` sorts after every hex digit
        span = select(column).where(column >= begin, column < f"{begin}g").limit(1)
        ends += [span.order_by(column).scalar_subquery(), span.order_by(column.desc()).scalar_subquery()]
    found = connection.execute(select(*(end.label(f"end_{at}") for at, end in enumerate(ends)))).one()
    spans = {name: (found[2 * at], found[2 * at + 1]) for at, name in enumerate(names) if found[2 * at] is not None}
    return _where(spans, in_order=list(spans) == ["base_sha256"])


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
