"""Searches the adapter index by base, task, rank, type and words, a page at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple

from packaging.version import Version
from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    Text,
    and_,
    bindparam,
    func,
    literal,
    or_,
    select,
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
from adapterhub_registry.database.conditions import (
    AMONG,
    ESCAPE,
    Condition,
    Met,
    after_given,
    escaped,
    holding,
    holding_words,
    met,
    narrowed,
    spanning,
)
from adapterhub_registry.database.db import adapters, places, refs, releases, repo_tags, repos
from adapterhub_registry.database.prepared import Prepared
from adapterhub_registry.database.search_tables import TEXTS, WordHolder, among, word_holder, wordings
from adapterhub_registry.errors import bad_request

MAX_PAGE: Final = 100
MAX_RELEASES: Final = 1000
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
    visible: ColumnElement[bool] | Met,
    rank: Callable[..., AdapterPage] | None = None,
) -> AdapterPage:
    """One adapter for each repository that matches and that `visible` admits: newest first, or by relevance.

    `rank` gives the order by relevance, as `ranked` does.

    Raises:
        Refusal: 400 for a malformed digest or cursor.
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
    return AdapterPage(rows=rows, next_cursor=f"{rows[-1].created_at}-{rows[-1].repo_id}" if more else None)


@lru_cache(maxsize=512)
def _newest(has_cursor: bool, conditions: tuple[ColumnElement[bool], ...]) -> Prepared:  # noqa: FBT001 - part of a key
    """The statement of a page, newest first; the same SQL has the same objects in `conditions`."""
    found = SHOWN.join(repos, repos.c.id == adapters.c.repo_id).where(adapters.c.is_listed, *conditions)
    if has_cursor:
        found = found.where(after_given(adapters.c.created_at, adapters.c.repo_id))
    newest = (adapters.c.created_at.desc(), adapters.c.repo_id.desc())
    return Prepared(found.order_by(*newest).limit(bindparam("most", type_=Integer)))


def start_of(cursor: str | None) -> int:
    """Where a page of a ranking begins.

    Raises:
        Refusal: 400 for a malformed cursor.
    """
    first = int(cursor) if cursor and cursor.isdecimal() else 0
    if cursor is not None and not 0 < first < MOST_RANKED:
        raise bad_request(f"cursor `{shown(cursor)}` does not come from this server")
    return first


def ranked(connection: Connection, text: str, wanted: Met, *, cursor: str | None, limit: int) -> AdapterPage:
    """The rows that meet the conditions and hold a word of `text`, the best first, 200 on all pages together.

    Only these rows decide the weight of a word, so what a caller may not read changes no score and no order.

    Raises:
        Refusal: 400 for a malformed cursor.
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
    return AdapterPage(
        rows=[rows[number] for _, number, _ in page if number in rows],
        next_cursor=str(first + limit) if first + limit < len(weighed) else None,
        fits={
            number: Fit(score=round(-score, 2), matched=matched(words, texts[number])) for score, number, words in page
        },
    )


_SAID: Final = Prepared(
    select(wordings.c.repo_id, *(wordings.c[name] for name in Wording._fields)).where(
        among(wordings.c.repo_id, "numbers")
    )
)


class _Ranking(NamedTuple):
    """The statements of a ranking: who holds words, how many there are with the last of them, and what a page shows."""

    held: Prepared
    counted: Prepared
    shown: Prepared


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
        held=Prepared(held.limit(bindparam("most", type_=Integer))),
        counted=Prepared(select(some.label("few"), last.label("newest"))),
        shown=Prepared(SHOWN.join(repos, repos.c.id == adapters.c.repo_id).where(*conditions, AMONG)),
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
def _bases_within() -> Prepared:
    ends = []
    for name in _BASES:
        column = adapters.c[name]
        span = select(column).where(column >= bindparam("begin"), column < bindparam("past")).limit(1)
        ends += [span.order_by(column).scalar_subquery(), span.order_by(column.desc()).scalar_subquery()]
    return Prepared(select(*(end.label(f"end_{at}") for at, end in enumerate(ends))))


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
