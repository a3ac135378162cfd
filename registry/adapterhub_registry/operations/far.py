"""A registry elsewhere, through its `/api/adapt/v1` and a token."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import fields
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, ClassVar, Final, TypeVar, cast
from urllib.parse import urlsplit

from adapterhub.core.dates import parse_time
from adapterhub.core.digests import strict_json
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

TIMEOUT_S: Final = 30
MOST_BYTES: Final = 64 << 20
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

Record = TypeVar("Record")


class FarRegistry:
    """Sends requests to the registry at `url`.

    Every method raises `NotAllowed` when the server refuses the token and `RemoteUnreachable` when it does not answer.
    `needs` says in errors which token it takes.
    """

    needs: ClassVar[str] = "a token"
    hint_missing: ClassVar[str] = ""

    def __init__(self, url: str, token: str | None) -> None:
        """Raises `UsageProblem` for anything but the URL of a server, and without a token. Sends nothing."""
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
        self.is_plain_text = place.scheme == "http" and place.hostname not in LOOPBACK
        self._token = token
        # a redirect would take the token to another place
        self._opener = urllib.request.build_opener(_NoRedirect)

    def records_in(self, kind: type[Record], answer: Mapping[str, Any], member: str) -> list[Record]:
        """The records in an answer; members that a later server adds are left out."""
        try:
            return [record_of(kind, item) for item in answer[member]]
        except (LookupError, TypeError, ValueError) as error:
            raise RemoteUnreachable(
                f"{self.url} sent a response that this version cannot read: {shown(repr(error), 160)}"
            ) from None

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


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:  # noqa: ANN401 - as in the parent
        """None: a redirect is an error."""


def record_of(kind: type[Record], item: Mapping[str, Any]) -> Record:
    """A record of a class whose fields are members of a JSON object."""
    return kind(**{field.name: _value(field.name, item[field.name]) for field in fields(cast("Any", kind))})


def _value(name: str, value: Any) -> Any:  # noqa: ANN401 - a member of JSON
    """A member as the records have it: times in milliseconds, lists as tuples."""
    if name.endswith("_at") and value is not None:
        return round(parse_time(value) * 1000)
    return tuple(value) if isinstance(value, list) else value
