"""The pages of people: one's own tokens, invitations, the settings of a namespace, and the log of changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from pydantic import ValidationError

from adapterhub.core.errors import AdapterHubError, UsageProblem
from adapterhub.pages.page import Elsewhere, PageQuery
from adapterhub.pages.values import AccountPage, JoinPage, LogPage, NamespacePage
from adapterhub_registry.access import audit
from adapterhub_registry.access.callers import SCOPES
from adapterhub_registry.access.members import ALL
from adapterhub_registry.access.trusted import pin_in
from adapterhub_registry.api.context import check_rate, user_of
from adapterhub_registry.api.members_api import (
    ACCEPTS_A_MINUTE,
    LogQuery,
    manager_of,
    place_in,
    place_of,
    search_of,
    told,
)
from adapterhub_registry.api.trusted_api import publishers_of
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.pages.namespace import tabs_of
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos.abouts import about_of, change_about
from adapterhub_registry.testing import change_rule, rule_of

_ROWS: Final = 50
_NEWEST: Final = 100
"""Of a list without further pages, so many are shown."""
_CONDITIONS: Final = ("user", "action", "repo", "address", "since", "until")


# ---------------------------------------------------------------- one's own
def account_page(here: Visit, _asked: PageQuery, *, made: str | None = None, problem: str = "") -> AccountPage:
    """Return the memberships and the newest tokens of the viewer."""
    user = user_of(here.caller)
    return AccountPage(
        user=user,
        memberships=tuple(here.registry.members.of(user)),
        tokens=tuple(here.registry.tokens.newest(_NEWEST, user=user)),
        scopes=SCOPES,
        made=made,
        problem=problem,
    )


def change_account(here: Visit, asked: PageQuery) -> AccountPage | Elsewhere:
    """Create a token of the viewer, which the page shows once, or revoke one."""
    user, form = user_of(here.caller), asked.form
    tokens = here.registry.tokens.by(here.caller.by)
    try:
        if form.get("do") == "create":
            made = tokens.create_own(
                here.caller,
                scopes=[scope for scope in SCOPES if f"scope-{scope}" in form],
                namespaces=listed(form.get("namespaces", "")),
                label=form.get("label", "")[:200],
                days=number_in(form, "days"),
            )
            return account_page(here, asked, made=made)
        number = number_in(form, "number") or 0
        if tokens.user_of(number) != user:
            return account_page(here, asked, problem="the token belongs to another user; nothing was changed")
        tokens.revoke(number)
    except AdapterHubError as error:
        return account_page(here, asked, problem=error.message)
    return Elsewhere(url="/settings")


def join_page(here: Visit, asked: PageQuery) -> JoinPage:
    """Return the invitation of a code."""
    code = asked.query.get("code", "")
    _check_code(here)
    return JoinPage(code=code, invitation=here.registry.members.invited(code), user=here.caller.user or "")


def join(here: Visit, asked: PageQuery) -> JoinPage | Elsewhere:
    """Accept an invitation, as the viewer or as a new user, whose first token the page shows once."""
    code, user = asked.form.get("code", ""), here.caller.user or ""
    _check_code(here)
    try:
        done = here.registry.members.accept(code, here.caller, name=asked.form.get("user", "").strip() or None)
    except AdapterHubError as error:
        found = here.registry.members.invited(code)
        return JoinPage(code=code, invitation=found, user=user, problem=error.message)
    if done.token is None:
        return Elsewhere(url="/settings")
    return JoinPage(code="", made=done.token)


def _check_code(here: Visit) -> None:
    check_rate(here.registry, "invitation", here.caller.address or "", ACCEPTS_A_MINUTE)


# ---------------------------------------------------------------- a namespace
def settings_page(
    here: Visit, asked: PageQuery, *, link: str | None = None, done: str = "", problem: str = ""
) -> NamespacePage:
    """Build the page of the members of a namespace and their rights, for its administrators."""
    space, url = _space(asked), _url(asked)
    members = manager_of(here.registry, here.caller, space)
    found = members.records(space, after=asked.query.get("after", ""), limit=_ROWS + 1)
    rest = members.place_of(found[_ROWS - 1]) if len(found) > _ROWS else None
    with here.registry.db.read() as connection:
        rule = None if space == ALL else rule_of(connection, space)
        about = "" if space == ALL else about_of(connection, space).about
    return NamespacePage(
        namespace=space,
        url=url,
        members=tuple(found[:_ROWS]),
        teams=() if space == ALL else tuple(members.teams(space)),
        invitations=tuple(members.invitations(space, limit=_NEWEST)),
        publishers=() if space == ALL else tuple(publishers_of(here.registry, here.caller, space).records()),
        rule=rule,
        scopes=SCOPES,
        about=about,
        tabs=() if space == ALL else tabs_of(here, space, "settings"),
        more_url=None if rest is None else f"{url}?{urlencode({'after': rest})}",
        link=link,
        done=done,
        problem=problem,
    )


def change_namespace(here: Visit, asked: PageQuery) -> NamespacePage | Elsewhere:
    """Do what one form of the settings of a namespace says."""
    space, form = _space(asked), asked.form
    members = manager_of(here.registry, here.caller, space)
    role, team = form.get("role") or None, form.get("team", "").strip()
    user, days = form.get("user", "").strip(), form.get("days")
    try:
        match form.get("do"):
            case "invite":
                made = members.invite(space, role=role, team=team, user=user or None, member_days=_days(days))
                return settings_page(here, asked, link=f"{asked.address}/join?code={made.code}")
            case "remove":
                if form.get("confirmed", "").strip() != user:
                    raise UsageProblem("the name differs; no one was removed", hint="type the name of the user exactly")
                gone = members.remove(space, user)
                gone_too = f"{user} was removed, with {len(gone.tokens)} tokens"
                left = f"; tokens {', '.join(map(str, gone.left))} reach further and stay" if gone.left else ""
                return settings_page(here, asked, done=gone_too + left)
            case "end-publisher":
                publishers_of(here.registry, here.caller, space).remove(number_in(form, "number") or 0)
            case "publisher" if space != ALL:
                pins = dict(pin_in(text) for text in form.get("claims", "").splitlines() if text.strip())
                mine = publishers_of(here.registry, here.caller, None if here.caller.is_admin else space)
                mine.add(f"{space}/{form.get('name', '').strip()}", form.get("issuer", "").strip(), pins)
            case "rule" if space != ALL:
                with here.registry.db.begin() as connection:
                    change_rule(connection, space, by=here.caller.by, asks=form.get("asks"))
            case "about" if space != ALL:
                with here.registry.db.begin() as connection:
                    change_about(connection, space, form.get("about", ""), by=here.caller.by)
            case what:
                changes: dict[str | None, Callable[[], object]] = {
                    "add": lambda: members.add(space, user, role=role, team=team, days=_days(days)),
                    "leave": lambda: members.leave_team(space, user, team),
                    "team": lambda: members.put_team(space, team, role or "", listed(form.get("repos", ""))),
                    "remove-team": lambda: members.remove_team(space, team),
                    "withdraw": lambda: members.withdraw(space, number_in(form, "number") or 0),
                }
                changes.get(what, lambda: None)()
    except (AdapterHubError, HttpRefusal) as error:
        return settings_page(here, asked, problem=error.message)
    return Elsewhere(url=_url(asked))


def _space(asked: PageQuery) -> str:
    return asked.path.get("namespace", ALL)


def _url(asked: PageQuery) -> str:
    return f"/{quote(_space(asked))}/-/settings" if "namespace" in asked.path else "/admin-members"


# ---------------------------------------------------------------- the log
def log_page(here: Visit, asked: PageQuery) -> LogPage:
    """Return a page of the log of changes, of the whole registry or of a namespace in the path."""
    space = asked.path.get("namespace")
    given = {name: asked.query.get(name, "").strip() for name in _CONDITIONS}
    repo = given["repo"]
    if space is not None and not (repo == space or repo.startswith(f"{space}/")):
        given["repo"] = space
    filled: Mapping[str, Any] = {name: value for name, value in given.items() if value}
    url = "/admin-log" if space is None else f"/{quote(space)}/-/log"
    below, problem = place_in(here.registry, here.caller, asked.query.get("below", "")), ""
    try:
        wanted = search_of(here.caller, LogQuery(**filled))
    except (ValidationError, HttpRefusal) as error:
        if isinstance(error, HttpRefusal) and error.status != 400:
            raise
        problem = error.message if isinstance(error, HttpRefusal) else "a condition is too long"
        wanted = search_of(here.caller, LogQuery(repo=space))
    with here.registry.db.read() as connection:
        found = audit.entries(connection, wanted, below=below, limit=_ROWS + 1)
    entries = tuple(told(here.caller, found[:_ROWS]))
    below_it = place_of(here.registry, here.caller, found[_ROWS - 1]) if len(found) > _ROWS else None
    rest = None if below_it is None else {**filled, "below": str(below_it)}
    return LogPage(
        entries=entries,
        asked=given,
        namespace=space or "",
        url=url,
        tabs=() if space is None else tabs_of(here, space, "log"),
        export_url=f"/api/adapt/v1/log/export?{urlencode(filled)}",
        more_url=None if rest is None else f"{url}?{urlencode(rest)}",
        problem=problem,
    )


def number_in(form: Mapping[str, str], what: str) -> int | None:
    """Return a whole number of a form; None if it is empty.

    Raises:
        UsageProblem: it is not a whole number.
    """
    text = form.get(what, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise UsageProblem(f"{what}: expected a whole number")
    return int(text)


def _days(text: str | None) -> int | None:
    return number_in({"days": text or ""}, "days")


def listed(text: str) -> list[str]:
    """Return the texts between commas in a field of a form."""
    return [part.strip() for part in text.split(",") if part.strip()]
