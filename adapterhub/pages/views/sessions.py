"""Signing in with a token, and out again."""

from __future__ import annotations

from adapterhub.pages.page import Asked, Elsewhere, Page
from adapterhub.pages.source import PageSource
from adapterhub.pages.values.sessions import SignInPage

_REFUSED = "The registry does not know this token: it was mistyped, revoked, or has expired."


def _then(text: str) -> str:
    """A path of this home to return to; anything else leads to the first page."""
    is_path = (
        text.startswith("/")
        and not text.startswith("//")
        and "\\" not in text
        and text.isascii()
        and text.isprintable()
    )
    return text if is_path else "/"


def _form(_source: PageSource, asked: Asked) -> object:
    return SignInPage(then=_then(asked.query.get("then", "/")))


def _sign_in(source: PageSource, asked: Asked) -> object:
    then = _then(asked.form.get("then", "/"))
    session = source.sign_in(asked.form.get("token", "").strip())
    return SignInPage(then=then, problem=_REFUSED) if session is None else Elsewhere(url=then, session=session)


def _to_first(_source: PageSource, _asked: Asked) -> object:
    return Elsewhere(url="/")


def _sign_out(source: PageSource, _asked: Asked) -> object:
    source.sign_out()
    return Elsewhere(url="/", signs_out=True)


PAGES = (
    Page(path="/sign-in", template="sign-in.html", show=_form, act=_sign_in),
    Page(path="/sign-out", template="", show=_to_first, act=_sign_out),
)
