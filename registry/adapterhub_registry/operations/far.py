"""Administers a registry through its `/api/adapt/v1`: its tokens, users, webhooks, rules and names."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, ClassVar, Final, TypeVar, cast
from urllib.parse import quote, urlencode, urlsplit

from adapterhub.core.dates import Moment
from adapterhub.core.digests import Json, strict_json
from adapterhub.core.errors import (
    AdapterHubError,
    Conflict,
    NotAllowed,
    NotFound,
    RemoteUnreachable,
    UsageProblem,
    shown,
)
from adapterhub.core.hosts import is_loopback
from adapterhub.core.redaction import keep_secret
from adapterhub.formats.administration import (
    Account,
    Delivery,
    HeldName,
    Invitation,
    LogEntry,
    Member,
    NamespaceAbout,
    NamespaceRule,
    NewInvitation,
    NewWebhook,
    Publisher,
    RemovedMember,
    Team,
    TesterKey,
    Token,
    User,
    Webhook,
)

PAGE: Final = 1000
TIMEOUT_S: Final = 30
MOST_BYTES: Final = 64 << 20
LOOK_EVERY_S: Final = 0.3
TEST_WAIT_S: Final = 60.0

Record = TypeVar("Record")


class FarRegistry:
    """Sends requests to the registry at `url`.

    Every method raises `NotAllowed` when the server refuses the token and `RemoteUnreachable` when it does not answer.
    `needs` says in errors which token it takes.
    """

    needs: ClassVar[str] = "a token"
    hint_missing: ClassVar[str] = ""

    def __init__(self, url: str, token: str | None, *, is_here: bool = False) -> None:
        """Raise `UsageProblem` for anything but the URL of a server, and without a token. Sends nothing.

        With `is_here`, requests go to this machine, past any proxy that the environment names.
        """
        place = urlsplit(url)
        if place.scheme not in {"http", "https"} or not place.hostname or place.username or place.query:
            raise UsageProblem(f"URL `{shown(url)}`: expected one such as https://registry.example.org")
        if not token:
            raise UsageProblem(
                f"`{shown(url)}` needs {self.needs}; nothing was sent",
                hint="set ADAPTERHUB_TOKEN",
            )
        if not (token.isascii() and token.isprintable()):
            raise UsageProblem(
                "the token has characters that no token has; nothing was sent",
                hint="copy it again, without spaces or a line end",
            )
        keep_secret(token)
        self.url = url.rstrip("/")
        self.is_plain_text = not is_here and place.scheme == "http" and not is_loopback(place.hostname)
        self._token = token
        # a redirect would take the token to another place
        proxies = [urllib.request.ProxyHandler({})] if is_here else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)

    def records_in(self, kind: type[Record], answer: Mapping[str, Any], member: str) -> list[Record]:
        """Return the records in an answer; members that a later server adds are left out."""
        try:
            return [_record_of(kind, item) for item in answer[member]]
        except (LookupError, TypeError, ValueError) as error:
            raise RemoteUnreachable(
                f"{self.url} sent a response that this version cannot read: {shown(repr(error), 160)}"
            ) from None

    def all_in(self, kind: type[Record], path: str, member: str) -> list[Record]:
        """Return the records of all pages of a list."""
        return list(self.each_in(kind, path, member))

    def each_in(self, kind: type[Record], path: str, member: str, **asked: str) -> Iterator[Record]:
        """Yield the records of all pages of a list, one page in memory."""
        after: object = None
        while True:
            query = {"limit": str(PAGE), **asked} | ({} if after is None else {"after": str(after)})
            answer = self.send("GET", f"{path}?{urlencode(query)}")
            yield from self.records_in(kind, answer, member)
            before, after = after, answer.get("next_after")
            if after is None or after == before:
                return

    def record_in(self, kind: type[Record], answer: object) -> Record:
        """Return the record that an answer is."""
        return self.records_in(kind, {"": [answer]}, "")[0]

    def send(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Return the JSON object that the server answers, at a path below `/api/adapt/v1`."""
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(f"{self.url}/api/adapt/v1/{path}", data, headers, method=method)  # noqa: S310 - http or https, as checked
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                value = strict_json(answer.read(MOST_BYTES), limit_bytes=MOST_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from None
        except (OSError, HTTPException) as error:
            reason = shown(str(getattr(error, "reason", error)), 160)
            raise RemoteUnreachable(f"{self.url} could not be reached: {reason}") from None
        except ValueError as error:
            raise RemoteUnreachable(f"{self.url} sent no valid JSON: {shown(str(error), 160)}") from None
        if not isinstance(value, dict):
            raise RemoteUnreachable(f"{self.url} is not a registry: expected a JSON object")
        return value

    def _refused(self, error: urllib.error.HTTPError) -> AdapterHubError:
        try:
            value = strict_json(error.read(1 << 16))
        except (OSError, ValueError, HTTPException):
            value = None
        said = value.get("error") if isinstance(value, dict) else None
        reason = shown(said, 300) if isinstance(said, str) else f"status {error.code}"
        told = value.get("hint") if isinstance(value, dict) else None
        hint = shown(told, 300) if isinstance(told, str) else ""
        if error.code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return NotAllowed(f"{self.url}: {reason}; nothing was changed", hint=hint or f"use {self.needs}")
        if error.code == HTTPStatus.NOT_FOUND:
            return NotFound(f"{self.url}: {reason}", hint=hint or self.hint_missing)
        if error.code == HTTPStatus.CONFLICT:
            return Conflict(f"{self.url}: {reason}", hint=hint)
        if error.code in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}:
            return UsageProblem(f"{self.url}: {reason}; nothing was changed", hint=hint)
        return RemoteUnreachable(f"{self.url} answered {error.code}: {reason}")


