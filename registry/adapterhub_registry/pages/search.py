"""The search page: adapters by words, base, task, rank, method, licence, signature, contract and yanks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from sqlalchemy import ColumnElement, Row, Select, exists, select
from sqlalchemy.engine import Connection

from adapterhub.core.digests import hex_of, strict_json
from adapterhub.core.errors import AdapterHubError
from adapterhub.core.specs import is_hub_id
from adapterhub.formats.manifest import Manifest
from adapterhub.pages.lists import AdapterLine, SearchPage
from adapterhub.pages.page import PageQuery
from adapterhub.pages.values import Badge, FormChoice
from adapterhub_registry.api.context import opened_cursor, sealed_cursor
from adapterhub_registry.database.counting import numbers_now
from adapterhub_registry.database.db import adapters, releases, repo_tags, repos
from adapterhub_registry.database.prepared import PreparedSql
from adapterhub_registry.database.search_tables import SHORT, Unindexed, among
from adapterhub_registry.errors import bad_request
from adapterhub_registry.pages.facets import BEST_COUNTED, Counting, chips_of, facets_of, flags_of
from adapterhub_registry.pages.pictures import thumbnails
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.pages.wanted import BEST, ORDERS, Order, Wanted
from adapterhub_registry.repos.bases import kin_digests
from adapterhub_registry.repos.search import (
    AMONG,
    SHOWN,
    Fit,
    FoundAdapters,
    after_given,
    by_index,
    by_relevance,
    by_repos,
    narrowed,
)

PAGE_ROWS: Final = 25
_CURSOR = re.compile(r"([0-9]{1,18}) ([0-9]{1,18})")


def search_page(here: Visit, asked: PageQuery) -> SearchPage:
    """Return the adapters that match, `PAGE_ROWS` at a time; those that the caller may not see do not count.

    A form has a file `config`, which names the base.
    """
    wanted = Wanted.of(dict(asked.query))
    if asked.is_form:
        base, note = _base_in(asked.files.get("config", b""))
        wanted = Wanted(given={"base": base} if base else {}, note=note)
    with here.registry.db.read() as connection:
        return list_page(here, connection, wanted, counting_of(here, connection))


def list_page(here: Visit, connection: Connection, wanted: Wanted, counting: Counting) -> SearchPage:
    """Return a page of the list of matches, with its facets."""
    registry, caller = here.registry, here.caller
    registry.repos.check_may_read(caller)
    at = opened_cursor(registry, wanted.get("cursor") or None)
    wanted = replace(wanted, kin=kin_digests(connection, wanted.get("base"), registry.repos.readable(caller)))
    is_ranked = wanted.order == "relevance"
    page = counting.rank(wanted, PAGE_ROWS, at) if is_ranked else _page(counting, wanted, at)
    matching = counting.matching(wanted)
    position = page.next_cursor
    base = wanted.get("base")
    whole = counting.total(wanted, matching)
    return SearchPage(
        words=wanted.get("q"),
        place=wanted.place,
        facets=tuple(one for one in facets_of(counting, wanted, matching) if one.values),
        sorts=tuple(
            FormChoice(value=order, text=text, chosen=order == wanted.order)
            for order, text in (*((order, text) for order, (text, _) in ORDERS.items()), ("relevance", BEST))
            if order != "relevance" or wanted.get("q")
        ),
        adapters=lines(here, connection, page.rows, page.fits),
        total=max(whole.total, len(page.rows)),
        more=whole.more,
        next_url=wanted.url(cursor=str(sealed_cursor(registry, position))) if position else None,
        conditions=tuple(chips_of(counting, wanted, is_empty=not page.rows)),
        kept=tuple((name, wanted.get(name)) for name in wanted.filters),
        feed_url=f"/feed?{urlencode({'base': base})}" if base else None,
        begin=_begin(here),
        note=wanted.note,
    )


def counting_of(here: Visit, connection: Connection) -> Counting:
    """Count what the visitor may see."""
    caller, nearest = here.caller, here.registry.nearest
    visible = here.registry.repos.sight(caller)
    known: dict[object, FoundAdapters] = {}

    def rank(asked: Wanted, limit: int, cursor: str | None = None) -> FoundAdapters:
        text = asked.get("q")
        by = nearest.ranked if nearest.serves(connection, text, "auto") else None
        conditions, others = asked.conditions(connection, words=False), (visible, asked.listed)
        if by is not None or cursor is not None or limit > BEST_COUNTED:
            return by_relevance(connection, text, conditions, others, by, cursor=cursor, limit=limit)
        # the first page shows a part of those that its facets count
        key = (asked.kin, *sorted(asked.without("all", "sort").given.items()))
        if key not in known:
            page: dict[str, Any] = {"cursor": None, "limit": BEST_COUNTED, "fitted": PAGE_ROWS}
            known[key] = by_relevance(connection, text, conditions, others, None, **page)
        return known[key].first(limit)

    now = numbers_now(connection)
    return Counting(connection, visible, rank, here.registry.counts, now, is_all=caller.sees_all)


def _begin(here: Visit) -> tuple[tuple[str, str], ...]:
    """Return the commands with which a registry begins, for the page of one without adapters."""
    create = "adapt registry token create --root FOLDER --user ana --role write --namespaces 'acme/*'"
    return (
        ("Make a token on the server", create),
        ("Name this registry on your machine", f"adapt remote add team {here.address} --login"),
        ("Push an adapter", "adapt push legal-qa --to acme/legal-qa --remote team"),
    )


def _page(counting: Counting, wanted: Wanted, at: str | None) -> FoundAdapters:
    found = _first(counting, wanted, at)
    last = found[PAGE_ROWS - 1] if len(found) > PAGE_ROWS else None
    numbers = [number for _, number in found[:PAGE_ROWS]]
    shown = {row.repo_id: row for row in _shown(wanted).rows(counting.connection, numbers=json.dumps(numbers))}
    return FoundAdapters(
        rows=[shown[number] for number in numbers], next_cursor=f"{last[0]} {last[1]}" if last else None
    )


def _first(counting: Counting, wanted: Wanted, at: str | None) -> Sequence[tuple[int, int]]:
    """Return the places in the order, and the numbers, of a page and the one behind it."""
    begin = None
    if at is not None:
        found = _CURSOR.fullmatch(at)
        if found is None:
            raise bad_request("the cursor does not belong to this list; start at its first page")
        begin = int(found[1]), int(found[2])
    is_newest = ORDERS[wanted.order][1].table is adapters
    narrow = narrowed(*counting.few(wanted), is_ordered=is_newest)
    few = counting.numbers(wanted) if narrow.is_few else None
    if few is not None:
        behind = (one[:2] for one in few if begin is None or one[:2] < begin)
        return list(islice(behind, PAGE_ROWS + 1))
    given: dict[str, object] = {**counting.visible.given, **narrow.given}
    given |= {"value": begin[0], "last": begin[1]} if begin else {}
    filters = (*counting.visible.filters, wanted.listed, *narrow.filters)
    # a walk through repositories asks an index of each adapter
    by = None if wanted.is_yanked else narrow.by if is_newest else SHORT
    rows: Sequence[Any] = _walk(_PageForm(wanted.order, at is not None, filters, by)).tuples(
        counting.connection, **given
    )
    return rows


class _PageForm(NamedTuple):
    """The form of a page's statement; `filters` are always the same objects for the same SQL."""

    order: Order
    has_cursor: bool
    filters: tuple[ColumnElement[bool], ...]
    by: str | None


