"""Members and teams of namespaces: who belongs to one, who is invited, and what ends when a person is removed.

A person has the role of the namespace in all its repositories, and that of each team in the team's. A token that the
person made follows at its next request. The namespace `*` is the whole registry.

A group of an issuer of identities gives memberships of its own (`set_from`), beside those that someone added here.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, Table, delete, func, insert, literal, or_, select, tuple_, update
from sqlalchemy.engine import Connection

from adapterhub.core.dates import Moment, moment_or_none
from adapterhub.core.errors import Conflict, NotAllowed, NotFound, UsageProblem, shown
from adapterhub.formats.administration import Invitation, Member, NewInvitation, RemovedMember, Team
from adapterhub_registry.access import trusted
from adapterhub_registry.access.audit import MACHINE, By, log_change
from adapterhub_registry.access.callers import SCOPES, Caller
from adapterhub_registry.access.tokens import DAY_MS, USER, Wanted, insert_token, new_token, revoke_where, user_id_of
from adapterhub_registry.database.db import (
    Database,
    access_requests,
    inserted_id,
    lock_name,
    now_ms,
    publishers,
    repos,
    test_keys,
    tokens,
    users,
    webhooks,
)
from adapterhub_registry.database.people import invitations, members, teams
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.names import parse_repo_id

ALL: Final = "*"
MOST_TEAMS: Final = 200
MOST_PATTERNS: Final = 50
INVITED_DAYS: Final = 7
MOST_INVITED_DAYS: Final = 90
TOKEN_DAYS: Final = 365
"""How long the first token of a person works who came by an invitation."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_PATTERN: Final = re.compile(r"[A-Za-z0-9_.*?-]{1,96}")


def _removed(user: str) -> NotAllowed:
    return NotAllowed(
        f"the user `{user}` was removed from this registry; nothing was changed",
        hint=f"`adapt registry accounts --readmit {user}` lets the user in again",
    )


