"""The tokens and users of a registry elsewhere, through its `/api/adapt/v1` and the token of an administrator."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import fields
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

from adapterhub.core.dates import parse_time
from adapterhub.core.digests import strict_json
from adapterhub.core.errors import AdapterHubError, NotAllowed, NotFound, RemoteUnreachable, UsageProblem, shown
from adapterhub_registry.access.tokens import LogRecord, TokenRecord, UserRecord

TIMEOUT_S: Final = 30
MOST_BYTES: Final = 64 << 20
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

Record = TypeVar("Record", TokenRecord, UserRecord, LogRecord)


class FarTokens:
    """What `Tokens` does, on the registry at `url`. `token` must be an administrator's.

    Every method raises `NotAllowed` when the server refuses the token and `RemoteUnreachable` when it does not answer.
    """

    def __init__(self, url: str, token: str | None) -> None:
        """Raises `UsageProblem` for anything but the URL of a server, and without a token. Sends nothing."""
        place = urlsplit(url)
        if place.scheme not in {"http", "https"} or not place.hostname or place.username or place.query:
            raise UsageProblem(f"URL `{shown(url)}`: expected one such as https://registry.example.org")
        if not token:
            raise UsageProblem(
                f"`{shown(url)}` needs the token of an administrator; nothing was sent",
                hint="set ADAPTERHUB_TOKEN, or pass `--token`",
            )
        if not (token.isascii() and token.isprintable()):
            raise UsageProblem("the token has characters that no token has; nothing was sent")
        self.url = url.rstrip("/")
        self.is_plain_text = place.scheme == "http" and place.hostname not in LOOPBACK
        self._token = token
        # a redirect would take the token to another place
        self._opener = urllib.request.build_opener(_NoRedirect)

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
        token = self._send("POST", "tokens", body).get("token")
        if not isinstance(token, str):
            raise RemoteUnreachable(f"{self.url} sent no token; list them, and revoke what it may have created")
        return token

    def records(self) -> list[TokenRecord]:
        """Every token, oldest first, including revoked and expired ones."""
        return self._records(TokenRecord, self._send("GET", "tokens"), "tokens")

    def revoke(self, token_id: int) -> TokenRecord:
        """Revoke a token and return its record; raises `NotFound`."""
        return self._records(TokenRecord, {"tokens": [self._send("DELETE", f"tokens/{token_id}")]}, "tokens")[0]

    def users(self) -> list[UserRecord]:
        """Every user that has or had a token, by name."""
        return self._records(UserRecord, self._send("GET", "users"), "users")

    def revoke_user(self, name: str) -> list[TokenRecord]:
        """Revoke all tokens of a user and return the records of all; raises `NotFound`."""
        return self._records(TokenRecord, self._send("DELETE", f"users/{quote(name, safe='')}"), "tokens")

    def log(self) -> list[LogRecord]:
        """Every creation and revocation of a token, oldest first."""
        return self._records(LogRecord, self._send("GET", "log"), "entries")

    def _records(self, kind: type[Record], answer: Mapping[str, Any], member: str) -> list[Record]:
        """The records in an answer; members that a later server adds are left out."""
        try:
            return [
                kind(**{field.name: _value(field.name, item[field.name]) for field in fields(kind)})
                for item in answer[member]
            ]
        except (LookupError, TypeError, ValueError) as error:
            raise RemoteUnreachable(
                f"{self.url} sent a response that this version cannot read: {shown(repr(error), 160)}"
            ) from None

    def _send(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
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
            return NotAllowed(f"{self.url}: {reason}; nothing was changed", hint="use the token of an administrator")
        if error.code == HTTPStatus.NOT_FOUND:
            return NotFound(f"{self.url}: {reason}", hint="`token list` and `user list` show what there is")
        if error.code in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}:
            return UsageProblem(f"{self.url}: {reason}; nothing was changed")
        return RemoteUnreachable(f"{self.url} answered {error.code}: {reason}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:  # noqa: ANN401 - as in the parent
        """None: a redirect is an error."""


def _value(name: str, value: Any) -> Any:  # noqa: ANN401 - a member of JSON
    """A member as the records have it: times in milliseconds, lists as tuples."""
    if name.endswith("_at") and value is not None:
        return round(parse_time(value) * 1000)
    return tuple(value) if isinstance(value, list) else value
