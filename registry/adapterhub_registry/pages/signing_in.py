"""The pages to sign in, by a token or at an issuer, to sign out, and to approve a program that asks for a token."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from adapterhub.core.errors import shown
from adapterhub.pages.page import Elsewhere, PageQuery
from adapterhub.pages.values import SignInPage
from adapterhub_registry.access import oidc, tokens
from adapterhub_registry.access.audit import By, log_change
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.access.oidc import SignIn
from adapterhub_registry.api.context import check_rate, user_of
from adapterhub_registry.api.sign_in_api import DEVICE_PAGE
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.pages.visit import Visit

log = logging.getLogger("adapterhub_registry")

SESSION_S: Final = 12 * 3600
SIGN_INS_A_MINUTE: Final = 60
"""At an issuer, of one address: many people may share one."""
CODES_A_MINUTE: Final = 10
"""That one user may try, and one address: of 25 thousand million."""
_STRANGER: Final = By("a visitor")
_REFUSED: Final = "The registry does not know this token: it was mistyped, revoked, or has expired."
_NO_CODE: Final = "No program waits with this code: it was mistyped, answered, or is older than ten minutes."


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePage:
    """The form for the code of a program; with `client`, the question whether it gets a token, as `answer` says then.

    `rights` is what it would get, and `address` from where it asked.
    """

    code: str = ""
    client: str = ""
    address: str = ""
    asked_at: str = ""
    rights: str = ""
    days: int = 0
    answer: str = ""
    problem: str = ""


def path_in(text: str) -> str:
    """Return a path of this home to return to; anything else leads to the first page."""
    is_path = (
        text.startswith("/")
        and not text.startswith("//")
        and "\\" not in text
        and text.isascii()
        and text.isprintable()
    )
    return text if is_path else "/"


# ---------------------------------------------------------------- by a token
def sign_in_form(here: Visit, asked: PageQuery) -> SignInPage:
    """Show the ways to sign in."""
    return _form(here, asked.query.get("then", "/"))


def _form(here: Visit, then: str, problem: str = "") -> SignInPage:
    then, sign_in = path_in(then), here.registry.sign_in
    if sign_in is None:
        return SignInPage(then=then, problem=problem)
    url = f"{oidc.BEGIN}?then={quote(then, safe='')}"
    return SignInPage(then=then, problem=problem, other_url=url, other_text=sign_in.rules.button)


def sign_in(here: Visit, asked: PageQuery) -> SignInPage | Elsewhere:
    """Open a session. The cookie holds the token's number, sealed, and never the token."""
    then = path_in(asked.form.get("then", "/"))
    check_rate(here.registry, "sign-in by token", here.peer, SIGN_INS_A_MINUTE)
    caller = here.registry.tokens.authenticate(asked.form.get("token", "").strip())
    if caller is None:
        _log(here, _STRANGER, "refused: an unknown token")
        return _form(here, then, _REFUSED)
    assert caller.token_id is not None  # of a token
    _log(here, caller.by, f"session by token {caller.token_id}")
    cookie = tokens.cookie_for(caller.token_id, here.registry.settings.secret, lasts_s=SESSION_S)
    return Elsewhere(url=then, session=cookie, lasts_s=SESSION_S)


def _log(here: Visit, by: By, subject: str) -> None:
    """Log a sign-in, or why there was none; how often an address may try bounds the entries."""
    with here.registry.db.begin() as connection:
        log_change(connection, replace(by, address=here.peer), "sign-in", subject)


def sign_out(here: Visit, _asked: PageQuery) -> Elsewhere:
    """End the session of the sender, so that its cookie opens nothing any more; one of an issuer goes on to it."""
    onward = None
    if here.session is not None:
        is_issued = tokens.end(here.registry.db, here.session, here.caller.by)
        onward = here.registry.sign_in.end_url() if is_issued and here.registry.sign_in is not None else None
    if onward is None:
        return Elsewhere(url="/", session="")
    return Elsewhere(url=onward, session="", text="You are signed out here")


