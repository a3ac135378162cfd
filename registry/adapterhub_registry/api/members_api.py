"""The routes of people: members, teams and invitations of a namespace, and the search and the export of the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Final, Literal

from fastapi import Path, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, StringConstraints

from adapterhub.core.dates import Moment
from adapterhub.core.digests import canonical_json
from adapterhub.formats.administration import Invitation, LogEntry, Member, NewInvitation, RemovedMember, Team
from adapterhub_registry.access import audit
from adapterhub_registry.access.audit import LogSearch
from adapterhub_registry.access.callers import Caller, Scope
from adapterhub_registry.access.members import ALL, INVITED_DAYS, MOST_INVITED_DAYS, Members
from adapterhub_registry.access.tokens import MAX_DAYS
from adapterhub_registry.api.adapt_models import (
    FORBIDDEN,
    MISSING,
    TOO_LARGE,
    USER_NAME,
    ApiAnswer,
    ApiQuestion,
    ItemNumber,
    Text,
    adapt_router,
    problems,
)
from adapterhub_registry.api.bodies import sent_by
from adapterhub_registry.api.context import (
    BaseUrl,
    CallerOf,
    Registry,
    RegistryOf,
    administrator_of,
    caller_of,
    check_rate,
    opened_cursor,
    sealed_cursor,
    user_of,
)
from adapterhub_registry.errors import bad_request, forbidden
from adapterhub_registry.names import PART

ACCEPTS_A_MINUTE: Final = 10
"""Codes that one address may try."""
_SPACE: Final = rf"^(\*|{PART.pattern})$"
_SMALL_BODY: Final = 4 << 10
_CHANGING: Final = {**FORBIDDEN, **TOO_LARGE, **MISSING}

Space = Annotated[str, Path(pattern=_SPACE)]
"""A namespace; `*` is the whole registry."""
UserName = Annotated[str, StringConstraints(pattern=USER_NAME)]
TeamName = Annotated[str, StringConstraints(pattern=rf"^({PART.pattern})?$")]
Days = Annotated[float, Field(gt=0, le=MAX_DAYS)]

router = adapt_router()


class MemberRequest(ApiQuestion):
    """A user who becomes a member with a role, or joins a team; `days` until the membership ends."""

    user: UserName
    role: Scope | None = None
    team: TeamName = ""
    days: Days | None = None


class TeamRequest(ApiQuestion):
    """A team that is created or changed. `repos` has names and patterns in the namespace; empty for all."""

    name: UserName
    role: Scope
    repos: Annotated[tuple[Annotated[str, StringConstraints(max_length=96)], ...], Field(max_length=50)] = ()


class InvitationRequest(ApiQuestion):
    """An invitation to become a member with a role, or to join a team.

    `user`: the only one who may accept it. `days`: how long one may. `member_days`: how long the membership lasts.
    """

    role: Scope | None = None
    team: TeamName = ""
    user: UserName | None = None
    days: Annotated[float, Field(gt=0, le=MOST_INVITED_DAYS)] = INVITED_DAYS
    member_days: Days | None = None


class AcceptRequest(ApiQuestion):
    """The code of an invitation. Without a token, `user` is the name of the new user."""

    code: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    user: UserName | None = None


class MemberList(ApiAnswer):
    """Members by team. `next_after` leads to the next page."""

    members: list[Member]
    next_after: str | None = None


class TeamList(ApiAnswer):
    """The teams of a namespace, by name."""

    teams: list[Team]


class InvitationList(ApiAnswer):
    """Invitations, newest first."""

    invitations: list[Invitation]


class AcceptedAnswer(ApiAnswer):
    """The user who accepted the invitation; `token` is the first token of a new user, shown only here."""

    user: str
    namespace: str
    token: str | None


class MemberPage(BaseModel):
    """A page of members, `after` what `next_after` has."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    after: Annotated[str, Field(max_length=300, pattern=r"^[ -~]*$")] = ""


class LogQuery(BaseModel):
    """What entries of the log meet: who, what, in which repository or namespace, from which address, and when."""

    user: Text | None = None
    action: Text | None = None
    repo: Text | None = None
    address: Text | None = None
    since: Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})] | None = None
    until: Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})] | None = None
    after: Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_=-]*$")] = ""

    def search(self) -> LogSearch:
        """Return the search; raises 400 for a malformed time."""
        try:
            since, until = (None if text is None else Moment.parse(text) for text in (self.since, self.until))
        except ValueError as error:
            raise bad_request(f"since, until: {error}; write a time as in 2026-01-31T12:00:00Z") from None
        return LogSearch(
            user=self.user,
            action=self.action,
            namespace=self.repo if self.repo and "/" not in self.repo else None,
            repo=self.repo if self.repo and "/" in self.repo else None,
            address=self.address,
            since=since,
            until=until,
        )


