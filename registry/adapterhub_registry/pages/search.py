"""The search page: adapters by words, base, task, rank, method, licence, signature, contract and yanks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal, cast, get_args
from urllib.parse import urlencode

from sqlalchemy import Column, ColumnElement, Row, and_, exists, or_, select
from sqlalchemy.engine import Connection

from adapterhub.core.digests import hex_of, strict_json
from adapterhub.core.errors import AdapterHubError, shown
from adapterhub.core.specs import is_hub_id
from adapterhub.formats.manifest import Manifest
from adapterhub.formats.peft.methods import METHODS
from adapterhub.formats.relevance import question_words
from adapterhub.pages.page import PageQuery
from adapterhub.pages.values import AdapterLine, Badge, Facet, FormChoice, Link, SearchPage
from adapterhub_registry.api.context import opened_cursor, sealed_cursor
from adapterhub_registry.database.db import adapters, releases, repo_tags, repos, results, test_keys
from adapterhub_registry.database.prepared import Met, Numbers, numbers_of
from adapterhub_registry.database.search_tables import Unindexed
from adapterhub_registry.errors import bad_request
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos.adapter_facts import MAX_RANK
from adapterhub_registry.repos.search import (
    BASE_DIGEST,
    SHOWN,
    AdapterQuery,
    Condition,
    Fit,
    FoundAdapters,
    after,
    conditions_of,
    holding,
    met,
    narrowed,
    ranked,
)

Order = Literal["newest", "changed", "downloads", "relevance"]
PAGE_ROWS: Final = 25
_CURSOR = re.compile(r"([0-9]{1,18}) ([0-9]{1,18})")
_BEST: Final = "Best match first"
_ORDERS: Final[dict[Order, tuple[str, Column[Any]]]] = {
    "newest": ("Newest first", adapters.c.created_at),
    "changed": ("Last changed first", repos.c.modified_at),
    "downloads": ("Most downloads first", repos.c.downloads),
}
_ANY: Final = ("", "any")
_STATES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "signed": (_ANY, ("yes", "with a signature"), ("no", "without one")),
    "contract": (_ANY, ("yes", "with recorded tests"), ("no", "without")),
    "tested": (_ANY, ("passed", "passed for a known key"), ("changed", "changed for a known key")),
    "yanked": (_ANY, ("no", "no version yanked"), ("yes", "a version yanked")),
}
_YES_OR_NO: Final = MappingProxyType({"yes": True, "no": False})
_LABELS: Final = {"signed": "Signature", "contract": "Tests", "tested": "Test results", "yanked": "Yanks"}
_HINTS: Final = {"base": "hash or name", "task": "", "rank": "16, 8-64 or 8-", "license": "mit"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The query of the page as it was typed."""

    given: dict[str, str]
    note: str = ""

    def get(self, name: str) -> str:
        return self.given.get(name, "").strip()

    @property
    def is_yanked(self) -> bool:
        """Whether only adapters with a yanked version are wanted."""
        return self.get("yanked") == "yes"

    @property
    def order(self) -> Order:
        text = self.get("sort")
        if text == "relevance" or text not in get_args(Order):
            # a list of what was yanked begins there: a ranking would go through all that has the words
            several = len(question_words(self.get("q"))) > 1
            return "relevance" if several and not self.is_yanked else "newest"
        return cast("Order", text)

    def url(self, **changed: str) -> str:
        kept = {name: text for name, text in (self.given | changed).items() if text}
        return f"/?{urlencode(kept)}" if kept else "/"


