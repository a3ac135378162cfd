"""A refusal as HTTP tells it: a status, and our words without places of this machine."""

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
"""The first class that fits decides."""

_PLACES: Final = re.compile(r"https?://[^\s`'\",;)]+|(?<![\w./@])~?/(?:[^\s`'\",;:)]+/)+")
"""URLs, and the folders of absolute paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a client is told."""

    status: HTTPStatus
    message: str


def refusal_of(error: AdapterHubError) -> Refusal:
    """Status and words for a client. Hints, folders and addresses are for whoever runs the server, and stay out."""
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
    words = _PLACES.sub("…", error.message)
    if isinstance(error, AdapterNotFound):
        words = words.partition(" in ")[0] + " is known to this server"  # not which places were asked
    return Refusal(status=status, message=words)
