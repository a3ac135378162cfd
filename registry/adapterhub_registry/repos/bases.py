"""The bases that adapters declare, and which of them are one model in two forms, as a caller may know.

A base is here by what manifests say of it alone. So two are one model only where all adapters of either, as far as the
caller may read them, say the same of it: a manifest with another's digest and the samples of a third joins nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from sqlalchemy import ColumnElement, Integer, bindparam, func, select
from sqlalchemy.engine import Connection

from adapterhub.core.errors import shown
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.pages.values import MOST_COUNTED, RelatedBase, relation_text
from adapterhub_registry.database.db import adapters, base_claims, base_pairs, repos
from adapterhub_registry.database.prepared import PreparedSql
from adapterhub_registry.errors import bad_request

BASE_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{8,64}")
METHOD: Final = 1
"""The version of the comparison: a worker compares again what was compared by another one."""
_MOST: Final = 20
_DIGESTS: Final = ("base_sha256", "base_tensors", "base_files")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kin:
    """A base that is the same model as another one, and how: 64 hex digits, and words."""

    sha256: str
    relation: str


def spans_of_base(connection: Connection, text: str) -> Mapping[str, tuple[str, str]]:
    """By column of `adapters`, the first and the last digest of a base that begins with `text`.

    Raises:
        HttpRefusal: 400 for a malformed digest.
    """
    if not BASE_DIGEST.fullmatch(text):
        raise bad_request(f"base_sha256 `{shown(text)}`: expected 8 to 64 lower-case hex digits")
    begin = text.removeprefix("sha256:")
    # `g` sorts after every hex digit
    (found,) = _within().tuples(connection, begin=begin, past=f"{begin}g")
    ends = {name: found[2 * at : 2 * at + 2] for at, name in enumerate(_DIGESTS)}
    return {name: (least, most) for name, (least, most) in ends.items() if least is not None}


@lru_cache
def _within() -> PreparedSql:
    ends = []
    for name in _DIGESTS:
        column = adapters.c[name]
        span = select(column).where(column >= bindparam("begin"), column < bindparam("past")).limit(1)
        ends += [span.order_by(column).scalar_subquery(), span.order_by(column.desc()).scalar_subquery()]
    return PreparedSql(select(*(end.label(f"end_{at}") for at, end in enumerate(ends))))


def kin_of(connection: Connection, text: str | None, readable: ColumnElement[bool]) -> tuple[Kin, ...]:
    """Return the other forms of the base whose digest begins with `text`, by manifests that `readable` admits.

    At most 20.
    """
    if text is None or not BASE_DIGEST.fullmatch(text):
        return ()
    begin = text.removeprefix("sha256:")
    found: dict[str, Kin] = {}
    for row in _PAIRS.rows(connection, begin=begin, past=f"{begin}g"):
        ends = ((row.first_sha256, row.first_claim), (row.second_sha256, row.second_claim))
        if row.second_sha256 not in found and all(_agreed(connection, *end, readable) for end in ends):
            relation = relation_text(BaseVerdict(row.verdict), row.form, is_copy=row.is_copy)
            found[row.second_sha256] = Kin(sha256=row.second_sha256, relation=relation)
    return tuple(found.values())


def kin_digests(connection: Connection, text: str | None, readable: ColumnElement[bool]) -> tuple[str, ...]:
    """Return the digests of the other forms of a base, for a search."""
    return tuple(one.sha256 for one in kin_of(connection, text, readable))


_BEGINS: Final = (base_pairs.c.first_sha256 >= bindparam("begin")) & (base_pairs.c.first_sha256 < bindparam("past"))
_PAIRS: Final = PreparedSql(select(base_pairs).where(_BEGINS).order_by(base_pairs.c.second_sha256).limit(_MOST))


def _agreed(connection: Connection, sha256: str, claim: str, readable: ColumnElement[bool]) -> bool:
    """Return whether adapters that the caller may read say `claim` of the base, and none says anything else."""
    said = select(base_claims.c.claim).where(base_claims.c.base_sha256 == sha256, base_claims.c.claim != "")
    claims = set(connection.scalars(said.distinct().limit(_MOST + 1)))
    if claim not in claims or len(claims) > _MOST:
        return False
    here = select(adapters.c.repo_id).join(base_claims, base_claims.c.digest == adapters.c.digest)
    here = here.join(repos, repos.c.id == adapters.c.repo_id).where(adapters.c.is_listed, readable).limit(1)

    def is_said(one: str) -> bool:
        mine = (base_claims.c.base_sha256 == sha256) & (base_claims.c.claim == one)
        return connection.scalar(here.where(mine)) is not None

    return is_said(claim) and not any(is_said(one) for one in claims - {claim})


def related_bases(
    connection: Connection, sha256: str | None, visible: ColumnElement[bool], readable: ColumnElement[bool]
) -> Iterator[RelatedBase]:
    """Yield the other forms of a base, as pages list them, with the adapters that `visible` admits."""
    for one in kin_of(connection, sha256, readable):
        yield related_base(connection, one.sha256, one.relation, visible)


def related_base(connection: Connection, sha256: str, relation: str, visible: ColumnElement[bool]) -> RelatedBase:
    """Return a base as pages list it beside another, with the adapters that `visible` admits."""
    counts = counted_names(connection, sha256, visible)
    number = sum(count for _, count in counts)
    return RelatedBase(
        label=next((name for name, _ in counts if name), sha256[:12]),
        url=f"/base/{sha256}",
        relation=relation,
        adapters=number,
        more=number == MOST_COUNTED,
    )


def counted_names(
    connection: Connection, sha256: str, visible: ColumnElement[bool]
) -> Sequence[tuple[str | None, int]]:
    """Return the names that adapters give a base, and how many do, the most first.

    Of the newest `MOST_COUNTED` adapters.
    """
    return _named(visible).tuples(connection, base=sha256, most=MOST_COUNTED)


@lru_cache(maxsize=64)
def _named(visible: ColumnElement[bool]) -> PreparedSql:
    some = select(adapters.c.base_model, adapters.c.created_at).join(repos, repos.c.id == adapters.c.repo_id)
    some = some.where(adapters.c.base_sha256 == bindparam("base"), adapters.c.is_listed, visible)
    newest = some.order_by(adapters.c.created_at.desc()).limit(bindparam("most", type_=Integer)).subquery()
    name, number = newest.c.base_model, func.count()
    return PreparedSql(
        select(name, number).group_by(name).order_by(number.desc(), func.max(newest.c.created_at).desc())
    )
