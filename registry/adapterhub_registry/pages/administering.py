"""The pages of an administrator: users and tokens, space, the log of refusals, yank and delete.

They do what the API does for the same caller. Only one count of the whole registry runs at a time.
"""

from __future__ import annotations

import threading
from typing import Final
from urllib.parse import urlencode

from adapterhub.core.errors import AdapterHubError, UsageProblem
from adapterhub.pages.page import Elsewhere, PageQuery
from adapterhub.pages.values import HandledPage, NamespaceLine, RefusalsPage, SpacePage, TokensPage, UsersPage
from adapterhub_registry.access import audit
from adapterhub_registry.access.audit import LogSearch
from adapterhub_registry.access.callers import ROLES
from adapterhub_registry.access.telemetry import KEPT, refusal_records
from adapterhub_registry.api.context import administrator_of
from adapterhub_registry.database.counting import counted, largest_spaces
from adapterhub_registry.errors import HttpRefusal, busy
from adapterhub_registry.names import known_repo_id, split
from adapterhub_registry.pages.files import listed_versions, repo_of, url_of
from adapterhub_registry.pages.people import listed
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos import adapters
from adapterhub_registry.upkeep.space import free_space

_LOG_LINES: Final = 5
_TOKENS: Final = 50
_USERS: Final = 50
_NAMESPACES: Final = 50
_REASON_CHARACTERS: Final = 400
_counting: Final = threading.Lock()


# ---------------------------------------------------------------- users and tokens
def tokens_page(here: Visit, asked: PageQuery, *, made: str | None = None, problem: str = "") -> TokensPage:
    """Return the newest tokens of all or of one `user`, and the end of their log."""
    registry, caller = here.registry, here.caller
    administrator_of(caller)
    user = asked.query.get("user") or None
    with registry.db.read() as connection:
        log = tuple(audit.entries(connection, LogSearch(), below=0, limit=_LOG_LINES))
    return TokensPage(
        tokens=tuple(registry.tokens.newest(_TOKENS, user=user)),
        log=log,
        user=user or "",
        roles=ROLES,
        made=made,
        problem=problem,
        given={} if made is not None else asked.form,
    )


def users_page(here: Visit, asked: PageQuery, *, problem: str = "") -> UsersPage:
    """Return a page of the users."""
    administrator_of(here.caller)
    users = here.registry.tokens.users(after=asked.query.get("after", ""), limit=_USERS + 1)
    return UsersPage(
        users=tuple(users[:_USERS]),
        more_url=f"/admin-users?{urlencode({'after': users[_USERS - 1].name})}" if len(users) > _USERS else None,
        problem=problem,
    )


def change_tokens(here: Visit, asked: PageQuery) -> TokensPage | Elsewhere:
    """Create a token, which the page shows once, or revoke one."""
    registry, caller = here.registry, here.caller
    tokens, form = registry.tokens.by(administrator_of(caller)), asked.form
    try:
        match form.get("do"):
            case "create":
                globs = listed(form.get("namespaces", ""))
                made = tokens.create(
                    form.get("user", ""),
                    form.get("role", ""),
                    namespaces=globs,
                    label=form.get("label", "")[:200],
                    days=_number(form["days"], "days") if form.get("days") else None,
                )
                return tokens_page(here, asked, made=made)
            case "revoke":
                tokens.revoke(_number(form.get("number", ""), "number"))
    except AdapterHubError as error:
        return tokens_page(here, asked, problem=error.message)
    return Elsewhere(url="/admin")


def revoke_user(here: Visit, asked: PageQuery) -> UsersPage | Elsewhere:
    """Revoke all tokens of a user whose name was typed again."""
    tokens, form = here.registry.tokens.by(administrator_of(here.caller)), asked.form
    if form.get("confirmed", "").strip() != form.get("user"):
        return users_page(here, asked, problem="the name differs; no token was revoked")
    try:
        tokens.revoke_user(form.get("user", ""))
    except AdapterHubError as error:
        return users_page(here, asked, problem=error.message)
    return Elsewhere(url="/admin-users")


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageProblem(f"{what}: expected a whole number")
    return int(text)


