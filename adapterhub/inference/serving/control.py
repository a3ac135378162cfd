"""How `adapt serve` asks the server that it started to drain: a request with a key that both alone know."""

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
REFUSED_WHILE_DRAINING: Final = "this server is about to stop and takes no new requests; send the request again"


def new_key() -> str:
    """A key for one run of a server."""
    return secrets.token_urlsafe(32)


def is_key(given: bytes, key: str) -> bool:
    """Whether `given`, as it came in a header, is the key; never for an empty key."""
    return bool(key) and hmac.compare_digest(given, key.encode())


def drain(url: str, key: str, within_s: float) -> bool:
    """Ask the server at `url` to refuse new requests, and wait until those that run have ended.

    Returns False if some still run after `within_s` seconds, or if the server does not answer.
    """
    request = urllib.request.Request(f"{url}{DRAIN_PATH}", b"", {CONTROL_HEADER: key})  # noqa: S310 - our own URL
    try:
        with urllib.request.urlopen(request, timeout=within_s) as answer:  # noqa: S310 - as above
            return bool(answer.status == HTTPStatus.OK)
    except (OSError, http.client.HTTPException):  # urllib's own errors are OSErrors
        return False
