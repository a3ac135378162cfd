"""The form of a page: its path, what it shows, and how it looks. Each file of `views` holds some in `PAGES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from adapterhub.pages.source import PageSource
from adapterhub.pages.values.sessions import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request for a page.

    `path` holds the parameters of the page's path, `query` the first value of each parameter of the URL, and `form`
    the fields of a sent form; a file of the form is in `files`, of at most 1 MiB. `address` is the address of the home
    without a slash at its end, `url` the path and query of the request.
    """

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    address: str = ""
    url: str = "/"

    @property
    def repo(self) -> str:
        """`namespace/name` of the path."""
        return f"{self.path['namespace']}/{self.path['name']}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """The answer to a form: the page to show next, and with `session` the session that opens; "" closes it."""

    url: str
    session: Session | None = None
    signs_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page. `show` answers GET with the value that the template gets as `page`; `act` answers a form by POST.

    Either may return an `Elsewhere`, or a `RawFile` of `values.files`. The site has checked the form's origin and its
    token before it calls `act`. A page with a form writes `{{ form_token() }}` inside it.
    """

    path: str
    template: str
    show: Callable[[PageSource, Asked], object]
    act: Callable[[PageSource, Asked], object] | None = None
    media_type: str = "text/html"