class FarTokens(FarRegistry):
    """What `Tokens` does, on the registry at `url`. `token` must be an administrator's."""

    needs: ClassVar[str] = "the token of an administrator"
    hint_missing: ClassVar[str] = "`token list` and `user list` show what there is"

    def create(
        self,
        user: str | None,
        role: str,
        *,
        namespaces: Sequence[str] = (),
        label: str = "",
        days: float | None = None,
        scopes: Sequence[str] = (),
    ) -> str:
        """Create a token, one's own without `user`, and return it, this once; an older server refuses `scopes`.

        Raises:
            UsageProblem: an invalid value.
        """
        body: dict[str, object] = {"role": role, "namespaces": list(namespaces), "label": label, "days": days}
        body |= {"user": user} if user is not None else {}
        body |= {"scopes": list(scopes)} if scopes else {}
        token = self.send("POST", "tokens", body).get("token")
        if not isinstance(token, str):
            raise RemoteUnreachable(f"{self.url} sent no token; list them, and revoke what it may have created")
        return token

    def records(self) -> list[Token]:
        """Every token, oldest first, including revoked and expired ones."""
        return self.all_in(Token, "tokens", "tokens")

    def revoke(self, token_id: int) -> Token:
        """Revoke a token and return its record; raises `NotFound`."""
        return self.record_in(Token, self.send("DELETE", f"tokens/{token_id}"))

    def users(self) -> list[User]:
        """Every user that has or had a token, by name."""
        return self.all_in(User, "users", "users")

    def revoke_user(self, name: str) -> list[Token]:
        """Revoke all tokens of a user and return the records of all; raises `NotFound`."""
        return self.records_in(Token, self.send("DELETE", f"users/{quote(name, safe='')}"), "tokens")

    def log(self, **wanted: str | None) -> Iterator[LogEntry]:
        """Return the entries of the log of changes, oldest first; `wanted` has conditions as the server names them."""
        asked = {name: value for name, value in wanted.items() if value is not None}
        return self.each_in(LogEntry, "log", "entries", **asked)


class FarPublishers(FarRegistry):
    """What `Publishers` does, on the registry at `url`. `token` must be an administrator's, perhaps of a namespace."""

    needs: ClassVar[str] = "the token of an administrator of the registry or of the namespace"
    hint_missing: ClassVar[str] = "`adapt registry publishers` shows what there is"

    def records(self, namespace: str | None = None) -> list[Publisher]:
        """Every publisher, or those of a namespace, oldest first."""
        return self.records_in(Publisher, self.send("GET", f"publishers{_within(namespace)}"), "publishers")

    def add(self, repo: str, issuer: str, claims: Mapping[str, str]) -> Publisher:
        """Trust the jobs of `issuer` whose tokens state all `claims` to publish to `repo`."""
        body = {"repo": repo, "issuer": issuer, "claims": dict(claims)}
        return self.record_in(Publisher, self.send("POST", "publishers", body))

    def remove(self, number: int, namespace: str | None = None) -> Publisher:
        """Trust a publisher no more, perhaps one of a namespace, and end the tokens of its jobs; raises `NotFound`."""
        return self.record_in(Publisher, self.send("DELETE", f"publishers/{number}{_within(namespace)}"))


def _within(namespace: str | None) -> str:
    return "" if namespace is None else f"?namespace={quote(namespace, safe='')}"