class LogPageQuery(LogQuery):
    """A page of the entries that meet a search; `newest` begins with the newest, and `after` is then the one before."""

    order: Literal["oldest", "newest"] = "oldest"
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class Log(ApiAnswer):
    """Entries of the log of changes. `next_after` leads to the next page.

    For the administrators of a namespace, entries have no number and no seal: these count what happens elsewhere.
    """

    entries: list[LogEntry]
    next_after: int | str | None = None


def manager_of(registry: Registry, caller: Caller, namespace: str) -> Members:
    """Return the members, changed by a caller who administers a namespace; raises 401 or 403 for anyone else."""
    if namespace == ALL:
        return registry.members.by(administrator_of(caller))
    user_of(caller)
    if not caller.administers(namespace):
        raise forbidden(f"this needs the right to administer all of `{namespace}`")
    return registry.members.by(caller.by)


async def _manager(request: Request, registry: Registry) -> None:
    """Require a caller who administers the namespace in the path."""
    manager_of(registry, await caller_of(request, registry), request.path_params["space"])


# ---------------------------------------------------------------- members
@router.get("/namespaces/{space}/members", responses=FORBIDDEN)
def list_members(
    registry: RegistryOf, caller: CallerOf, space: Space, query: Annotated[MemberPage, Query()]
) -> MemberList:
    """Return the members of a namespace and of its teams, for its administrators."""
    found = manager_of(registry, caller, space).records(space, after=query.after, limit=query.limit + 1)
    page = found[: query.limit]
    return MemberList(members=page, next_after=Members.place_of(page[-1]) if len(found) > len(page) else None)


@router.post("/namespaces/{space}/members", status_code=201, responses=_CHANGING)
@sent_by(_manager)
def add_member(registry: RegistryOf, caller: CallerOf, space: Space, wanted: MemberRequest) -> Member:
    """Make a user a member, or change the role of one."""
    members = manager_of(registry, caller, space)
    return members.add(space, wanted.user, role=wanted.role, team=wanted.team, days=wanted.days)


@router.delete("/namespaces/{space}/members/{member}", responses=_CHANGING)
def remove_member(
    registry: RegistryOf, caller: CallerOf, space: Space, member: Annotated[str, Path(pattern=USER_NAME)]
) -> RemovedMember:
    """End all that a person has in a namespace; with `*` in the registry, where the person's repositories stay."""
    return manager_of(registry, caller, space).remove(space, member)


@router.delete("/namespaces/{space}/teams/{team}/members/{member}", responses=_CHANGING)
def leave_team(
    registry: RegistryOf,
    caller: CallerOf,
    space: Space,
    team: Annotated[str, Path(pattern=USER_NAME)],
    member: Annotated[str, Path(pattern=USER_NAME)],
) -> Member:
    """Take a user out of a team."""
    return manager_of(registry, caller, space).leave_team(space, member, team)


# ---------------------------------------------------------------- teams
@router.get("/namespaces/{space}/teams", responses=FORBIDDEN)
def list_teams(registry: RegistryOf, caller: CallerOf, space: Space) -> TeamList:
    """Return the teams of a namespace, for its administrators."""
    return TeamList(teams=manager_of(registry, caller, space).teams(space))


@router.post("/namespaces/{space}/teams", status_code=201, responses=_CHANGING)
@sent_by(_manager)
def put_team(registry: RegistryOf, caller: CallerOf, space: Space, wanted: TeamRequest) -> Team:
    """Create a team, or change its role and repositories."""
    return manager_of(registry, caller, space).put_team(space, wanted.name, wanted.role, wanted.repos)


@router.delete("/namespaces/{space}/teams/{team}", responses=_CHANGING)
def remove_team(
    registry: RegistryOf, caller: CallerOf, space: Space, team: Annotated[str, Path(pattern=USER_NAME)]
) -> Team:
    """Remove a team; its members stay in the namespace."""
    return manager_of(registry, caller, space).remove_team(space, team)


# ---------------------------------------------------------------- invitations
@router.get("/namespaces/{space}/invitations", responses=FORBIDDEN)
def list_invitations(registry: RegistryOf, caller: CallerOf, space: Space) -> InvitationList:
    """Return the newest invitations to a namespace, for its administrators."""
    return InvitationList(invitations=manager_of(registry, caller, space).invitations(space, limit=1000))