# ---------------------------------------------------------------- at an issuer
def begin(here: Visit, asked: PageQuery) -> SignInPage | Elsewhere:
    """Lead to the issuer."""
    then = asked.query.get("then", "/")
    try:
        begun = _issuer(here).begin(path_in(then))
    except HttpRefusal as refusal:
        return _told(here, then, refusal)
    return Elsewhere(url=begun.url, flow=begun.cookie)


def finish(here: Visit, asked: PageQuery) -> SignInPage | Elsewhere:
    """Open the session of the person whom the issuer sends back, or show why not."""
    issuer = _issuer(here)
    lasts_s = issuer.rules.session_hours * 3600
    try:
        person, then = issuer.finish(asked.flow, asked.query)
        held = issuer.held_by(person)
        number = here.registry.accounts.signed_in(person, held, lasts_s=lasts_s, address=here.peer)
    except HttpRefusal as refusal:
        return _told(here, "/", refusal)
    cookie = tokens.cookie_for(number, here.registry.settings.secret, lasts_s=lasts_s)
    return Elsewhere(url=path_in(then), session=cookie, lasts_s=lasts_s, flow="", text="You are signed in")


def _issuer(here: Visit) -> SignIn:
    """Return the issuer of this registry.

    Raises:
        HttpRefusal: 404 without one, 429 for too many sign-ins of this address.
    """
    if here.registry.sign_in is None:
        raise HttpRefusal(404, "NotFound", "this registry has no issuer; use a token")
    check_rate(here.registry, "sign-in", here.peer, SIGN_INS_A_MINUTE)
    return here.registry.sign_in


def _told(here: Visit, then: str, refusal: HttpRefusal) -> SignInPage:
    """Show why a person is not signed in; what may work again in a moment has a page of its own.

    Raises:
        HttpRefusal: 429 and 503.
    """
    log.warning("sign-in from %s: %s", here.peer, refusal.message)
    _log(here, _STRANGER, f"refused: {shown(refusal.message, 300)}")
    if refusal.status != HTTPStatus.FORBIDDEN:
        raise refusal
    return _form(here, then, f"{refusal.message[:1].upper()}{refusal.message[1:]}.")


# ---------------------------------------------------------------- a program that waits
def device_form(here: Visit, _asked: PageQuery) -> DevicePage | Elsewhere:
    """Show the form for the code of a program, to a person who is signed in."""
    if here.caller.user is None:
        return Elsewhere(url=f"/sign-in?then={quote(DEVICE_PAGE, safe='')}")
    return DevicePage()


def answer_device(here: Visit, asked: PageQuery) -> DevicePage:
    """Show the program that waits with a code, or approve or refuse it.

    Raises:
        HttpRefusal: 401 without a session, 429 for too many codes.
    """
    registry, caller, code = here.registry, here.caller, asked.form.get("code", "")
    user = user_of(caller)
    check_rate(registry, "device code", user, CODES_A_MINUTE)
    check_rate(registry, "device code of address", here.peer, CODES_A_MINUTE * 5)
    do = asked.form.get("do")
    if do in {"approve", "refuse"}:
        if not registry.devices.answer(code, caller, approve=do == "approve"):
            return DevicePage(problem=_NO_CODE)
        done = "Approved: the program has its token in a few seconds." if do == "approve" else "Refused."
        return DevicePage(answer=f"{done} You can close this page.")
    found = registry.devices.find(code)
    if found is None:
        return DevicePage(problem=_NO_CODE)
    scopes = [scope for scope in found.scopes if scope in caller.rights]
    return DevicePage(
        code=found.user_code,
        client=shown(found.client, 100),
        address=found.address,
        asked_at=found.created_at.text,
        rights=f"{', '.join(scopes)} in {_places(caller)}",
        days=found.days,
    )


def _places(caller: Caller) -> str:
    if caller.memberships is None:
        return ", ".join(caller.namespaces)
    return ", ".join(dict.fromkeys(glob for one in caller.memberships for glob in one.globs))
