"""The facets of the search page: values of the matching adapters with their counts, each a link.

A count of what few meet is whole. Of more it looks at the newest `MOST_COUNTED` adapters, or at the newest with the
words, so it costs the same in a registry of a million, and says that there are at least so many. The facets have the
values of `MOST_COUNTED`. A long count stays for a minute.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from sqlalchemy import Column, ColumnElement, Integer, Row, and_, bindparam, case, false, func, select, true
from sqlalchemy.engine import Connection

from adapterhub.formats.manifest import CONTRACT_FILE, SIGNATURE_FILE
from adapterhub.pages.facets import LABELS, MOST_VALUES, facet_of, rank_of, value_text
from adapterhub.pages.lists import BaseCount, Facet, FacetValue
from adapterhub.pages.values import Link
from adapterhub_registry.database.counting import Counts, counted
from adapterhub_registry.database.db import adapters, parents, places, repo_tags, repos, results
from adapterhub_registry.database.prepared import FoundNumbers, Met, PreparedSql
from adapterhub_registry.database.search_tables import SHORT, among
from adapterhub_registry.pages.wanted import ORDERS, Wanted, tested
from adapterhub_registry.repos.bases import BASE_DIGEST
from adapterhub_registry.repos.search import (
    Condition,
    Few,
    FoundAdapters,
    at_path,
    by_index,
    holding,
    met,
    narrowed,
    rarest,
)

BEST_COUNTED: Final = 64
"""Of a list by relevance; a ranking of more costs more."""
MOST_COUNTED: Final = 500
"""Their values cost 5 ms of CPU."""
MOST_WITH_WORDS: Final = 100
"""Of many with some words, so many of the newest are looked at: an index names them, but each has to be checked."""
_LICENSE: Final = "license:"
_FLAGS: Final = {
    name: one.filters
    for name, one in (
        ("signed", holding(places, at_path(SIGNATURE_FILE))),
        ("recorded", holding(places, at_path(CONTRACT_FILE))),
        ("passed", tested("PASS")),
        ("changed", tested("CHANGED")),
    )
    if one.filters is not None
}
_RESULTS: Final = ("passed", "changed")
_VERIFIED: Final = (
    ("signed", "yes", "Signature attached", "signed"),
    ("contract", "yes", "Contract recorded", "recorded"),
    ("tested", "passed", "Contract passes", "passed"),
    ("tested", "changed", "Contract changed", "changed"),
)
"""Parameter and value, the text, and the flag that counts."""
Rank = Callable[..., FoundAdapters]
"""The best matches of what is wanted, at most so many, from a cursor on."""
Numbered = tuple[Any, ...]
"""The place of a match in an order, the number of its repository, and its downloads."""


@dataclass(frozen=True, slots=True)
class Matching:
    """What was counted of the adapters that meet some conditions: `total`, `downloads` and `values` of each facet.

    `bases` has their bases by content and name, either of them "" if it is unknown.

    With `more`, there are others, and `total` and `downloads` are least numbers. With `partly`, those of values are.
    """

    total: int
    more: bool
    partly: bool
    values: dict[str, Counter[str]]
    downloads: int
    bases: Counter[tuple[str, str]]


def flags_of(connection: Connection, rows: Sequence[Row[Any]]) -> dict[int, Any]:
    """By repository, what its listed build has: `signed`, `recorded`, `passed`, `changed`, `merged`."""
    found: dict[int, Any] = {}
    for is_listed in {bool(row.is_listed) for row in rows}:
        numbers = json.dumps([row.repo_id for row in rows if bool(row.is_listed) is is_listed])
        found |= {one.repo_id: one for one in _OF_LINES[is_listed].rows(connection, numbers=numbers)}
    return found


_AMONG: Final = among(adapters.c.repo_id, "numbers")
_MERGED: Final = select(parents.c.digest).where(parents.c.digest == adapters.c.digest, parents.c.position > 0).exists()


def _of_lines(shown: ColumnElement[bool], index: str) -> PreparedSql:
    flags = [_MERGED.label("merged")]
    for name, flag in _FLAGS.items():  # a gate keeps results, as it does on the adapter's page
        flags.append((flag & repos.c.gated.is_(None) if name in _RESULTS else flag).label(name))
    wanted = select(adapters.c.repo_id, *flags).join(repos, repos.c.id == adapters.c.repo_id)
    return PreparedSql(by_index(wanted.where(_AMONG, shown), adapters, index))


# another index has all versions of an adapter
_BY_LISTED: Final = {True: "adapters_shown", False: "adapters_warned_of"}
_OF_LINES: Final = {
    is_listed: _of_lines(adapters.c.is_listed if is_listed else adapters.c.is_warned, index)
    for is_listed, index in _BY_LISTED.items()
}


@dataclass(frozen=True, slots=True)
class Counting:
    """Counts for one reader in one snapshot; `rank` finds the best matches where the list has that order.

    `now` are the registry's numbers in that snapshot.
    """

    connection: Connection
    visible: Met
    rank: Rank
    kept: Counts
    now: Hashable
    is_all: bool
    _counted: dict[object, Matching] = field(default_factory=dict)
    _few: dict[object, tuple[Sequence[Condition], Few | None]] = field(default_factory=dict)
    _read: dict[object, tuple[int, FoundNumbers | None]] = field(default_factory=dict)
    _numbers: dict[object, Sequence[Numbered] | None] = field(default_factory=dict)

    def few(self, wanted: Wanted) -> tuple[Sequence[Condition], Few | None]:
        """Return the conditions of a wish, and the few that may meet them; the same wish only once, in any order."""
        asked = (wanted.kin, *sorted(wanted.without("all", "sort").given.items()))
        if asked not in self._few:
            conditions = wanted.conditions(self.connection)
            self._few[asked] = conditions, rarest(self.connection, conditions, self._read)
        return self._few[asked]

    def matching(self, wanted: Wanted) -> Matching:
        """Count what is wanted, the same only once."""
        asked = (wanted.place, *sorted(wanted.without("all", "sort").given.items()), wanted.order == "relevance")
        if asked not in self._counted:
            seen = (tuple(self.visible.filters), frozenset(self.visible.given.items()))
            key = (asked, wanted.kin, seen, MOST_COUNTED, MOST_WITH_WORDS)
            self._counted[asked] = self.kept.result(key, self.now, lambda: self._count(wanted))
        return self._counted[asked]

    def numbers(self, wanted: Wanted) -> Sequence[Numbered] | None:
        """Return all that meet a wish, in its order; None if they are many."""
        asked = (wanted.kin, *sorted(wanted.without("all").given.items()))
        if asked not in self._numbers:
            narrow = narrowed(*self.few(wanted), is_ordered=False, in_range=not wanted.is_yanked)
            rows = None
            if narrow.is_few:
                index = narrow.by or _index(wanted)
                shown = (*self.visible.filters, wanted.listed, *narrow.filters)
                statement = _numbered(ORDERS[wanted.order][1], shown, index)
                rows = statement.tuples(self.connection, **self.visible.given, **narrow.given)
            self._numbers[asked] = None if rows is None else sorted(rows, reverse=True)
        return self._numbers[asked]

    def _count(self, wanted: Wanted) -> Matching:
        counted = self._counted_rows(wanted)
        described = heapq.nlargest(MOST_COUNTED, counted.downloads)
        index, numbers = _index(wanted), json.dumps(described)
        rows = _facts_of(wanted.listed, index).tuples(self.connection, numbers=numbers)
        columns = zip(*rows, strict=True) if rows else itertools.repeat((), len(_FACTS))
        names, digests, tasks, methods, ranks, warned = columns
        values = {
            "base": _counter(names),
            "task": _counter(tasks),
            "method": _counter(methods),
            "rank": _ranges(ranks),
            "license": Counter(
                {tag.removeprefix(_LICENSE): count for tag, count in _LICENSES.tuples(self.connection, numbers=numbers)}
            ),
            "flags": Counter(
                {
                    name: having.tuples(self.connection, numbers=numbers)[0][0]
                    for name, having in _having(wanted.listed, index).items()
                }
            ),
            "yanked": Counter({"yes": sum(map(bool, warned)), "no": len(rows) - sum(map(bool, warned))}),
        }
        bases = Counter(zip(digests, names, strict=True))
        known = Counter({(digest or "", name or ""): count for (digest, name), count in bases.items()})
        total, more = len(counted.downloads), counted.more
        return Matching(total, more, more or total > len(described), values, sum(counted.downloads.values()), known)

    def total(self, wanted: Wanted, matching: Matching) -> Matching:
        """With the number of all adapters where nothing is asked, which the registry keeps."""
        if not matching.more or wanted.get("q") or wanted.filters or wanted.place != "/":
            return matching
        known = counted(self.connection, public=not self.is_all)["adapters"]
        return replace(matching, total=max(known, matching.total), more=known < matching.total)

    def _counted_rows(self, wanted: Wanted) -> _Counted:
        """Return the adapters to count, and whether more match than these."""
        if wanted.order == "relevance":
            found = self.rank(wanted, BEST_COUNTED)
            return _Counted({row.repo_id: row.downloads for row in found.rows}, found.next_cursor is not None)
        few = self.numbers(wanted)
        if few is not None:
            return _Counted({number: downloads for _, number, downloads in few}, more=False)
        conditions, _ = self.few(wanted)
        both, shown = met(conditions, self.visible), (*self.visible.filters, wanted.listed)
        newest_holders = next((one.newest for one in conditions if one.newest is not None), None)
        if newest_holders is not None:
            numbers = newest_holders.first(self.connection, MOST_WITH_WORDS)
            filters, index = (*shown, _AMONG, *met(conditions).filters), _index(wanted)
            among_these = _numbered(repos.c.downloads, filters, index)
            found_rows = among_these.tuples(self.connection, **both.given, numbers=numbers)
            return _Counted({number: downloads for _, number, downloads in found_rows}, more=True)
        newest = _newest(tuple(met(conditions).filters), shown, in_order=not wanted.is_yanked)
        rows = newest.tuples(self.connection, **both.given, most=MOST_COUNTED + 1)
        fitting = {number: downloads for number, downloads, fits in rows[:MOST_COUNTED] if fits}
        return _Counted(fitting, len(rows) > MOST_COUNTED)


def _index(wanted: Wanted) -> str:
    """Return the index of the rows that a search shows, by their repositories."""
    return _BY_LISTED[False] if wanted.is_yanked else SHORT


class _Counted(NamedTuple):
    """The downloads of adapters by their repositories, and whether there are others."""

    downloads: dict[int, int]
    more: bool


_FACTS: Final = (
    adapters.c.base_model,
    adapters.c.base_sha256,
    adapters.c.task,
    adapters.c.peft_type,
    adapters.c.rank,
    adapters.c.is_warned,
)
_LICENSES: Final = PreparedSql(
    select(repo_tags.c.tag, func.count())
    .where(among(repo_tags.c.repo_id, "numbers"), repo_tags.c.tag >= _LICENSE, repo_tags.c.tag < "license;")
    .group_by(repo_tags.c.tag)
)


@lru_cache
def _facts_of(listed: ColumnElement[bool], index: str) -> PreparedSql:
    return PreparedSql(by_index(select(*_FACTS).where(listed, _AMONG), adapters, index))


@lru_cache
def _having(listed: ColumnElement[bool], index: str) -> dict[str, PreparedSql]:
    """Return, by flag, the statement that counts those who have it among some repositories."""
    found = {}
    for name, (holder, of_it) in _HOLDERS.items():
        mine = select(holder.c.repo_id).where(among(holder.c.repo_id, "numbers"), of_it)
        if name in _RESULTS:  # the key and the build decide, too
            asked = select(func.count()).join_from(adapters, repos, repos.c.id == adapters.c.repo_id)
            asked = asked.where(adapters.c.repo_id.in_(mine), listed, _FLAGS[name])
            found[name] = PreparedSql(by_index(asked, adapters, index))
        else:
            found[name] = PreparedSql(select(func.count()).select_from(mine.distinct().subquery()))
    return found


_HOLDERS: Final = {
    "signed": (places, at_path(SIGNATURE_FILE)),
    "recorded": (places, at_path(CONTRACT_FILE)),
    "passed": (results, results.c.verdict == "PASS"),
    "changed": (results, results.c.verdict == "CHANGED"),
}
"""By flag: the table of which an index finds the few that may have it."""


@lru_cache(maxsize=512)
def _numbered(order: Column[Any], filters: tuple[ColumnElement[bool], ...], index: str) -> PreparedSql:
    asked = select(order.label("place"), adapters.c.repo_id, repos.c.downloads)
    asked = asked.join_from(adapters, repos, repos.c.id == adapters.c.repo_id)
    return PreparedSql(by_index(asked.where(*filters), adapters, index))


@lru_cache(maxsize=512)
def _newest(
    conditions: tuple[ColumnElement[bool], ...], shown: tuple[ColumnElement[bool], ...], *, in_order: bool
) -> PreparedSql:
    # so that SQLite reads no more of a row once one of them does not hold
    fits = case((and_(true(), *conditions), true()), else_=false()).label("fits")
    asked = select(adapters.c.repo_id, repos.c.downloads, fits).join_from(
        adapters, repos, repos.c.id == adapters.c.repo_id
    )
    asked = asked.where(*shown)
    if in_order:  # an index has those with a yanked version as they come
        asked = asked.order_by(adapters.c.created_at.desc(), adapters.c.repo_id.desc())
    return PreparedSql(asked.limit(bindparam("most", type_=Integer)))


def _ranges(ranks: Sequence[int | None]) -> Counter[str]:
    found: Counter[str] = Counter()
    for rank, count in Counter(ranks).items():
        if rank:
            found[rank_of(rank)] += count
    return found


def _counter(values: Sequence[str | None]) -> Counter[str]:
    found = Counter(values)
    return Counter({value: count for value, count in found.items() if value})


def bases_of(found: Matching) -> tuple[BaseCount, ...]:
    """Return the bases of the counted rows, each with its most frequent name.

    One known by name only leads to a search.
    """
    names: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for (sha256, name), count in found.bases.most_common():
        if sha256 or name:
            counts[sha256 or name] += count
            names.setdefault(sha256 or name, name)
    return tuple(
        BaseCount(
            name=names[key] or key[:12],
            url=f"/base/{key}" if BASE_DIGEST.fullmatch(key) else f"/?{urlencode({'base': key})}",
            is_known=BASE_DIGEST.fullmatch(key) is not None,
            adapters=count,
        )
        for key, count in counts.most_common(MOST_VALUES)
    )


def facets_of(counting: Counting, wanted: Wanted, here: Matching) -> Iterator[Facet]:
    """Yield the facets of a search; the other values of a chosen one are counted under the other conditions."""
    others = {name: counting.matching(wanted.without(name)) if wanted.get(name) else here for name in LABELS}
    for name in ("base", "task"):
        yield _facet(wanted, name, others[name])
    values = []
    for name, value, text, flag in _VERIFIED:
        is_chosen = wanted.get(name) == value
        values.append(_value(wanted, name, value, text, here.values["flags"][flag], here.partly, is_chosen=is_chosen))
    yield Facet(name="verified", label="Verified", values=tuple(one for one in values if one.count or one.is_chosen))
    for name in ("method", "rank", "license"):
        yield _facet(wanted, name, others[name])
    count = here.values["yanked"]["no"]
    chosen = wanted.get("yanked")
    if not chosen or chosen == "no":
        none = _value(wanted, "yanked", "no", "None yanked", count, here.partly, is_chosen=chosen == "no")
        yield Facet(name="yanked", label="Yanked versions", values=(none,) if count or chosen else ())


def _facet(wanted: Wanted, name: str, found: Matching) -> Facet:
    bare = wanted.without("all")
    return facet_of(
        name,
        found.values[name],
        lambda value: bare.url(**{name: value}),
        chosen=wanted.get(name),
        all_url=None if wanted.get("all") == name else wanted.url(all=name, cursor=""),
        more=found.partly,
    )


def _value(
    wanted: Wanted,
    name: str,
    value: str,
    text: str,
    count: int,
    more: bool,  # noqa: FBT001 - of the matching
    *,
    is_chosen: bool,
) -> FacetValue:
    url = wanted.without("all").url(**{name: "" if is_chosen else value, "cursor": ""})
    return FacetValue(text=text, url=url, count=count, more=more, is_chosen=is_chosen)


def shown_value(name: str, value: str) -> str:
    """Return a value of a filter as readers write it."""
    known = {(one, v): text for one, v, text, _ in _VERIFIED}
    known |= {("yanked", "no"): "Not yanked", ("yanked", "yes"): "A version yanked"}
    known |= {("signed", "no"): "No signature", ("contract", "no"): "No contract"}
    return known.get((name, value)) or value_text(name, value)


def chips_of(counting: Counting, wanted: Wanted, *, is_empty: bool) -> Iterator[Link]:
    """Yield the filters in use, each with the address without it.

    If nothing matches, each has the count without it.
    """
    for name in (*(("q",) if is_empty and wanted.get("q") else ()), *wanted.filters):
        rest = wanted.without(name)
        count = counting.matching(rest).total if is_empty else None
        yield Link(text=shown_value(name, wanted.get(name)), url=rest.url(), count=count)
