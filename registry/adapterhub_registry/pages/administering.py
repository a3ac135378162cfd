"""The pages of an administrator: users and tokens, space, the log of refusals, yank and delete.

They do what the API does for the same caller. What counts the whole registry runs once at a time.
"""

from __future__ import annotations

import threading
from typing import Final

from sqlalchemy import func, select

from adapterhub.core.errors import AdapterHubError, UsageProblem
from adapterhub.pages.page import Elsewhere, PageQuery
from adapterhub.pages.values import HandledPage, NamespaceLine, RefusalsPage, SpacePage, UsersPage, VersionLine
from adapterhub_registry.access.telemetry import KEPT, refusal_records
from adapterhub_registry.access.tokens import ROLES, Caller
from adapterhub_registry.database.db import blobs
from adapterhub_registry.errors import HttpRefusal, busy, forbidden, unauthorized
from adapterhub_registry.names import known_repo_id
from adapterhub_registry.pages.files import url_of
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos import adapters, quotas
from adapterhub_registry.upkeep import free_space

_LOG_LINES: Final = 100
_NAMESPACES: Final = 50
_REASON_CHARACTERS: Final = 400
_counting: Final = threading.Lock()


def check_admin(caller: Caller) -> str:
    """The administrator as the logs name it.

    Raises:
        HttpRefusal: 401 without a sign-in, 403 for anyone else.
    """
    if caller.user is None:
        raise unauthorized()
    if not caller.is_admin:
        raise forbidden("this needs the token of an administrator: role `admin`, namespaces `*`")
    return caller.actor


# ---------------------------------------------------------------- users and tokens
def users_page(here: Visit, *, made: str | None = None, problem: str = "") -> UsersPage:
    """Users and tokens, newest first, and the end of their log."""
    registry, caller = here.registry, here.caller
    check_admin(caller)
    tokens = registry.tokens
    return UsersPage(
        users=tuple(tokens.users()),
        tokens=tuple(reversed(tokens.records())),
        log=tuple(tokens.log()[-_LOG_LINES:][::-1]),
        roles=ROLES,
        made=made,
        problem=problem,
    )


def change_tokens(here: Visit, asked: PageQuery) -> UsersPage | Elsewhere:
    """Create a token, which the page shows once, or revoke one or all of a user."""
    registry, caller = here.registry, here.caller
    tokens, form = registry.tokens.by(check_admin(caller)), asked.form
    try:
        match form.get("do"):
            case "create":
                globs = [part.strip() for part in form.get("namespaces", "").split(",") if part.strip()]
                made = tokens.create(
                    form.get("user", ""),
                    form.get("role", ""),
                    namespaces=globs,
                    label=form.get("label", "")[:200],
                    days=_number(form["days"], "days") if form.get("days") else None,
                )
                return users_page(here, made=made)
            case "revoke":
                tokens.revoke(_number(form.get("number", ""), "number"))
            case "revoke-user":
                if form.get("confirmed", "").strip() != form.get("user"):
                    return users_page(here, problem="the name differs; no token was revoked")
                tokens.revoke_user(form.get("user", ""))
    except AdapterHubError as error:
        return users_page(here, problem=error.message)
    return Elsewhere(url="/admin")


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageProblem(f"{what}: expected a whole number")
    return int(text)


# ---------------------------------------------------------------- space
def space_page(here: Visit, *, preview: bool) -> SpacePage:
    """Quotas, the largest namespaces, and with `preview` what a collection would remove now.

    Raises:
        HttpRefusal: 503 while another page counts.
    """
    registry, caller = here.registry, here.caller
    check_admin(caller)
    if not _counting.acquire(blocking=False):
        raise busy("another page counts the space; try again")
    try:
        with registry.db.read() as connection:
            held = quotas.by_namespace(connection)
            number, size = connection.execute(select(func.count(), func.coalesce(func.sum(blobs.c.size), 0))).one()
        free = free_space(registry, dry_run=True) if preview else None
    finally:
        _counting.release()
    limits = registry.settings.limits
    return SpacePage(
        namespaces=tuple(NamespaceLine(namespace=n, repos=r, bytes=b) for n, r, b in held[:_NAMESPACES]),
        more_namespaces=max(len(held) - _NAMESPACES, 0),
        blobs=number,
        blob_bytes=int(size),
        namespace_bytes=limits.namespace_bytes or None,
        namespace_repos=limits.namespace_repos or None,
        token_bytes_a_day=limits.token_upload_bytes_per_day or None,
        preview=free,
    )


# ---------------------------------------------------------------- refusals
def refusals_page(here: Visit, user: str) -> RefusalsPage:
    """The newest refused changes."""
    registry, caller = here.registry, here.caller
    check_admin(caller)
    return RefusalsPage(refusals=tuple(refusal_records(registry.db, user=user)), user=user, kept=KEPT)


# ---------------------------------------------------------------- yank and delete
def handled_page(here: Visit, repo: str, *, problem: str = "") -> HandledPage:
    """The versions of one repository; the empty form without one, or for a name that no repository has."""
    registry, caller = here.registry, here.caller
    check_admin(caller)
    if not repo:
        return HandledPage(repo="", problem=problem)
    try:
        with registry.db.read() as connection:
            row = registry.repos.find(connection, caller, known_repo_id(*_split(repo)))
            found = adapters.versions_of(connection, row.id)
    except HttpRefusal as refusal:
        return HandledPage(repo="", problem=problem or refusal.message)
    versions = tuple(
        VersionLine(
            version=one.released_as,
            url=url_of(row.full_name, "tree", one.commit_id),
            commit=one.commit_id,
            digest=one.digest,
            released_at=one.released_at,
            yanked_at=one.yanked_at,
            yanked_by=one.yanked_by,
            yanked_reason=one.yanked_reason,
        )
        for one in found
    )
    return HandledPage(repo=row.full_name, versions=versions, problem=problem)


def withdraw(here: Visit, asked: PageQuery) -> HandledPage | Elsewhere:
    """Yank a version, take a yank back, or delete the repository whose name was typed again."""
    registry, caller = here.registry, here.caller
    check_admin(caller)
    repo, form = asked.query.get("repo", ""), asked.form
    what, version, reason = form.get("do"), form.get("version", ""), form.get("reason", "").strip()
    if what == "yank" and not 0 < len(reason) <= _REASON_CHARACTERS:
        return handled_page(here, repo, problem=f"why? expected 1 to {_REASON_CHARACTERS} characters")
    if what == "delete" and form.get("confirmed", "").strip() != repo:
        return handled_page(here, repo, problem="the name differs; nothing was deleted")
    try:
        repo_id = known_repo_id(*_split(repo))
        with registry.db.begin() as connection:
            if what == "delete":
                registry.repos.delete(connection, caller, repo_id)
                return Elsewhere(url="/")
            row = registry.repos.find_writable(connection, caller, repo_id)
            if what == "yank":
                adapters.yank(connection, row, version, reason=reason, by=str(caller.user))
            elif what == "unyank":
                adapters.unyank(connection, row, version)
    except HttpRefusal as refusal:
        return handled_page(here, repo, problem=refusal.message)
    return Elsewhere(url=asked.url)


def _split(repo: str) -> tuple[str, str]:
    namespace, _, name = repo.partition("/")
    return namespace, name
