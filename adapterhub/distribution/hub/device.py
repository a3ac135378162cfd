"""A token of a registry that a person approves on a page of it, as RFC 8628 has it: no secret is typed or copied.

The server gives two codes. The long one stays in this process, and the person types the short one on the page.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import NotAllowed, RemoteUnreachable, shown
from adapterhub.core.redaction import keep_secret
from adapterhub.distribution.http.wire import Wire

START: Final = "api/adapt/v1/device"
POLL: Final = "api/adapt/v1/device/token"
_NO_SUCH_ROUTE: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
_LEAST_S, _MOST_S, _SLOWER_S, _LIFE_S = 0.2, 60.0, 5.0, 3600.0
_LATER: Final = ("authorization_pending", "slow_down")
_MOST_CHARACTERS: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeToType:
    """The code that a person types on the page at `url` before `lasts_s` seconds are over."""

    code: str
    url: str
    lasts_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovedToken:
    """A token that a person approved. Its text is a secret."""

    token: str
    scopes: tuple[str, ...]
    expires: str


def approved_token(
    endpoint: str, *, client: str, scopes: Sequence[str], days: int, show: Callable[[CodeToType], None]
) -> ApprovedToken | None:
    """Get a token of the registry at `endpoint` once a person approved it; None if the server offers none so.

    Args:
        endpoint: the address of the registry.
        client: what this program calls itself on the page.
        scopes: the most that the token may do.
        days: how long it may work.
        show: tells the person the code, before the wait begins.

    Raises:
        NotAllowed: the person refused, or approved nothing in time.
        RemoteUnreachable: the server does not answer, or not as agreed.
    """
    server = Wire(endpoint, None, version=None)
    what = f"sign-in at {endpoint}"
    with server.plainly(what):
        status, answer = _sent(server, START, {"client": client, "scopes": list(scopes), "days": days})
        if status in _NO_SUCH_ROUTE:
            return None
        secret = _text(answer, "device_code")
        code = CodeToType(
            code=_text(answer, "user_code"),
            url=_text(answer, "verification_uri"),
            lasts_s=_number(answer, "expires_in"),
        )
        if status != HTTPStatus.OK or not (secret and code.code and code.url):
            raise _unread(endpoint, status, answer)
        keep_secret(secret)
        show(code)
        pause_s = max(_LEAST_S, float(_number(answer, "interval")))
        until = time.monotonic() + min(max(code.lasts_s, 1), _LIFE_S)
        while time.monotonic() < until:
            time.sleep(min(pause_s, _MOST_S))
            status, answer = _sent(server, POLL, {"device_code": secret})
            problem = _text(answer, "error")
            if status == HTTPStatus.OK and (token := _text(answer, "access_token")):
                keep_secret(token)
                given = answer.get("scopes")
                told = tuple(shown(str(one), 40) for one in given) if isinstance(given, list) else ()
                return ApprovedToken(token=token, scopes=told, expires=_text(answer, "expires_at"))
            if problem == "slow_down" or status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
                pause_s += _SLOWER_S
            elif problem == "access_denied":
                raise NotAllowed(
                    f"{what} was refused on the page; nothing was stored",
                    hint="run `adapt remote login` again, and approve it on the page",
                )
            elif problem == "expired_token":
                break
            elif problem not in _LATER:
                raise _unread(endpoint, status, answer)
    raise NotAllowed(f"{what}: no one approved it in time; nothing was stored", hint="run the command again")


def _sent(server: Wire, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Send JSON, and return the status and the object of the answer, which is empty for another one."""
    answer = server.open(f"{server.endpoint}/{path}", form=json.dumps(body).encode())
    try:
        raw = server.whole(answer, path)
    finally:
        answer.close()
    try:
        value = strict_json(raw)
    except ValueError:
        value = None
    return answer.status, value if isinstance(value, dict) else {}


def _text(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    is_plain = isinstance(value, str) and len(value) <= _MOST_CHARACTERS and value.isascii() and value.isprintable()
    return str(value) if is_plain else ""


def _number(answer: Mapping[str, Any], name: str) -> int:
    value = answer.get(name)
    return value if type(value) is int and 0 <= value < 1 << 31 else 0


def _unread(endpoint: str, status: int, answer: Mapping[str, Any]) -> RemoteUnreachable:
    why = _text(answer, "error_description") or _text(answer, "error") or "an answer that this version cannot read"
    return RemoteUnreachable(f"{endpoint} answered {status}: {shown(why, 300)}", status=status)