# ---------------------------------------------------------------- space
def space_page(here: Visit, asked: PageQuery) -> SpacePage:
    """Quotas, the largest namespaces, and for a form what a collection would remove now.

    Raises:
        HttpRefusal: 503 while another page counts.
    """
    registry, caller = here.registry, here.caller
    administrator_of(caller)
    if not _counting.acquire(blocking=False):
        raise busy("another request is counting the space; try again")
    try:
        with registry.db.read() as connection:
            held = largest_spaces(connection, _NAMESPACES + 1)
            number = counted(connection)
        free = free_space(registry, dry_run=True) if asked.is_form else None
    finally:
        _counting.release()
    limits = registry.settings.limits
    return SpacePage(
        namespaces=tuple(
            NamespaceLine(namespace=one.namespace, repos=one.repos, bytes=one.bytes) for one in held[:_NAMESPACES]
        ),
        has_more=len(held) > _NAMESPACES,
        blobs=number["blobs"],
        blob_bytes=number["blob_bytes"],
        namespace_bytes=limits.namespace_bytes or None,
        namespace_repos=limits.namespace_repos or None,
        token_bytes_a_day=limits.token_upload_bytes_per_day or None,
        preview=free,
    )


# ---------------------------------------------------------------- refusals
def refusals_page(here: Visit, asked: PageQuery) -> RefusalsPage:
    """Return the newest refused changes."""
    administrator_of(here.caller)
    user = asked.query.get("user", "")
    return RefusalsPage(refusals=tuple(refusal_records(here.registry.db, user=user)), user=user, kept=KEPT)


# ---------------------------------------------------------------- yank and delete
def handled_page(here: Visit, asked: PageQuery, *, problem: str = "") -> HandledPage:
    """Return the versions of one repository; the empty form without one, or for a name that no repository has."""
    registry, caller, repo = here.registry, here.caller, asked.query.get("repo", "")
    administrator_of(caller)
    if not repo:
        return HandledPage(repo="", problem=problem)
    try:
        with registry.db.read() as connection:
            row = repo_of(registry, connection, caller, repo)
            versions, rest = listed_versions(
                connection,
                row.id,
                lambda one: url_of(row.full_name, "tree", one.commit_id),
                below=asked.query.get("below"),
            )
    except HttpRefusal as refusal:
        return HandledPage(repo="", problem=problem or refusal.message)
    more = rest and f"/admin-adapter?{urlencode({'repo': row.full_name, 'below': rest})}"
    return HandledPage(repo=row.full_name, versions=versions, more_versions=more, problem=problem)


def withdraw(here: Visit, asked: PageQuery) -> HandledPage | Elsewhere:
    """Yank a version, take a yank back, or delete the repository whose name was typed again."""
    registry, caller = here.registry, here.caller
    administrator_of(caller)
    repo, form = asked.query.get("repo", ""), asked.form
    what, version, reason = form.get("do"), form.get("version", ""), form.get("reason", "").strip()
    if what == "yank" and not 0 < len(reason) <= _REASON_CHARACTERS:
        return handled_page(here, asked, problem=f"why? expected 1 to {_REASON_CHARACTERS} characters")
    if what == "delete" and form.get("confirmed", "").strip() != repo:
        return handled_page(here, asked, problem="the name differs; nothing was deleted")
    try:
        repo_id = known_repo_id(*split(repo))
        with registry.db.begin() as connection:
            if what == "delete":
                registry.repos.delete(connection, caller, repo_id)
                return Elsewhere(url="/")
            row = registry.repos.find_writable(connection, caller, repo_id, "release")
            if what == "yank":
                adapters.yank(connection, row, version, reason=reason, by=caller.by)
            elif what == "unyank":
                adapters.unyank(connection, row, version, by=caller.by)
    except HttpRefusal as refusal:
        return handled_page(here, asked, problem=refusal.message)
    return Elsewhere(url=asked.url)
