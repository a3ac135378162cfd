"""The form of a page: its path, what it shows, how it looks, and the request that it gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from adapterhub.pages.values import Link, Viewer

FLOW_S: Final = 600
"""How long a visit to another site may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuery:
    """A request for a page.

    `path` holds the parameters of the page's path, `query` the first value of each parameter of the URL, and `form`
    the fields of a sent form; a file of the form is in `files`, of at most 1 MiB. `address` is the address of the home
    without a slash at its end, `url` the path and query of the request; `is_form` says that a form was sent. `flow` is
    the cookie of a visit to another site, if one began.
    """

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    address: str = ""
    url: str = "/"
    is_form: bool = False
    flow: str = ""

    @property
    def repo(self) -> str:
        """`namespace/name` of the path."""
        return f"{self.path['namespace']}/{self.path['name']}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """The answer to a form: the page to show next.

    `session` is the cookie of a session that opens, for `lasts_s` seconds; "" closes the present one. `flow` is the
    cookie of a visit to another site that leads back here, for `FLOW_S` seconds; "" ends it. With `text`, a page with
    this text leads on: browsers do not send the session with a redirect that another site began, and redirect no form
    to one.
    """

    url: str
    session: str | None = None
    lasts_s: int = 0
    flow: str | None = None
    text: str = ""


class PageSource:
    """The facts that a home has about one visitor; a page is a function of them and of the request."""

    viewer: Viewer = Viewer()

    def menu(self) -> tuple[Link, ...]:
        """Return the links at the top of every page."""
        return (Link(text="Adapters", url="/"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page. `show` answers GET with the value that the template gets as `page`; `act` answers a form by POST.

    `part` is the address of the menu's link to which the page belongs.

    Either may return an `Elsewhere`, a `RawFile` or a `Stream`. The site has checked the form's origin and its token
    before it calls `act`. A page with a form writes `{{ form_token() }}` inside it.
    """

    path: str
    template: str = ""
    show: Callable[[Any, PageQuery], object]
    act: Callable[[Any, PageQuery], object] | None = None
    media_type: str = "text/html"
    part: str = "/"


REPO = "/{namespace}/{name}"
"""Begins the path of a page about an adapter."""