class FarMembers(FarRegistry):
    """What `Members` does with `namespace`, on the registry at `url`; `token` must administer the namespace."""

    needs: ClassVar[str] = "a token that administers all of the namespace"
    hint_missing: ClassVar[str] = "`adapt registry members NAMESPACE` shows the members, with `--list teams` the teams"

    def records(self, namespace: str) -> list[Member]:
        """Return the members of a namespace and of its teams."""
        return self.all_in(Member, f"{_space(namespace)}/members", "members")

    def describe(self, namespace: str, about: str) -> NamespaceAbout:
        """Change the line about a namespace on its page."""
        return self.record_in(NamespaceAbout, self.send("PUT", _space(namespace), {"about": about}))

    def add(self, namespace: str, user: str, **about: object) -> Member:
        """Make a user a member, with a `role` or in a `team`, perhaps for `days`."""
        return self.record_in(Member, self.send("POST", f"{_space(namespace)}/members", {"user": user, **about}))

    def remove(self, namespace: str, user: str) -> RemovedMember:
        """End all that a person has in a namespace, or with `*` in the registry."""
        answer = self.send("DELETE", f"{_space(namespace)}/members/{quote(user, safe='')}")
        return self.record_in(RemovedMember, answer)

    def leave_team(self, namespace: str, user: str, team: str) -> Member:
        """Take a user out of a team."""
        path = f"{_space(namespace)}/teams/{quote(team, safe='')}/members/{quote(user, safe='')}"
        return self.record_in(Member, self.send("DELETE", path))

    def teams(self, namespace: str) -> list[Team]:
        """Return the teams of a namespace."""
        return self.records_in(Team, self.send("GET", f"{_space(namespace)}/teams"), "teams")

    def put_team(self, namespace: str, name: str, role: str, repos: Sequence[str]) -> Team:
        """Create a team, or change its role and repositories."""
        body = {"name": name, "role": role, "repos": list(repos)}
        return self.record_in(Team, self.send("POST", f"{_space(namespace)}/teams", body))

    def remove_team(self, namespace: str, name: str) -> Team:
        """Remove a team."""
        return self.record_in(Team, self.send("DELETE", f"{_space(namespace)}/teams/{quote(name, safe='')}"))

    def invitations(self, namespace: str) -> list[Invitation]:
        """Return the invitations to a namespace, newest first."""
        return self.records_in(Invitation, self.send("GET", f"{_space(namespace)}/invitations"), "invitations")

    def invite(self, namespace: str, **about: object) -> NewInvitation:
        """Make the link of an invitation; see `Members.invite`."""
        answer = self.send("POST", f"{_space(namespace)}/invitations", about)
        record = self.record_in(Invitation, answer.get("invitation"))
        return NewInvitation(invitation=record, code=str(answer.get("code")), link=str(answer.get("link")))

    def withdraw(self, namespace: str, number: int) -> Invitation:
        """Let an invitation end."""
        return self.record_in(Invitation, self.send("DELETE", f"{_space(namespace)}/invitations/{number}"))


def _space(namespace: str) -> str:
    return f"namespaces/{quote(namespace, safe='*')}"


class FarAccounts(FarRegistry):
    """What `Accounts` does, on the registry at `url`. `token` must be an administrator's."""

    needs: ClassVar[str] = "the token of an administrator"
    hint_missing: ClassVar[str] = "`adapt registry accounts` and `token list --users` show what there is"

    def records(self) -> list[Account]:
        """List every account, by the name of its user."""
        return self.all_in(Account, "accounts", "accounts")

    def link(self, user: str, subject: str) -> Account:
        """Let the person `subject` of the registry's issuer sign in as `user`; raises `NotFound` and `Conflict`."""
        return self.record_in(Account, self.send("POST", "accounts", {"user": user, "subject": subject}))

    def unlink(self, user: str) -> Account:
        """Remove the account of a user, and end what it opened; raises `NotFound`."""
        return self.record_in(Account, self.send("DELETE", f"accounts/{quote(user, safe='')}"))

    def readmit(self, user: str) -> Account:
        """Let a user sign in again who was removed from the registry; raises `NotFound`."""
        return self.record_in(Account, self.send("POST", f"accounts/{quote(user, safe='')}/readmit"))


