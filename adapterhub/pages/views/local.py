"""The local library: bases and space, projects and their locks, what is outdated, and the playground."""

from __future__ import annotations

from adapterhub.pages.page import Asked, Page
from adapterhub.pages.source import PageSource


def _library(source: PageSource, _asked: Asked) -> object:
    return source.library()


def _projects(source: PageSource, _asked: Asked) -> object:
    return source.projects()


def _outdated(source: PageSource, _asked: Asked) -> object:
    return source.outdated(ask=False)


def _ask(source: PageSource, _asked: Asked) -> object:
    return source.outdated(ask=True)


def _playground(source: PageSource, asked: Asked) -> object:
    return source.playground(asked)


def _answer(source: PageSource, asked: Asked) -> object:
    return source.play(asked)


def _stream(source: PageSource, asked: Asked) -> object:
    return source.stream(asked)


PAGES = (
    Page(path="/library", template="library.html", show=_library),
    Page(path="/projects", template="projects.html", show=_projects),
    Page(path="/outdated", template="outdated.html", show=_outdated, act=_ask),
    Page(path="/playground", template="playground.html", show=_playground, act=_answer),
    Page(path="/playground-stream", template="playground.html", show=_playground, act=_stream),
)
