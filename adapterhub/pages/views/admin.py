"""Administration of a registry: users and tokens, space, the log of refusals, yank and delete.

Their paths have one part, so that no repository `namespace/name` can have the same.
"""

from __future__ import annotations

from adapterhub.pages.page import Asked, Page
from adapterhub.pages.source import PageSource


def _users(source: PageSource, _asked: Asked) -> object:
    return source.users()


def _change_tokens(source: PageSource, asked: Asked) -> object:
    return source.change_tokens(asked)


def _space(source: PageSource, _asked: Asked) -> object:
    return source.space(preview=False)


def _preview(source: PageSource, _asked: Asked) -> object:
    return source.space(preview=True)


def _refusals(source: PageSource, asked: Asked) -> object:
    return source.refusals(asked.query.get("user", ""))


def _handled(source: PageSource, asked: Asked) -> object:
    return source.handled(asked.query.get("repo", ""))


def _withdraw(source: PageSource, asked: Asked) -> object:
    return source.withdraw(asked)


PAGES = (
    Page(path="/admin", template="admin-users.html", show=_users, act=_change_tokens),
    Page(path="/admin-space", template="admin-space.html", show=_space, act=_preview),
    Page(path="/admin-refusals", template="admin-refusals.html", show=_refusals),
    Page(path="/admin-adapter", template="admin-adapter.html", show=_handled, act=_withdraw),
)
