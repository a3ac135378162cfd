"""The search: the adapters of a home, by words, base and facts. A form may send a config that names the base."""

from __future__ import annotations

from adapterhub.pages.page import Asked, Page
from adapterhub.pages.source import PageSource


def _show(source: PageSource, asked: Asked) -> object:
    return source.search(asked)


def _by_config(source: PageSource, asked: Asked) -> object:
    return source.search(asked, asked.files.get("config", b""))


PAGES = (Page(path="/", template="search.html", show=_show, act=_by_config),)