def search_page(here: Visit, asked: PageQuery, config: bytes | None = None) -> SearchPage:
    """The adapters that match, `PAGE_ROWS` at a time; those that the caller may not see do not count."""
    registry, caller = here.registry, here.caller
    registry.repos.check_may_read(caller)
    names = ("q", "base", "task", "rank", "method", "license", *_STATES, "sort", "cursor")
    wanted = _Wanted(given={name: asked.query[name] for name in names if name in asked.query})
    if config is not None:
        base, note = _base_in(config)
        wanted = _Wanted(given={"base": base} if base else {}, note=note)
    at = opened_cursor(registry, wanted.get("cursor") or None)
    with registry.db.read() as connection:
        visible = registry.repos.sight(caller)
        is_meant = wanted.order == "relevance" and registry.nearest.serves(wanted.get("q"), "auto")
        page = _page(connection, wanted, visible, at, registry.nearest.ranked if is_meant else ranked)
        found = lines(connection, page.rows, page.fits)
    position = page.next_cursor
    next_url = wanted.url(cursor=str(sealed_cursor(registry, position))) if position else None
    base = wanted.get("base")
    return SearchPage(
        words=wanted.get("q"),
        facets=_facets(wanted),
        sorts=tuple(
            FormChoice(value=order, text=text, chosen=order == wanted.order)
            for order, text in (("relevance", _BEST), *((order, text) for order, (text, _) in _ORDERS.items()))
        ),
        adapters=found,
        next_url=next_url,
        conditions=tuple(
            Link(text=f"{name} {wanted.get(name)}", url=wanted.url(**{name: "", "cursor": ""}))
            for name in (*_HINTS, "method", *_STATES)
            if wanted.get(name)
        ),
        feed_url=f"/feed?{urlencode({'base': base})}" if base else None,
        note=wanted.note,
    )


def _page(
    connection: Connection,
    wanted: _Wanted,
    visible: Met,
    at: str | None,
    rank: Callable[..., FoundAdapters],
) -> FoundAdapters:
    if wanted.order == "relevance":
        conditions = [*conditions_of(connection, replace(_query(wanted), q=None)), *_states(wanted)]
        return rank(connection, wanted.get("q"), met(conditions, visible, _listed(wanted)), cursor=at, limit=PAGE_ROWS)
    rows = _rows(connection, wanted, visible, at)
    last = rows[PAGE_ROWS - 1] if len(rows) > PAGE_ROWS else None
    return FoundAdapters(rows=rows[:PAGE_ROWS], next_cursor=f"{last.place} {last.repo_id}" if last else None)


def _rows(connection: Connection, wanted: _Wanted, visible: Met, at: str | None) -> list[Row[Any]]:
    order = _ORDERS[wanted.order][1]
    number = adapters.c.repo_id if order.table is adapters else repos.c.id
    conditions = [*conditions_of(connection, _query(wanted)), *_states(wanted)]
    is_newest = order.table is adapters
    narrow = narrowed(connection, conditions, is_ordered=is_newest)
    # in the order of the repositories, unless some were found already: no index serves an expression on their numbers
    is_few = narrow.is_few or wanted.is_yanked
    same = repos.c.id if is_newest or is_few else Unindexed(repos.c.id)
    query = SHOWN.add_columns(order.label("place")).join(repos, same == adapters.c.repo_id)
    query = query.where(*visible.filters, _listed(wanted), *narrow.filters)
    if at is not None:
        found = _CURSOR.fullmatch(at)
        if found is None:
            raise bad_request("the cursor does not belong to this list")
        value, last = map(int, found.groups())
        query = query.where(after(order, value, number, last))
    return list(
        connection.execute(
            query.order_by(order.desc(), number.desc()).limit(PAGE_ROWS + 1), {**visible.given, **narrow.given}
        )
    )


def _query(wanted: _Wanted) -> AdapterQuery:
    base, rank = wanted.get("base"), wanted.get("rank")
    is_digest = BASE_DIGEST.fullmatch(base) is not None
    found = re.fullmatch(r"([0-9]{1,7})(-([0-9]{0,7}))?", rank) if rank else None
    if rank and found is None:
        raise bad_request(f"rank `{shown(rank)}`: expected a number such as 16, or a range such as 8-64")
    least = int(found[1]) if found else None
    most = None if found is None else (int(found[3]) if found[3] else MAX_RANK) if found[2] else least
    return AdapterQuery(
        q=wanted.get("q") or None,
        base=base or None if not is_digest else None,
        base_sha256=base if is_digest else None,
        task=wanted.get("task") or None,
        rank_min=least,
        rank_max=most,
        peft_type=wanted.get("method") or None,
        license=wanted.get("license") or None,
        signed=_YES_OR_NO.get(wanted.get("signed")),
        tested=_YES_OR_NO.get(wanted.get("contract")),
    )


