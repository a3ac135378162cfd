"""Administers a registry through its `/api/adapt/v1`: its tokens, users, webhooks, rules and names."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import fields
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, ClassVar, Final, TypeVar, cast
from urllib.parse import quote, urlsplit

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
from adapterhub.core.redaction import keep_secret
from adapterhub.formats.administration import (
    Delivery,
    HeldName,
    LogEntry,
    NamespaceRule,
    NewWebhook,
    TesterKey,
    Token,
    User,
    Webhook,
)

TIMEOUT_S: Final = 30
MOST_BYTES: Final = 64 << 20
LOOK_EVERY_S: Final = 0.3
TEST_WAIT_S: Final = 60.0
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

Record = TypeVar("Record")


class FarRegistry:
    """Sends requests to the registry at `url`.

    Every method raises `NotAllowed` when the server refuses the token and `RemoteUnreachable` when it does not answer.
    `needs` says in errors which token it takes.
    """

    needs: ClassVar[str] = "a token"
    hint_missing: ClassVar[str] = ""

    def __init__(self, url: str, token: str | None, *, is_here: bool = False) -> None:
        """Raises `UsageProblem` for anything but the URL of a server, and without a token. Sends nothing.

        With `is_here`, requests go to this machine, past any proxy that the environment names.
        """
        place = urlsplit(url)
        if place.scheme not in {"http", "https"} or not place.hostname or place.username or place.query:
            raise UsageProblem(f"URL `{shown(url)}`: expected one such as https://registry.example.org")
        if not token:
            raise UsageProblem(
                f"`{shown(url)}` needs {self.needs}; nothing was sent",
                hint="set ADAPTERHUB_TOKEN, or pass `--token`",
            )
        if not (token.isascii() and token.isprintable()):
            raise UsageProblem("the token has characters that no token has; nothing was sent")
        keep_secret(token)
        self.url = url.rstrip("/")
        self.is_plain_text = not is_here and place.scheme == "http" and place.hostname not in LOOPBACK
        self._token = token
        # a redirect would take the token to another place
        proxies = [urllib.request.ProxyHandler({})] if is_here else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)

    def records_in(self, kind: type[Record], answer: Mapping[str, Any], member: str) -> list[Record]:
        """The records in an answer; members that a later server adds are left out."""
        try:
            return [_record_of(kind, item) for item in answer[member]]
        except (LookupError, TypeError, ValueError) as error:
            raise RemoteUnreachable(
                f"{self.url} sent a response that this version cannot read: {shown(repr(error), 160)}"
            ) from None

    def record_in(self, kind: type[Record], answer: object) -> Record:
        """The record that an answer is."""
        return self.records_in(kind, {"": [answer]}, "")[0]

    def send(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """The JSON object that the server answers, at a path below `/api/adapt/v1`."""
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
        if error.code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return NotAllowed(f"{self.url}: {reason}; nothing was changed", hint=f"use {self.needs}")
        if error.code == HTTPStatus.NOT_FOUND:
            return NotFound(f"{self.url}: {reason}", hint=self.hint_missing)
        if error.code == HTTPStatus.CONFLICT:
            return Conflict(f"{self.url}: {reason}")
        if error.code in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}:
            return UsageProblem(f"{self.url}: {reason}; nothing was changed")
        return RemoteUnreachable(f"{self.url} answered {error.code}: {reason}")


class FarTokens(FarRegistry):
    """What `Tokens` does, on the registry at `url`. `token` must be an administrator's."""

    needs: ClassVar[str] = "the token of an administrator"
    hint_missing: ClassVar[str] = "`token list` and `user list` show what there is"

    def create(
        self,
        user: str,
        role: str,
        *,
        namespaces: Sequence[str] = (),
        label: str = "",
        days: float | None = None,
    ) -> str:
        """Create a token and return it, this once; raises `UsageProblem` for an invalid value."""
        body = {"user": user, "role": role, "namespaces": list(namespaces), "label": label, "days": days}
        token = self.send("POST", "tokens", body).get("token")
        if not isinstance(token, str):
            raise RemoteUnreachable(f"{self.url} sent no token; list them, and revoke what it may have created")
        return token

    def records(self) -> list[Token]:
        """Every token, oldest first, including revoked and expired ones."""
        return self.records_in(Token, self.send("GET", "tokens"), "tokens")

    def revoke(self, token_id: int) -> Token:
        """Revoke a token and return its record; raises `NotFound`."""
        return self.record_in(Token, self.send("DELETE", f"tokens/{token_id}"))

    def users(self) -> list[User]:
        """Every user that has or had a token, by name."""
        return self.records_in(User, self.send("GET", "users"), "users")

    def revoke_user(self, name: str) -> list[Token]:
        """Revoke all tokens of a user and return the records of all; raises `NotFound`."""
        return self.records_in(Token, self.send("DELETE", f"users/{quote(name, safe='')}"), "tokens")

    def log(self) -> list[LogEntry]:
        """Every creation and revocation of a token, oldest first."""
        return self.records_in(LogEntry, self.send("GET", "log"), "entries")


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
        """The last deliveries of a webhook, newest first; raises `NotFound`."""
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
        """The rule of a namespace."""
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
        """The names of a namespace."""
        return self.records_in(HeldName, self.send("GET", f"namespaces/{quote(namespace, safe='')}/names"), "names")

    def move(self, namespace: str, name: str, repo: str) -> list[HeldName]:
        """Give a name of a namespace to one of its repositories alone."""
        answer = self.send("POST", f"namespaces/{quote(namespace, safe='')}/names", {"name": name, "repo": repo})
        return self.records_in(HeldName, answer, "names")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """None: a redirect is an error."""


def _record_of(kind: type[Record], item: Mapping[str, Any]) -> Record:
    """A record of a class whose fields are members of a JSON object."""
    return kind(**{field.name: _value(field.name, item[field.name]) for field in fields(cast("Any", kind))})


def _value(name: str, value: Json) -> Json:
    """A member as the records have it: times as moments, lists as tuples."""
    if name.endswith("_at") and value is not None:
        return Moment.parse(value)
    if name == "keys":
        return tuple(_record_of(TesterKey, one) for one in value)
    return tuple(value) if isinstance(value, list) else value
