"""Atom feeds (RFC 4287): new versions and yanks of a namespace or of a base."""

from __future__ import annotations

from adapterhub.pages.page import Asked, Page
from adapterhub.pages.source import PageSource


def _show(source: PageSource, asked: Asked) -> object:
    return source.feed(asked)


PAGES = (Page(path="/feed", template="feed.xml", show=_show, media_type="application/atom+xml"),)