@lru_cache(maxsize=512)
def _walk(form: _PageForm) -> PreparedSql:
    order = ORDERS[form.order][1]
    is_newest = order.table is adapters
    number = adapters.c.repo_id if is_newest else repos.c.id
    # no index serves an expression on the numbers of the repositories
    same = repos.c.id if is_newest else Unindexed(repos.c.id)
    # the numbers only: what a page shows is read of its own rows
    query: Select[Any] = select(order.label("place"), number)
    query = query.join_from(adapters, repos, same == adapters.c.repo_id)
    query = by_index(
        query.where(*(form.filters if is_newest or form.by is None else by_repos(form.filters))), adapters, form.by
    )
    if form.has_cursor:
        query = query.where(after_given(order, number))
    return PreparedSql(query.order_by(order.desc(), number.desc()).limit(PAGE_ROWS + 1))


def _shown(wanted: Wanted) -> PreparedSql:
    return _SHOWN_WARNED if wanted.is_yanked else _SHOWN_LISTED


_SHOWN_LISTED, _SHOWN_WARNED = (
    PreparedSql(by_index(SHOWN.join(repos, repos.c.id == adapters.c.repo_id).where(AMONG, mark), adapters, index))
    for mark, index in ((adapters.c.is_listed, "adapters_shown"), (adapters.c.is_warned, "adapters_warned_of"))
)