class FarWebhooks(FarRegistry):
    """What `Webhooks` does, on the registry at `url`, with a token that may change the namespace or repository."""

    needs: ClassVar[str] = "a token that may change the namespace or repository"
    hint_missing: ClassVar[str] = "`adapt registry webhook list` shows what there is"

    def add(self, scope: str, url: str, types: Sequence[str] = ()) -> NewWebhook:
        """Send the events of a namespace or repository to `url`; see `Webhooks.add`."""
        answer = self.send("POST", "webhooks", {"scope": scope, "url": url, "types": list(types)})
        record = self.record_in(Webhook, answer.get("webhook"))
        secret = answer.get("secret")
        if not isinstance(secret, str):
            raise RemoteUnreachable(f"{self.url} sent no secret; remove webhook {record.id} and add it again")
        return NewWebhook(webhook=record, secret=secret)

    def records(self) -> list[Webhook]:
        """Every webhook of the caller, oldest first."""
        return self.records_in(Webhook, self.send("GET", "webhooks"), "webhooks")

    def remove(self, number: int) -> Webhook:
        """Remove a webhook and return its record; raises `NotFound`."""
        return self.record_in(Webhook, self.send("DELETE", f"webhooks/{number}"))

    def deliveries(self, number: int, *, limit: int = 50) -> list[Delivery]:
        """Return the last deliveries of a webhook, newest first; raises `NotFound`."""
        answer = self.send("GET", f"webhooks/{number}/deliveries?limit={limit}")
        return self.records_in(Delivery, answer, "deliveries")

    def test(self, number: int) -> Delivery:
        """Let the server send the event `webhook.test` once, wait, and return how it went.

        Raises:
            NotFound: no such webhook.
            RemoteUnreachable: the server did not send it within `TEST_WAIT_S`.
        """
        found = self.record_in(Delivery, self.send("POST", f"webhooks/{number}/test"))
        end = time.monotonic() + TEST_WAIT_S
        while found.state == "waiting" and time.monotonic() < end:
            time.sleep(LOOK_EVERY_S)
            found = next((one for one in self.deliveries(number) if one.id == found.id), found)
        if found.state == "waiting":
            raise RemoteUnreachable(
                f"webhook {number}: the server has not sent the event within {TEST_WAIT_S:.0f} s",
                hint=f"`adapt registry webhook deliveries {number} --url {self.url}` tells later how it went",
            )
        return found


class FarTests(FarRegistry):
    """The rules of namespaces on the registry at `url`; to change one takes an administrator's token of all of it."""

    needs: ClassVar[str] = "a token with the role `admin` for the whole namespace"

    def rule(self, namespace: str) -> NamespaceRule:
        """Return the rule of a namespace."""
        return self.record_in(NamespaceRule, self.send("GET", f"namespaces/{quote(namespace, safe='')}/tests"))

    def change(
        self,
        namespace: str,
        *,
        asks: str | None = None,
        keys_only: bool | None = None,
        trust: Sequence[tuple[str, str]] = (),
        distrust: Sequence[str] = (),
    ) -> NamespaceRule:
        """Change the rule of a namespace; None keeps a setting. `trust` has names and PEM texts of keys."""
        keys = [{"name": name, "pem": pem} for name, pem in trust]
        body = {"asks": asks, "keys_only": keys_only, "trust": keys, "distrust": list(distrust)}
        return self.record_in(NamespaceRule, self.send("POST", f"namespaces/{quote(namespace, safe='')}/tests", body))


class FarNames(FarRegistry):
    """The names of namespaces on the registry at `url`; to move one takes a token that may write the namespace."""

    needs: ClassVar[str] = "a token that may write the whole namespace"

    def held(self, namespace: str) -> list[HeldName]:
        """Return the names of a namespace."""
        return self.all_in(HeldName, f"namespaces/{quote(namespace, safe='')}/names", "names")

    def move(self, namespace: str, name: str, repo: str) -> list[HeldName]:
        """Give a name of a namespace to only one of its repositories."""
        answer = self.send("POST", f"namespaces/{quote(namespace, safe='')}/names", {"name": name, "repo": repo})
        return self.records_in(HeldName, answer, "names")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """None: a redirect is an error."""


def _record_of(kind: type[Record], item: Mapping[str, Any]) -> Record:
    """Return a record of a class whose fields are members of a JSON object."""
    known = [field.name for field in fields(cast("Any", kind)) if field.default is MISSING or field.name in item]
    return kind(**{name: _value(name, item[name]) for name in known})


def _value(name: str, value: Json) -> Json:
    """Return a member as the records have it: times as moments, lists as tuples."""
    if name.endswith("_at") and value is not None:
        return Moment.parse(value)
    if name == "keys":
        return tuple(_record_of(TesterKey, one) for one in value)
    return tuple(value) if isinstance(value, list) else value
