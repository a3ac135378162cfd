"""A refusal as an HTTP answer: a status, and a message without addresses and paths of this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from adapterhub.core.errors import (
    AdapterHubError,
    AdapterNotFound,
    Conflict,
    DigestMismatch,
    DiskFull,
    Incompatible,
    Malformed,
    NotAllowed,
    NotFound,
    RemoteUnreachable,
    StoreLocked,
    UsageProblem,
)

_STATUSES: Final[tuple[tuple[type[AdapterHubError], HTTPStatus], ...]] = (
    (UsageProblem, HTTPStatus.BAD_REQUEST),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Incompatible, HTTPStatus.CONFLICT),
    (DigestMismatch, HTTPStatus.UNPROCESSABLE_ENTITY),
    (Malformed, HTTPStatus.UNPROCESSABLE_ENTITY),
    (RemoteUnreachable, HTTPStatus.SERVICE_UNAVAILABLE),
    (DiskFull, HTTPStatus.INSUFFICIENT_STORAGE),
    (NotAllowed, HTTPStatus.FORBIDDEN),
    (StoreLocked, HTTPStatus.SERVICE_UNAVAILABLE),
    (Conflict, HTTPStatus.CONFLICT),
)
"""The first matching class decides."""

_PLACES: Final = re.compile(r"https?://[^\s`'\",;)]+|(?<![\w./@])~?/(?:[^\s`'\",;:)]+/)+")
"""URLs, and the folders of absolute paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The status and the message for a client."""

    status: HTTPStatus
    message: str


def refusal_of(error: AdapterHubError) -> Refusal:
    """The status and the message for a client, without hints, folders and addresses, which are for the operator."""
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
    words = _PLACES.sub("…", error.message)
    if isinstance(error, AdapterNotFound):
        words = words.partition(" in ")[0] + " is known to this server"  # hides the list of sources
    return Refusal(status=status, message=words)
