"""Conditions of searches, and which rows a search begins with.

The SQL of a condition has its values as parameters, so that a search in another form of the same words needs no new
statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Integer,
    Table,
    Text,
    and_,
    bindparam,
    exists,
    false,
    func,
    or_,
    select,
    true,
)
from sqlalchemy.engine import Connection

from adapterhub_registry.database.db import adapters, repos
from adapterhub_registry.database.prepared import Found, Numbers, Prepared, numbers_of, plan_for_values
from adapterhub_registry.database.search_tables import GRAM, NAMES, Trigrams, Unindexed, among, has_trigrams, texts

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


class Met(NamedTuple):
    """What the rows of a search meet, and the values of its parameters."""

    filters: Sequence[ColumnElement[bool]]
    given: Mapping[str, object]


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
    found: Found


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
def _held(table: Table, of_it: ColumnElement[bool]) -> tuple[ColumnElement[bool], Prepared]:
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
def _containing(index: Trigrams, count: int) -> Prepared:
    number, body = (repos.c.id, func.lower(repos.c.full_name)) if index is NAMES else (texts.c.repo_id, texts.c.body)
    parts = (bindparam(f"part_{at}", type_=Text) for at in range(count))
    return numbers_of(select(number).where(*(body.contains(part, escape=ESCAPE) for part in parts)))


class _Within(NamedTuple):
    filters: ColumnElement[bool]
    serves: ColumnElement[bool]
    holders: Prepared


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
