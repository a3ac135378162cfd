"""Sends commands of `adapt serve` to the server that it started: a request with a key that only these two know."""

from __future__ import annotations

import hmac
import http.client
import secrets
import urllib.request
from http import HTTPStatus
from typing import Final

CONTROL_KEY: Final = "ADAPTERHUB_SERVE_CONTROL_KEY"
"""The environment variable that gives the server its key."""

CONTROL_HEADER: Final = "x-control-key"
DRAIN_PATH: Final = "/adapterhub/drain"
ALIASES_PATH: Final = "/adapterhub/aliases"
"""A POST here looks every alias up again, and answers with their names."""

REFRESH_S: Final = 60.0
"""How long to wait until every alias is looked up again."""

REFUSED_WHILE_DRAINING: Final = "this server is about to stop and takes no new requests; send the request again"


def new_key() -> str:
    """Return a key for one run of a server."""
    return secrets.token_urlsafe(32)


def is_key(given: bytes, key: str) -> bool:
    """Return whether `given`, as it came in a header, is the key; never for an empty key."""
    return bool(key) and hmac.compare_digest(given, key.encode())


def drain(url: str, key: str, within_s: float) -> bool:
    """Ask the server at `url` to refuse new requests, and wait until those that run have ended.

    Returns False if some still run after `within_s` seconds, or if the server does not answer.
    """
    return _asked(f"{url}{DRAIN_PATH}", key, within_s)


def refresh_aliases(url: str, key: str, within_s: float) -> bool:
    """Ask the server at `url` to look every alias up again; False if it does not answer within `within_s` seconds."""
    return _asked(f"{url}{ALIASES_PATH}", key, within_s)


def _asked(url: str, key: str, within_s: float) -> bool:
    request = urllib.request.Request(url, b"", {CONTROL_HEADER: key})  # noqa: S310 - our own URL
    try:
        with urllib.request.urlopen(request, timeout=within_s) as answer:  # noqa: S310 - as above
            return bool(answer.status == HTTPStatus.OK)
    except (OSError, http.client.HTTPException):  # urllib's own errors are OSErrors
        return False
