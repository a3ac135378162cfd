"""One build, two beside each other, the relatives of one, and the adapters of a base."""

from __future__ import annotations

from adapterhub.pages.page import Asked, Page
from adapterhub.pages.source import PageSource


def _build(source: PageSource, asked: Asked) -> object:
    return source.build(asked.repo, asked.path["version"])


def _compare(source: PageSource, asked: Asked) -> object:
    return source.compare(asked)


def _lineage(source: PageSource, asked: Asked) -> object:
    return source.lineage(asked.repo, asked.query.get("version", ""))


def _base(source: PageSource, asked: Asked) -> object:
    return source.base(asked.path["fingerprint"])


PAGES = (
    Page(path="/compare", template="compare.html", show=_compare),
    Page(path="/base/{fingerprint}", template="base.html", show=_base),
    Page(path="/lineage/{namespace}/{name}", template="lineage.html", show=_lineage),
    Page(path="/{namespace}/{name}/{version}", template="build.html", show=_build),
)