def _states(wanted: _Wanted) -> list[Condition]:
    """The conditions that the API's search lacks."""
    found = []
    verdict = {"passed": "PASS", "changed": "CHANGED"}.get(wanted.get("tested"))
    if verdict is not None:
        found.append(_tested(verdict))
    if wanted.get("yanked") == "no":
        found.append(holding(releases, _YANKED, has=False))
    return found


_YANKED: Final = releases.c.yanked_at.is_not(None)


@lru_cache
def _tested(verdict: str) -> Condition:
    """Whether the listed build has this verdict by a key that its namespace knows."""
    known = (test_keys.c.namespace == repos.c.namespace) & (test_keys.c.fingerprint == results.c.key)
    mine = (results.c.repo_id == adapters.c.repo_id) & (results.c.manifest == adapters.c.digest)
    there = exists().where(mine, results.c.verdict == verdict, known)
    holders = numbers_of(select(results.c.repo_id).where(results.c.verdict == verdict))
    return Condition(filters=there, holders=Numbers(holders, {}))


def _listed(wanted: _Wanted) -> ColumnElement[bool]:
    """The rows that a search shows; of those with a yanked version also ones without any other, which few have."""
    return _WITH_YANKED if wanted.is_yanked else adapters.c.is_listed


_other = adapters.alias()
_LISTED: Final = exists().where(_other.c.repo_id == adapters.c.repo_id, _other.c.is_listed)
_WITH_YANKED: Final = and_(
    adapters.c.repo_id.in_(select(releases.c.repo_id).where(_YANKED)),
    or_(adapters.c.is_listed, and_(adapters.c.is_head, ~_LISTED)),
)


def _facets(wanted: _Wanted) -> tuple[Facet, ...]:
    texts = [
        Facet(name=name, label=name.capitalize().replace("License", "Licence"), value=wanted.get(name), hint=hint)
        for name, hint in _HINTS.items()
    ]
    chosen = {"method": (_ANY, *((name, name) for name in METHODS)), **_STATES}
    choices = [
        Facet(
            name=name,
            label=_LABELS.get(name, "Method"),
            choices=tuple(FormChoice(value=v, text=text, chosen=v == wanted.get(name)) for v, text in values),
        )
        for name, values in chosen.items()
    ]
    return (*texts, *choices)


def lines(
    connection: Connection, rows: Sequence[Row[Any]], fits: Mapping[int, Fit] = MappingProxyType({})
) -> tuple[AdapterLine, ...]:
    """The lines of some rows of `SHOWN`, with why they were found where that is known."""
    numbers = {row.repo_id for row in rows}
    tags = select(repo_tags).where(repo_tags.c.repo_id.in_(numbers), repo_tags.c.tag.startswith("license:"))
    licenses = {row.repo_id: row.tag.removeprefix("license:") for row in connection.execute(tags)}
    yanks = select(releases.c.repo_id).where(releases.c.repo_id.in_(numbers), releases.c.yanked_at.is_not(None))
    yanked = set(connection.scalars(yanks))
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
            badges=tuple(
                badge
                for badge, stands in (
                    (Badge(text="private"), row.private),
                    (Badge(text="a version is yanked", tone="bad"), row.repo_id in yanked),
                )
                if stands
            ),
        )
        for row in rows
    )


def _example(fit: Fit | None) -> str:
    """The example prompt that matches; the other parts of a build's text stand in its line anyway."""
    return fit.matched.text if fit is not None and fit.matched.part == "prompt" else ""


def _base_in(config: bytes) -> tuple[str, str]:
    """The base that an uploaded file names, and what the reader should know about it."""
    try:
        value = strict_json(config, limit_bytes=1 << 20)
    except ValueError as error:
        raise bad_request(f"the file is not JSON: {error}") from None
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
