"""A base by its content: its names, related bases, and its adapters on a map of their updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode

from sqlalchemy import ColumnElement, Row, Select, exists, func, or_, select
from sqlalchemy.engine import Connection

from adapterhub.core.errors import shown
from adapterhub.pages.values.weights import BasePage, MapPoint, RelatedBase
from adapterhub_registry.access.seen import SEEN
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import adapters, repos
from adapterhub_registry.database.derived_tables import sketches
from adapterhub_registry.derived.alike import DIGITS
from adapterhub_registry.errors import Refusal
from adapterhub_registry.pages.search import lines
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos.adapter_search import BASE_DIGEST, SHOWN

MOST_POINTS: Final = 150
MOST_READ: Final = 1000
"""Of the newest adapters for a base, so many are looked at for the map."""
LISTED: Final = 20
MOST_NAMES: Final = 20


def base_page(here: Visit, fingerprint: str) -> BasePage:
    """A base that some adapter of the caller's names.

    Raises:
        Refusal: 404 for a malformed digest, or one without an adapter that the caller may see.
    """
    registry, caller = here.registry, here.caller
    with registry.db.read() as connection:
        visible = registry.repos.visible(caller)
        sha256 = _whole(connection, fingerprint, visible)
        ours = adapters.c.is_listed & (adapters.c.base_sha256 == sha256)
        mine = ours & visible
        joined = SHOWN.join(repos, repos.c.id == adapters.c.repo_id).where(mine)
        newest = joined.order_by(adapters.c.created_at.desc()).limit(LISTED)
        rows = list(connection.execute(newest))
        unseen = exists().where(repos.c.id == adapters.c.repo_id, registry.repos.hidden(caller))
        named = select(adapters.c.base_model, func.count()).where(ours, ~unseen)
        counts = connection.execute(named.group_by(adapters.c.base_model).order_by(func.count().desc())).all()
        names = tuple(row.base_model for row in counts if row.base_model)[:MOST_NAMES]
        points = _points(connection, mine & registry.repos.readable(caller))
        listed = lines(connection, rows)
        related = tuple(_related(connection, sha256, names, visible))
    wanted = urlencode({"base": sha256})
    return BasePage(
        sha256=sha256,
        names=names,
        count=sum(row[1] for row in counts),
        related=related,
        points=_placed(registry, points),
        adapters=tuple(listed),
        search_url=f"/?{wanted}",
        feed_url=f"/feed?{wanted}",
    )


def _whole(connection: Connection, fingerprint: str, visible: ColumnElement[bool]) -> str:
    if not BASE_DIGEST.fullmatch(fingerprint):
        raise Refusal(404, "NotFound", f"base `{shown(fingerprint)}`: expected 8 to 64 lower-case hex digits")
    begin = fingerprint.removeprefix("sha256:")
    same = (adapters.c.base_sha256 >= begin) & (adapters.c.base_sha256 < f"{begin}g")
    wanted = select(adapters.c.base_sha256).join(repos, repos.c.id == adapters.c.repo_id)
    wanted = wanted.where(same, adapters.c.is_listed, visible).order_by(adapters.c.base_sha256)
    found = connection.scalar(wanted.limit(1))
    if found is None:
        raise Refusal(404, "NotFound", "no adapter here is for this base")
    return str(found)


def _points(connection: Connection, mine: ColumnElement[bool]) -> Sequence[Row[Any]]:
    newest = (
        select(repos.c.full_name, adapters.c.digest, adapters.c.created_at)
        .join_from(adapters, repos, repos.c.id == adapters.c.repo_id)
        .where(mine, SEEN)
        .order_by(adapters.c.created_at.desc())
        .limit(MOST_READ)
        .subquery()
    )
    wanted: Select[Any] = (
        select(newest.c.full_name, newest.c.digest, sketches.c.key_id, sketches.c.sketch)
        .join_from(newest, sketches, sketches.c.digest == newest.c.digest)
        .order_by(newest.c.created_at.desc())
        .limit(MOST_POINTS)
    )
    rows = list(connection.execute(wanted))
    return [row for row in rows if row.key_id == rows[0].key_id]  # two keys, while a worker makes them all again


def _placed(registry: Registry, points: Sequence[Row[Any]]) -> tuple[MapPoint, ...]:
    packed = [row.sketch for row in points]
    if not packed:
        return ()

    def make() -> tuple[list[tuple[float, float]], list[tuple[int, float]]]:
        from adapterhub.formats.derived.likeness import nearest, placed  # noqa: PLC0415 - numpy, for this page alone

        return placed(packed), nearest(packed)

    places, near = registry.once.result("map", tuple(packed), make)
    return tuple(
        MapPoint(
            name=row.full_name,
            url=f"/{row.full_name}",
            x=x,
            y=y,
            nearest=points[other].full_name if len(points) > 1 else "",
            cosine=round(cosine, DIGITS) if len(points) > 1 else None,
        )
        for row, (x, y), (other, cosine) in zip(points, places, near, strict=True)
    )


def _related(
    connection: Connection, sha256: str, names: Sequence[str], visible: ColumnElement[bool]
) -> Sequence[RelatedBase]:
    """Other bases with the same tensors or files, or with one of the names."""
    facts = (adapters.c.base_tensors, adapters.c.base_files)
    mine = select(*facts).join(repos, repos.c.id == adapters.c.repo_id)
    mine = mine.where(adapters.c.is_listed, adapters.c.base_sha256 == sha256, visible)
    known = connection.execute(mine.limit(1)).one()
    columns = (adapters.c.base_sha256, adapters.c.base_tensors, adapters.c.base_model)
    # both sides of the base in the order of an index: the database passes over its own adapters
    same = [
        (column == value) & side
        for column, values in ((adapters.c.base_tensors, known[:1]), (adapters.c.base_model, names))
        for value in values
        for side in (adapters.c.base_sha256 < sha256, adapters.c.base_sha256 > sha256)
    ]
    seen = select(*columns).join(repos, repos.c.id == adapters.c.repo_id)
    # apart from the limit, for which PostgreSQL would go through all adapters in the order of the groups
    other = seen.where(or_(*same), adapters.c.is_listed, visible).cte("other").prefix_with("MATERIALIZED")
    counted = select(*other.c, func.count().label("adapters")).group_by(*other.c).order_by(func.count().desc())
    rows = connection.execute(counted.limit(LISTED)).all()
    return [
        RelatedBase(
            label=row.base_model or row.base_sha256[:12],
            url=f"/base/{row.base_sha256}",
            relation="same tensors in other files"
            if row.base_tensors == known.base_tensors
            else "same name, other weights",
            adapters=row.adapters,
        )
        for row in rows
    ]
