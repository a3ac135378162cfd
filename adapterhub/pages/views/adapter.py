"""One adapter."""

from __future__ import annotations

from adapterhub.pages.page import Asked, Page
from adapterhub.pages.source import PageSource


def _show(source: PageSource, asked: Asked) -> object:
    return source.adapter(asked.repo, asked)


PAGES = (Page(path="/{namespace}/{name}", template="adapter.html", show=_show),)