def _listed(namespace: str, what: str = "members") -> str:
    return f"`adapt registry members {namespace} --list {what}` lists them"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A membership that is wanted: in a team, which has a role, or with a role in the namespace itself."""

    namespace: str
    team: str = ""
    role: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """An accepted invitation: the user, the namespace, and the first token of a new user."""

    user: str
    namespace: str
    token: str | None


class Members:
    """The members of one registry. Each change is logged with its `actor`."""

    def __init__(self, database: Database, *, actor: By = MACHINE) -> None:
        self._db = database
        self._actor = actor

    def by(self, actor: By) -> Members:
        """Return the same members, changed by someone else."""
        return Members(self._db, actor=actor)

    # ------------------------------------------------------------ members
    def records(self, namespace: str, *, after: str = "", limit: int | None = None) -> list[Member]:
        """Return the members of a namespace and of its teams, by team; `after` the `place_of` one."""
        team, _, rest = after.partition("/")
        name, _, source = rest.partition("/")
        place = (members.c.team, members.c.user_id, members.c.source)
        with self._db.read() as connection:
            number = connection.scalar(select(users.c.id).where(users.c.name == name)) or 0
            beyond = tuple_(*place) > tuple_(literal(team), literal(number), literal(source))
            found = _MEMBERS.where(members.c.namespace == namespace, beyond).order_by(*place).limit(limit)
            return [_member(row) for row in connection.execute(found).all()]

    @staticmethod
    def place_of(member: Member) -> str:
        """Return the place of a member in the order of `records`."""
        return f"{member.team}/{member.user}/{member.source}"

    def of(self, user: str) -> list[Member]:
        """Return the memberships of a person."""
        with self._db.read() as connection:
            order = (members.c.namespace, members.c.team, members.c.source)
            return [_member(row) for row in connection.execute(_MEMBERS.where(users.c.name == user).order_by(*order))]

    def add(
        self, namespace: str, user: str, *, role: str | None = None, team: str = "", days: float | None = None
    ) -> Member:
        """Make a user a member with a role, or put the user into a team; one who is gets the new role and end.

        Raises:
            UsageProblem: an invalid role, or both or neither of a role and a team.
            NotFound: no such user or team.
        """
        held = _checked(Held(namespace=namespace, team=team, role=role))
        until = None if days is None else now_ms() + int(days * DAY_MS)
        with self._db.begin() as connection:
            _lock(connection, user)
            known = connection.execute(select(users).where(users.c.name == user)).one_or_none()
            if known is None or known.removed_at is not None:
                hint = f"invite the person: `adapt registry members '{namespace}' --invite`"
                raise NotFound(f"this registry has no user `{shown(user)}`; nothing was changed", hint=hint)
            _check_team(connection, held)
            return self._put(connection, user, held, until=until)

    def _put(
        self, connection: Connection, user: str, held: Held, *, until: int | None = None, source: str = ""
    ) -> Member:
        row = {
            "namespace": held.namespace,
            "team": held.team,
            "user_id": user_id_of(connection, user),
            "source": source,
        }
        same = [members.c[name] == value for name, value in row.items()]
        connection.execute(delete(members).where(*same))
        about = {"role": held.role, "created_at": now_ms(), "created_by": self._actor.text, "expires_at": until}
        connection.execute(insert(members).values(row | about))
        record = _member(connection.execute(_MEMBERS.where(*same)).one())
        ends = "" if record.expires_at is None else f" until {record.expires_at.text}"
        told = f"{user}: {record.role} in {_place(held)}{ends}"
        log_change(connection, self._actor, "member", told, repo=_logged(held.namespace))
        return record

    def set_from(self, user: str, source: str, wanted: Sequence[Held]) -> list[Member]:
        """Let `source`, such as an issuer of identities, give a user exactly these memberships; others stay.

        The user is added when new. A membership in a team that does not exist is left out.

        Raises:
            UsageProblem: an invalid name or role.
            NotAllowed: the user was removed from the registry.
        """
        if not (0 < len(source) <= 40 and USER.fullmatch(user)):
            raise UsageProblem(f"memberships of `{shown(user)}` from `{shown(source)}`: expected a user and a source")
        checked = [_checked(held) for held in wanted]
        with self._db.begin() as connection:
            _lock(connection, user)
            user_id = user_id_of(connection, user)
            if connection.scalar(select(users.c.removed_at).where(users.c.id == user_id)) is not None:
                raise _removed(user)
            known = [held for held in checked if not held.team or _team(connection, held) is not None]
            mine = (members.c.user_id == user_id) & (members.c.source == source)
            before = {
                (row.namespace, row.team): row.role for row in connection.execute(select(members).where(mine)).all()
            }
            now = {(held.namespace, held.team): held.role for held in known}
            for namespace, team in before.keys() - now.keys():
                gone = mine & (members.c.namespace == namespace) & (members.c.team == team)
                connection.execute(delete(members).where(gone))
                place = _place(Held(namespace=namespace, team=team))
                log_change(connection, self._actor, "member", f"{user}: no more in {place}", repo=_logged(namespace))
            for (namespace, team), role in now.items():
                if before.get((namespace, team), "") != role:
                    held = Held(namespace=namespace, team=team, role=role)
                    self._put(connection, user, held, source=source)
            return [_member(row) for row in connection.execute(_MEMBERS.where(mine)).all()]

    def leave_team(self, namespace: str, user: str, team: str) -> Member:
        """Take a user out of a team.

        Raises:
            NotFound: the user is not in it.
        """
        mine = (members.c.namespace == namespace) & (members.c.team == team) & (users.c.name == user)
        with self._db.begin() as connection:
            _lock(connection, user)
            rows = connection.execute(_MEMBERS.where(mine)).all()
            if not team or not rows:
                raise NotFound(
                    f"`{shown(user)}` is not in the team `{shown(team)}` of `{namespace}`", hint=_listed(namespace)
                )
            record = _member(rows[0])
            whose = members.c.user_id == rows[0].user_id
            connection.execute(delete(members).where(members.c.namespace == namespace, members.c.team == team, whose))
            told = f"{user}: no more in {namespace}, team {team}"
            log_change(connection, self._actor, "member", told, repo=_logged(namespace))
        return record

    # ------------------------------------------------------------ teams
    def teams(self, namespace: str) -> list[Team]:
        """Return the teams of a namespace, by name."""
        with self._db.read() as connection:
            return [_team_of(row) for row in connection.execute(_TEAMS.where(teams.c.namespace == namespace)).all()]

    def put_team(self, namespace: str, name: str, role: str, repos: Sequence[str] = ()) -> Team:
        """Create a team, or change its role and the names of its repositories; without names, it has all.

        Raises:
            UsageProblem: an invalid name, role or pattern, or too many.
        """
        patterns = list(dict.fromkeys(repos)) or ["*"]
        _checked(Held(namespace=namespace, role=role))
        if namespace == ALL or not _NAME.fullmatch(name):
            raise UsageProblem(f"team `{shown(name)}`: expected 1 to 96 letters, digits, `.`, `_`, `-` in a namespace")
        wrong = [pattern for pattern in patterns if not _PATTERN.fullmatch(pattern)]
        if wrong or len(patterns) > MOST_PATTERNS:
            got = f"got `{shown(wrong[0])}`" if wrong else f"at most {MOST_PATTERNS}"
            raise UsageProblem(f"repositories: expected names or patterns such as `legal-*`, {got}")
        with self._db.begin() as connection:
            lock_name(connection, f"teams of {namespace}")
            mine = (teams.c.namespace == namespace) & (teams.c.name == name)
            others = select(func.count()).select_from(teams).where(teams.c.namespace == namespace, teams.c.name != name)
            if (connection.scalar(others) or 0) >= MOST_TEAMS:
                raise UsageProblem(
                    f"`{namespace}` has {MOST_TEAMS} teams already, expected at most that; nothing was changed",
                    hint="remove one: `--team TEAM --role none`",
                )
            row = {"role": role, "repos": ",".join(patterns)}
            if not connection.execute(update(teams).where(mine).values(row)).rowcount:
                made = {"namespace": namespace, "name": name, "created_at": now_ms(), "created_by": self._actor.text}
                connection.execute(insert(teams).values(made | row))
            told = f"team {name}: {role} in {', '.join(patterns)}"
            log_change(connection, self._actor, "team", told, repo=namespace)
            return _team_of(connection.execute(_TEAMS.where(mine)).one())

    def remove_team(self, namespace: str, name: str) -> Team:
        """Remove a team; its members stay in the namespace with their own roles.

        Raises:
            NotFound: no such team.
        """
        mine = (teams.c.namespace == namespace) & (teams.c.name == name)
        with self._db.begin() as connection:
            lock_name(connection, f"teams of {namespace}")
            row = connection.execute(_TEAMS.where(mine)).one_or_none()
            if row is None:
                raise NotFound(f"`{namespace}` has no team `{shown(name)}`", hint=_listed(namespace, "teams"))
            connection.execute(delete(members).where(members.c.namespace == namespace, members.c.team == name))
            connection.execute(
                delete(invitations).where(invitations.c.namespace == namespace, invitations.c.team == name, _OPEN)
            )
            connection.execute(delete(teams).where(mine))
            log_change(connection, self._actor, "team", f"no more team {name}", repo=namespace)
        return _team_of(row)

    # ------------------------------------------------------------ invitations
    def invitations(self, namespace: str, *, limit: int | None = None) -> list[Invitation]:
        """Return the invitations to a namespace, newest first."""
        mine = _INVITED.where(invitations.c.namespace == namespace).order_by(invitations.c.id.desc()).limit(limit)
        with self._db.read() as connection:
            return [_invitation(row) for row in connection.execute(mine).all()]

    def invite(
        self,
        namespace: str,
        *,
        role: str | None = None,
        team: str = "",
        user: str | None = None,
        days: float = INVITED_DAYS,
        member_days: float | None = None,
    ) -> NewInvitation:
        """Make a code, shown this once, with which one person becomes a member within some days; no mail is sent.

        Raises:
            UsageProblem: an invalid role, name or number of days.
            NotFound: no such team.
        """
        held = _checked(Held(namespace=namespace, team=team, role=role))
        if user is not None and not USER.fullmatch(user):
            raise UsageProblem(f"user `{shown(user)}`: expected 1 to 96 letters, digits, `.`, `_`, `-`")
        if not 0 < days <= MOST_INVITED_DAYS:
            raise UsageProblem(f"days {days}: expected more than 0 and at most {MOST_INVITED_DAYS}")
        code, now = f"inv_{secrets.token_urlsafe(24)}", now_ms()
        row = {
            "sha256": _digest(code),
            "namespace": namespace,
            "team": team,
            "role": role,
            "user_name": user,
            "member_until": None if member_days is None else now + int(member_days * DAY_MS),
            "created_at": now,
            "created_by": self._actor.text,
            "expires_at": now + int(days * DAY_MS),
        }
        with self._db.begin() as connection:
            _check_team(connection, held)
            number = inserted_id(connection.execute(insert(invitations).values(row)))
            record = _invitation(connection.execute(_INVITED.where(invitations.c.id == number)).one())
            told = f"invitation {number}: {user or 'anyone'} as {record.role} in {_place(held)}"
            log_change(connection, self._actor, "invite", told, repo=_logged(namespace))
        return NewInvitation(invitation=record, code=code)

    def withdraw(self, namespace: str, number: int) -> Invitation:
        """Let an invitation end that no one accepted.

        Raises:
            NotFound: the namespace has no such invitation.
        """
        mine = (invitations.c.namespace == namespace) & (invitations.c.id == number)
        with self._db.begin() as connection:
            row = connection.execute(_INVITED.where(mine, _OPEN)).one_or_none()
            if row is None:
                raise NotFound(f"`{namespace}` has no open invitation {number}", hint=_listed(namespace, "invitations"))
            connection.execute(delete(invitations).where(mine))
            log_change(connection, self._actor, "invite", f"no more invitation {number}", repo=_logged(namespace))
        return _invitation(row)

    def invited(self, code: str) -> Invitation | None:
        """Return the open invitation of a code."""
        with self._db.read() as connection:
            row = connection.execute(_INVITED.where(invitations.c.sha256 == _digest(code), _OPEN)).one_or_none()
        return None if row is None or row.expires_at <= now_ms() else _invitation(row)

    def accept(self, code: str, caller: Caller, *, name: str | None = None) -> Accepted:
        """Make the caller a member, or a new user `name`, who gets a first token.

        Raises:
            NotFound: no such invitation, or it was used, withdrawn or has expired.
            NotAllowed: it is for someone else.
            UsageProblem: an invalid name.
            Conflict: the name is that of a user.
        """
        user = caller.user if caller.user is not None else name
        if user is None or not USER.fullmatch(user):
            raise UsageProblem(f"user `{shown(str(user))}`: expected 1 to 96 letters, digits, `.`, `_`, `-`")
        with self._db.begin() as connection:
            _lock(connection, user)
            mine = invitations.c.sha256 == _digest(code)
            row = connection.execute(_INVITED.where(mine, _OPEN).with_for_update(of=invitations)).one_or_none()
            if row is None or row.expires_at <= now_ms():
                raise NotFound("no such invitation: it was used or withdrawn, or has expired", hint="ask for another")
            if row.user_name not in (None, user):
                raise NotAllowed(
                    "the invitation is for another user; nothing was changed",
                    hint="sign in as that user, or ask for a new invitation",
                )
            known = connection.execute(select(users).where(users.c.name == user)).one_or_none()
            if caller.user is None and known is not None:
                raise Conflict(f"`{user}` is a user already; sign in, and open the link again")
            if known is not None and known.removed_at is not None:  # since the request proved who it is
                raise _removed(user)
            connection.execute(
                update(invitations).where(invitations.c.id == row.id).values(used_at=now_ms(), used_by=user)
            )
            held = Held(namespace=row.namespace, team=row.team, role=row.own_role)
            guest = Members(self._db, actor=By(f"{user} (invitation {row.id} by {row.created_by})"[:200], user))
            guest._put(connection, user, held, until=row.member_until)
            if caller.user is not None:
                return Accepted(user=user, namespace=row.namespace, token=None)
            token, until = new_token(), now_ms() + TOKEN_DAYS * DAY_MS
            wanted = Wanted(user=user, globs=["*"], label="by invitation", scopes=SCOPES, own=True, until=until)
            number = insert_token(connection, token, wanted)
            log_change(connection, guest._actor, "create", f"token {number} of {user}: {', '.join(SCOPES)} in *")
            return Accepted(user=user, namespace=row.namespace, token=token)

    # ------------------------------------------------------------ removal
    def remove(self, namespace: str, user: str) -> RemovedMember:
        """End all that a person has in a namespace, or with `*` in the registry, in one transaction.

        That is memberships, tokens and so sessions, keys, trusted publishers that the person added, webhooks, accepted
        requests for access, and open invitations. The person's pushes stay.

        Raises:
            NotFound: the registry has no such user, or the namespace no such member.
            NotAllowed: it is the caller, who would be removed from the registry.
        """
        everywhere = namespace == ALL
        if everywhere and user == self._actor.user:
            raise NotAllowed(
                "you would remove yourself; another administrator can", hint="let another administrator remove you"
            )
        with self._db.begin() as connection:
            _lock(connection, user)
            known = connection.execute(select(users).where(users.c.name == user)).one_or_none()
            if known is None or (everywhere and known.removed_at is not None):
                raise NotFound(f"this registry has no user `{shown(user)}`", hint="`adapt registry token list --users`")
            lost = members.c.user_id == known.id
            lost = lost if everywhere else lost & (members.c.namespace == namespace)
            count = connection.execute(delete(members).where(lost)).rowcount
            touched, left = self._end_tokens(connection, known.id, namespace)
            keys = (test_keys.c.owner == user) & _within(test_keys.c.namespace, namespace)
            names = connection.scalars(select(test_keys.c.name).where(keys).order_by(test_keys.c.name)).all()
            connection.execute(delete(test_keys).where(keys))
            added = publishers.c.created_by.startswith(f"{user} (token ", autoescape=True)
            theirs = select(publishers).where(added, _within(publishers.c.repo, namespace)).order_by(publishers.c.id)
            ended = [trusted.end(connection, row, self._actor) for row in connection.execute(theirs).all()]
            hooks = (webhooks.c.owner == user) & _within(webhooks.c.scope, namespace)
            silenced = connection.execute(delete(webhooks).where(hooks)).rowcount
            mine = select(repos.c.id).where(_within(repos.c.full_name, namespace))
            asked = (access_requests.c.user_name == user) & access_requests.c.repo_id.in_(mine)
            requests = connection.execute(delete(access_requests).where(asked)).rowcount
            sent = invitations.c.created_by.startswith(f"{user} (token ", autoescape=True)
            open_ones = _OPEN & or_(sent, invitations.c.user_name == user) & _within(invitations.c.namespace, namespace)
            withdrawn = connection.execute(delete(invitations).where(open_ones)).rowcount
            if not (everywhere or count or touched or names or ended or silenced or requests or withdrawn):
                raise NotFound(
                    f"`{shown(user)}` has nothing in `{namespace}`; nothing was changed", hint=_listed(namespace)
                )
            if everywhere:
                connection.execute(update(users).where(users.c.id == known.id).values(removed_at=now_ms()))
            log_change(connection, self._actor, "remove", f"{user} from {namespace}", repo=_logged(namespace))
        return RemovedMember(
            user=user,
            namespace=namespace,
            memberships=count,
            tokens=tuple(touched),
            keys=tuple(names),
            publishers=tuple(f"{one.repo}: {one.issuer}, {one.pins}" for one in ended),
            webhooks=silenced,
            requests=requests,
            left=tuple(left),
        )

    def _end_tokens(self, connection: Connection, user_id: int, namespace: str) -> tuple[list[int], list[int]]:
        """Revoke tokens, or take a namespace from them; return their numbers, and those that reach beyond it."""
        works = (tokens.c.user_id == user_id) & tokens.c.revoked_at.is_(None)
        rows = connection.execute(select(tokens).where(works).order_by(tokens.c.id)).all()
        over, touched, left = [], [], []
        for row in rows:
            column = "namespaces" if row.reach is None else "reach"
            globs = json.loads(getattr(row, column))
            kept = [] if namespace == ALL else [glob for glob in globs if glob.partition("/")[0] != namespace]
            if not kept:
                over.append(row.id)
            elif len(kept) < len(globs):
                connection.execute(update(tokens).where(tokens.c.id == row.id).values({column: json.dumps(kept)}))
                touched.append(row.id)
            if row.reach is None and any(fnmatchcase(namespace, glob.partition("/")[0]) for glob in kept):
                left.append(row.id)
        revoke_where(connection, tokens.c.id.in_(over), self._actor)
        return sorted([*over, *touched]), left


def _lock(connection: Connection, user: str) -> None:
    lock_name(connection, f"user {user}")


def _logged(namespace: str) -> str:
    return "" if namespace == ALL else namespace


def _within(column: Any, namespace: str) -> ColumnElement[bool]:
    """Return whether a column names a namespace, or something in it."""
    if namespace == ALL:
        return column.is_not(None)  # type: ignore[no-any-return]
    return or_(column == namespace, column.startswith(f"{namespace}/", autoescape=True))


def _place(held: Held) -> str:
    return f"{held.namespace}, team {held.team}" if held.team else held.namespace


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


def _checked(held: Held) -> Held:
    """Raise `UsageProblem` for a name that no namespace can have, and unless there is either a role or a team."""
    if held.namespace != ALL:
        try:
            parse_repo_id(held.namespace, "any")
        except HttpRefusal:
            raise UsageProblem(f"namespace `{shown(held.namespace)}`: expected a name such as `acme`") from None
    if bool(held.team) == (held.role is not None):
        raise UsageProblem("expected a role or a team, as a team has a role")
    if held.role is not None and held.role not in SCOPES:
        raise UsageProblem(f"role `{shown(held.role)}`: expected one of {', '.join(SCOPES)}")
    return held


def _check_team(connection: Connection, held: Held) -> None:
    if held.team and _team(connection, held) is None:
        raise NotFound(
            f"`{held.namespace}` has no team `{shown(held.team)}`; nothing was changed",
            hint=f"create it: `adapt registry members {held.namespace} --team NAME --role ROLE`",
        )


def _team(connection: Connection, held: Held) -> str | None:
    mine = (teams.c.namespace == held.namespace) & (teams.c.name == held.team)
    return connection.scalar(select(teams.c.name).where(mine))


def _with_role(table: Table) -> Any:
    same = (teams.c.namespace == table.c.namespace) & (teams.c.name == table.c.team)
    return table.outerjoin(teams, same)


_MEMBERS: Final[Select[Any]] = select(
    members.c.user_id,
    users.c.name.label("user"),
    members.c.namespace,
    members.c.team,
    members.c.source,
    members.c.created_at,
    members.c.created_by,
    members.c.expires_at,
    func.coalesce(teams.c.role, members.c.role).label("role"),
).select_from(_with_role(members).join(users, users.c.id == members.c.user_id))
_COUNTED: Final = (
    select(func.count(func.distinct(members.c.user_id)))
    .where(members.c.namespace == teams.c.namespace, members.c.team == teams.c.name)
    .scalar_subquery()
)
_TEAMS: Final[Select[Any]] = select(teams, _COUNTED.label("members")).order_by(teams.c.name)
_OPEN: Final = invitations.c.used_at.is_(None)
_INVITED: Final[Select[Any]] = select(
    invitations,
    invitations.c.role.label("own_role"),
    func.coalesce(teams.c.role, invitations.c.role).label("given"),
).select_from(_with_role(invitations))


def _member(row: Row[Any]) -> Member:
    return Member(
        user=row.user,
        namespace=row.namespace,
        team=row.team,
        role=row.role,
        source=row.source,
        created_at=Moment(row.created_at),
        created_by=row.created_by,
        expires_at=moment_or_none(row.expires_at),
    )


def _team_of(row: Row[Any]) -> Team:
    return Team(
        namespace=row.namespace,
        name=row.name,
        role=row.role,
        repos=tuple(row.repos.split(",")),
        members=row.members,
        created_at=Moment(row.created_at),
        created_by=row.created_by,
    )


def _invitation(row: Row[Any]) -> Invitation:
    return Invitation(
        id=row.id,
        namespace=row.namespace,
        team=row.team,
        role=row.given,
        user=row.user_name,
        created_at=Moment(row.created_at),
        created_by=row.created_by,
        expires_at=Moment(row.expires_at),
        used_at=moment_or_none(row.used_at),
        used_by=row.used_by,
    )