@router.post("/namespaces/{space}/invitations", status_code=201, responses=_CHANGING)
@sent_by(_manager)
def invite(
    registry: RegistryOf, caller: CallerOf, base: BaseUrl, space: Space, wanted: InvitationRequest
) -> NewInvitation:
    """Make a link with which one person becomes a member; only this response shows it, and no mail is sent."""
    made = manager_of(registry, caller, space).invite(
        space,
        role=wanted.role,
        team=wanted.team,
        user=wanted.user,
        days=wanted.days,
        member_days=wanted.member_days,
    )
    return NewInvitation(invitation=made.invitation, code=made.code, link=f"{base}/join?code={made.code}")


@router.delete("/namespaces/{space}/invitations/{number}", responses=_CHANGING)
def withdraw(registry: RegistryOf, caller: CallerOf, space: Space, number: ItemNumber) -> Invitation:
    """Let an invitation end that no one has accepted."""
    return manager_of(registry, caller, space).withdraw(space, number)


async def _guest(request: Request, registry: Registry) -> int:
    """Anyone, for a small body: a person without a token has only the code."""
    await caller_of(request, registry)
    check_accepts(request, registry)
    return _SMALL_BODY


def check_accepts(request: Request, registry: Registry) -> None:
    """Raise 429 when an address tries too many codes."""
    check_rate(registry, "invitation", request.scope["adapterhub.record"].address, ACCEPTS_A_MINUTE)


@router.post(
    "/invitations/accept", responses={**_CHANGING, **problems({409: "The name is that of a user", 429: "Too many"})}
)
@sent_by(_guest)
def accept(registry: RegistryOf, caller: CallerOf, wanted: AcceptRequest) -> AcceptedAnswer:
    """Become a member; without a token, as a new user, who gets a first token."""
    done = registry.members.accept(wanted.code, caller, name=wanted.user)
    return AcceptedAnswer(user=done.user, namespace=done.namespace, token=done.token)


# ---------------------------------------------------------------- the log of changes
def search_of(caller: Caller, query: LogQuery) -> LogSearch:
    """Return the search of a caller: an administrator of a namespace searches that one only; raises 401 or 403."""
    user_of(caller)
    wanted = query.search()
    if not caller.is_admin:
        namespace = (query.repo or "").partition("/")[0]
        if not namespace or not caller.owns(namespace, "administer"):
            raise forbidden("this needs the token of an administrator, or `repo` with a namespace that you administer")
    return wanted


def place_in(registry: Registry, caller: Caller, text: str) -> int:
    """Return the number of an entry in a request.

    Raises 404 for one that a namespace's administrator did not get here.
    """
    if not text or (caller.is_admin and text.isdigit() and len(text) < 16):
        return int(text or 0)
    return int(opened_cursor(registry, text) or 0)


def place_of(registry: Registry, caller: Caller, entry: LogEntry) -> int | str:
    """Return the number of an entry, sealed for the administrator of a namespace."""
    return entry.number if caller.is_admin else str(sealed_cursor(registry, str(entry.number)))


def told(caller: Caller, entries: Sequence[LogEntry]) -> list[LogEntry]:
    """Return the entries as a caller may see them."""
    return [one if caller.is_admin else replace(one, number=0, seal="") for one in entries]


@router.get("/log", responses={**FORBIDDEN, **MISSING})
def log(registry: RegistryOf, caller: CallerOf, query: Annotated[LogPageQuery, Query()]) -> Log:
    """Return the audit log: of the registry for an administrator, of a namespace for its administrators."""
    wanted, newest = search_of(caller, query), query.order == "newest"
    at = place_in(registry, caller, query.after)
    with registry.db.read() as connection:
        found = audit.entries(connection, wanted, after=at, below=at if newest else None, limit=query.limit + 1)
    page = found[: query.limit]
    rest = place_of(registry, caller, page[-1]) if len(found) > len(page) else None
    return Log(entries=told(caller, page), next_after=rest)


@router.get("/log/export", response_class=StreamingResponse, responses={**FORBIDDEN, **MISSING})
def export(registry: RegistryOf, caller: CallerOf, query: Annotated[LogQuery, Query()]) -> StreamingResponse:
    """As `log`, all entries after a number as JSON lines, oldest first."""
    wanted, at = search_of(caller, query), place_in(registry, caller, query.after)
    pages = (told(caller, page) for page in audit.pages(registry.db, wanted, after=at))
    lines = (b"".join(canonical_json(one.to_json()) + b"\n" for one in page) for page in pages)
    return StreamingResponse(lines, media_type="application/x-ndjson")
