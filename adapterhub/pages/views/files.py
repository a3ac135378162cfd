"""Commits, folders and files, at the addresses that clients of the Hub print."""

from __future__ import annotations

from adapterhub.pages.page import Asked, Page
from adapterhub.pages.source import PageSource

_REPO = "/{namespace}/{name}"


def _commit(source: PageSource, asked: Asked) -> object:
    return source.commit(asked.repo, asked.path["revision"], asked.query.get("before"))


def _tree(source: PageSource, asked: Asked) -> object:
    folder = asked.path.get("path", "").strip("/")
    return source.tree(asked.repo, asked.path["revision"], folder, asked.query.get("after", ""))


def _blob(source: PageSource, asked: Asked) -> object:
    return source.blob(asked.repo, asked.path["revision"], asked.path["path"])


def _raw(source: PageSource, asked: Asked) -> object:
    return source.raw(asked.repo, asked.path["revision"], asked.path["path"])


PAGES = (
    Page(path=f"{_REPO}/commit/{{revision}}", template="commit.html", show=_commit),
    Page(path=f"{_REPO}/tree/{{revision}}", template="tree.html", show=_tree),
    Page(path=f"{_REPO}/tree/{{revision}}/{{path:path}}", template="tree.html", show=_tree),
    Page(path=f"{_REPO}/blob/{{revision}}/{{path:path}}", template="blob.html", show=_blob),
    Page(path=f"{_REPO}/raw/{{revision}}/{{path:path}}", template="", show=_raw),
)
