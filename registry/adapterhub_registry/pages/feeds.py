"""Feeds: the newest versions and yanks of a namespace, or of all adapters for a base."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

from sqlalchemy import select

from adapterhub.pages.page import Asked
from adapterhub.pages.values.adapters import Feed, FeedEntry
from adapterhub_registry.database.conditions import Condition, met, rarest
from adapterhub_registry.database.db import adapters, releases, repos
from adapterhub_registry.database.search_tables import Unindexed, among
from adapterhub_registry.errors import bad_request
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos.adapter_search import BASE_DIGEST, AdapterQuery, conditions_of
from adapterhub_registry.repos.search import of_namespace

ENTRIES: Final = 50


def feed_of(here: Visit, asked: Asked) -> Feed:
    """The newest events of `namespace=…` or `base=…` (a hash or a name), as far as the caller may see them."""
    registry, caller, address = here.registry, here.caller, here.address
    registry.repos.check_may_read(caller)
    namespace, base = asked.query.get("namespace", ""), asked.query.get("base", "")
    if bool(namespace) == bool(base):
        raise bad_request("a feed needs one of `namespace` and `base`")
    is_digest = BASE_DIGEST.fullmatch(base) is not None
    query = AdapterQuery(base_sha256=base) if is_digest else AdapterQuery(base=base or None)
    mine = (adapters.c.repo_id == releases.c.repo_id) & (adapters.c.commit_id == releases.c.commit_id)
    described = select(adapters.c.description).where(mine).correlate(releases).scalar_subquery()
    wanted = select(releases, repos.c.full_name, described.label("description"))
    wanted = wanted.join_from(releases, repos, repos.c.id == releases.c.repo_id).where(registry.repos.visible(caller))
    with registry.db.read() as connection:
        conditions = conditions_of(connection, query)
        about, given = met(conditions)
        if conditions:
            # a subquery for each release: PostgreSQL expects one row of a join by two columns, and sorts them all
            found = select(adapters.c.repo_id).where(mine, *about).correlate(releases)
            wanted = wanted.where(found.scalar_subquery().is_not(None))
        if namespace:
            conditions.append(Condition(filters=None, holders=of_namespace(namespace)))
            wanted = wanted.where(Unindexed(repos.c.namespace) == namespace)
        few = rarest(connection, conditions)
        if few is not None:
            wanted = wanted.where(among(releases.c.repo_id, "numbers"))
            given = {**given, "numbers": few.found.numbers}
        released = connection.execute(wanted.order_by(releases.c.created_at.desc()).limit(ENTRIES), given).all()
        is_yanked = releases.c.yanked_at.is_not(None)
        yanked = connection.execute(
            wanted.where(is_yanked).order_by(releases.c.yanked_at.desc()).limit(ENTRIES), given
        ).all()
    entries = [
        FeedEntry(
            id=f"{address}/{row.full_name}#{row.version}-{row.digest[:16]}",
            title=f"{row.full_name} {row.version}",
            url=f"{address}/{row.full_name}/commit/{row.commit_id}",
            at=row.created_at,
            summary=row.description or f"{row.full_name} {row.version} was released.",
        )
        for row in released
    ]
    entries += [
        FeedEntry(
            id=f"{address}/{row.full_name}#{row.version}-yanked-{row.yanked_at}",
            title=f"{row.full_name} {row.version} was yanked",
            url=f"{address}/{row.full_name}",
            at=row.yanked_at,
            summary=row.yanked_reason or "",
        )
        for row in yanked
    ]
    entries.sort(key=lambda entry: entry.at, reverse=True)
    asked_for = urlencode({"namespace": namespace} if namespace else {"base": base})
    url = f"{address}/feed?{asked_for}"
    return Feed(
        id=url,
        title=f"Adapters in {namespace}" if namespace else f"Adapters for {base}",
        url=url,
        page_url=f"{address}/?{urlencode({'q': f'{namespace}/'})}" if namespace else f"{address}/?{asked_for}",
        updated_at=entries[0].at if entries else 0,
        entries=tuple(entries[:ENTRIES]),
    )
