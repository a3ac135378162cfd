"""The page of a namespace: its adapters, what happened there, and the keys that it knows; and the list of all bases."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from typing import Final
from urllib.parse import quote, urlencode

from sqlalchemy import select

from adapterhub.pages.lists import BasesPage, Event, KeyLine, NamespacePage
from adapterhub.pages.page import PageQuery
from adapterhub.pages.values import Link
from adapterhub_registry.database.db import repos
from adapterhub_registry.database.search_tables import GRAM
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.pages.adapter import feed_of
from adapterhub_registry.pages.facets import bases_of
from adapterhub_registry.pages.search import PAGE_ROWS, counting_of, list_page
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.pages.wanted import Wanted
from adapterhub_registry.repos.abouts import about_of
from adapterhub_registry.repos.listing import RepoListing, list_repos
from adapterhub_registry.testing import rule_of

_TABS: Final = ("adapters", "activity", "keys")
MOST_MEMBERS: Final = 100
"""So many memberships are counted."""


def namespace_page(here: Visit, asked: PageQuery) -> NamespacePage:
    """Return a namespace with a repository that the caller may see.

    Raises:
        HttpRefusal: 404 where there is none.
    """
    name, tab = asked.path["namespace"], asked.query.get("tab", "")
    tab = tab if tab in _TABS else _TABS[0]
    registry, caller = here.registry, here.caller
    registry.repos.check_may_read(caller)
    with registry.db.read() as connection:
        seen = select(repos.c.id).where(repos.c.namespace == name, registry.repos.visible(caller)).limit(1)
        if connection.scalar(seen) is None:
            raise HttpRefusal(404, "RepoNotFound", "no such namespace; check the name")
        wanted = replace(Wanted.of(dict(asked.query)), place=f"/{name}")
        wanted = replace(wanted, given={**wanted.given, "namespace": name})
        counting = counting_of(here, connection)
        listed = list_page(here, connection, wanted, counting)
        whole = counting.matching(Wanted(given={"namespace": name}, place=f"/{name}"))
        keys, about = rule_of(connection, name).keys, about_of(connection, name).about
    events = feed_of(here, PageQuery(query={"namespace": name})).entries if tab == "activity" else ()
    is_managed = caller.administers(name)
    members = registry.members.records(name, limit=MOST_MEMBERS + 1) if is_managed else ()
    return NamespacePage(
        name=name,
        tab=tab,
        tabs=tabs_of(here, name, tab, adapters=None if whole.more else whole.total, keys=len(keys)),
        members=len({one.user for one in members}) if is_managed else None,
        members_url=f"/{quote(name)}/-/settings",
        total=whole.total,
        more=whole.more,
        downloads=whole.downloads,
        list=listed,
        keys=tuple(KeyLine(name=key.name, fingerprint=str(key.fingerprint)) for key in keys),
        events=tuple(
            Event(title=one.title, url=one.url.removeprefix(here.address), at=one.at, summary=one.summary)
            for one in events
        ),
        feed_url=f"/feed?{urlencode({'namespace': name})}",
        about=about,
    )


def tabs_of(
    here: Visit, name: str, tab: str, *, adapters: int | None = None, keys: int | None = None
) -> tuple[Link, ...]:
    """Return the pages of a namespace, of which the reader sees `tab`; some are for those who administer it."""
    place, counts = f"/{quote(name)}", {"adapters": adapters, "keys": keys}
    urls = {one: place if one == _TABS[0] else f"{place}?tab={one}" for one in _TABS}
    if here.caller.administers(name):
        urls |= {"settings": f"{place}/-/settings", "log": f"{place}/-/log"}
    return tuple(
        Link(text=one.capitalize(), url=url, is_here=one == tab, count=counts.get(one)) for one, url in urls.items()
    )


def bases_page(here: Visit, _asked: PageQuery) -> BasesPage:
    """Return the bases that most of the newest adapters of the caller name."""
    here.registry.repos.check_may_read(here.caller)
    with here.registry.db.read() as connection:
        found = counting_of(here, connection).matching(Wanted(given={}))
    return BasesPage(bases=bases_of(found), more=found.partly)


MOST_NAMES: Final = 1000
"""Of so many names the nearest one is looked for."""
_ALIKE: Final = 0.6
MAX_NAME: Final = 96


def nearest_page(here: Visit, path: str) -> Link | None:
    """Return the repository of the caller whose name is nearest to that of an address, or the namespace."""
    namespace, _, name = path.strip("/").partition("/")
    name = name.partition("/")[0]
    seen = here.registry.repos.visible(here.caller)
    with here.registry.db.read() as connection:
        if name:
            mine = select(repos.c.full_name).where(repos.c.namespace == namespace, seen).limit(MOST_NAMES)
            known = list(connection.scalars(mine))
            near = get_close_matches(f"{namespace}/{name}", known, 1, _ALIKE)
            if not near and GRAM <= len(name) <= MAX_NAME:
                found = list_repos(connection, RepoListing(search=name, limit=PAGE_ROWS), seen).ids
                named = select(repos.c.full_name).where(repos.c.id.in_(found))
                near = get_close_matches(f"{namespace}/{name}", list(connection.scalars(named)), 1, _ALIKE)
        else:
            begin = repos.c.namespace.between(namespace[:2], f"{namespace[:2]}\U0010ffff")
            near = get_close_matches(namespace, list(connection.scalars(_NAMESPACES.where(begin, seen))), 1, _ALIKE)
    return Link(text=near[0], url=f"/{near[0]}") if near else None


_NAMESPACES: Final = select(repos.c.namespace).distinct().limit(MOST_NAMES)