def lines(
    here: Visit, connection: Connection, rows: Sequence[Row[Any]], fits: Mapping[int, Fit] = MappingProxyType({})
) -> tuple[AdapterLine, ...]:
    """Return the lines of some rows of `SHOWN`, with why they were found where that is known."""
    numbers = json.dumps(sorted({row.repo_id for row in rows}))
    tags = _LICENSES.tuples(connection, numbers=numbers)
    licenses = {number: tag.removeprefix("license:") for number, tag in tags}
    yanked = {number for (number,) in _YANKED.tuples(connection, numbers=numbers)}
    flags = flags_of(connection, rows)
    pictures = thumbnails(here, connection, [row.repo_id for row in rows])
    return tuple(
        AdapterLine(
            repo=row.full_name,
            url=f"/{row.full_name}",
            version=row.version,
            description=row.description or "",
            task=row.task,
            base=row.base_model,
            base_sha256=row.base_sha256,
            method=", ".join(json.loads(row.methods)),
            rank=row.rank,
            license=licenses.get(row.repo_id),
            downloads=row.downloads,
            modified_at=row.modified_at,
            example=_example(fits.get(row.repo_id)),
            picture_url=pictures.get(row.repo_id, ""),
            badges=tuple(_badges(row, flags.get(row.repo_id), is_yanked=row.repo_id in yanked)),
        )
        for row in rows
    )


# `;` is the sign after `:`
_LICENSES: Final = PreparedSql(
    select(repo_tags.c.repo_id, repo_tags.c.tag).where(
        among(repo_tags.c.repo_id, "numbers"), repo_tags.c.tag >= "license:", repo_tags.c.tag < "license;"
    )
)
_YANKED: Final = PreparedSql(
    select(repos.c.id).where(
        among(repos.c.id, "numbers"),
        exists().where(releases.c.repo_id == repos.c.id, releases.c.yanked_at.is_not(None)),
    )
)


def _badges(row: Row[Any], flags: Any, *, is_yanked: bool) -> Iterator[Badge]:
    if row.private:
        yield Badge(text="Private")
    if flags is not None:
        if flags.merged:
            yield Badge(text="Merge")
        if flags.signed:
            yield Badge(text="Signature attached")
        if flags.changed:
            yield Badge(text="Contract changed", tone="warn")
        elif flags.passed:
            yield Badge(text="Contract passes", tone="good")
        elif flags.recorded:
            yield Badge(text="Contract recorded")
    if is_yanked:
        yield Badge(text="A version is yanked", tone="bad")


def _example(fit: Fit | None) -> str:
    """Return the example prompt that matches; the other parts of a build's text stand in its line anyway."""
    return fit.matched.text if fit is not None and fit.matched.part == "prompt" else ""


def _base_in(config: bytes) -> tuple[str, str]:
    """Return the base that an uploaded file names, and what the reader should know about it."""
    try:
        value = strict_json(config, limit_bytes=1 << 20)
    except ValueError as error:
        raise bad_request(f"the file is not JSON: {error}; upload a config.json or an adapterhub.json") from None
    if not isinstance(value, dict):
        raise bad_request("the file is not a JSON object: expected a config.json or an adapterhub.json")
    if "schema" in value:
        try:
            fingerprint = Manifest.parse(config).base.fingerprint
        except AdapterHubError as error:
            raise bad_request(error.message) from None
        if fingerprint is not None:
            return hex_of(fingerprint.weights), "These are the adapters for the base of this manifest, by its content."
    for name in ("base_model_name_or_path", "_name_or_path"):
        text = value.get(name)
        if isinstance(text, str) and is_hub_id(text):
            return text, "The file names its base but not its content, so this is a search by name."
    return "", (
        "The file names no base, and a config says nothing about weights. `adapt base add FOLDER --as NAME`, then "
        "`adapt base show NAME`, prints the hash of a base; paste it above."
    )
