"""A refusal as an HTTP answer: a status, and a message without addresses and paths of this machine.

No status is a 5xx. A router in front of several servers repeats a 5xx on all of them and counts it against each, so a
few requests for one adapter would take the base and every loaded adapter away from all clients.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from adapterhub.core.errors import (
    AdapterDenied,
    AdapterHubError,
    AdapterNotFound,
    Conflict,
    DigestMismatch,
    DiskFull,
    Incompatible,
    Malformed,
    NotAllowed,
    NotFound,
    StoreLocked,
    UsageProblem,
    shown,
)

_STATUSES: Final[tuple[tuple[type[AdapterHubError], HTTPStatus], ...]] = (
    (UsageProblem, HTTPStatus.BAD_REQUEST),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Incompatible, HTTPStatus.CONFLICT),
    (DigestMismatch, HTTPStatus.UNPROCESSABLE_ENTITY),
    (Malformed, HTTPStatus.UNPROCESSABLE_ENTITY),
    (DiskFull, HTTPStatus.FAILED_DEPENDENCY),
    (AdapterDenied, HTTPStatus.GONE),
    (NotAllowed, HTTPStatus.FORBIDDEN),
    (StoreLocked, HTTPStatus.FAILED_DEPENDENCY),
    (Conflict, HTTPStatus.CONFLICT),
)
"""The first matching class decides; any other error is FAILED_DEPENDENCY, too."""

_PLACES: Final = re.compile(r"https?://[^\s`'\",;)]+|(?<![\w./@])~?/(?:[^\s`'\",;:)]+/)+")
"""URLs, and the folders of absolute paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The status and the message for a client."""

    status: HTTPStatus
    message: str


def ensure_unlike_base(base: str, name: str, label: str) -> None:
    """Refuse to serve the adapter `label` under `name` beside a base of the same name: a request could mean either.

    Raises:
        UsageProblem: it has the name of the base.
    """
    if base in {name, label, label.partition("==")[0]}:
        raise UsageProblem(
            f"the adapter `{shown(label, 200)}` has the name of the base, `{shown(base, 200)}`",
            hint="`--name NAME` serves the base under another name",
        )


def refusal_of(error: AdapterHubError, name: str = "") -> Refusal:
    """The status and the message for a client, without hints, folders and addresses, which are for the operator.

    A message without `name`, as the client wrote it, begins with it: some errors name a place alone.
    """
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), HTTPStatus.FAILED_DEPENDENCY)
    words = _PLACES.sub("…", error.message)
    if isinstance(error, AdapterNotFound):
        words = words.partition(" in ")[0] + " is known to this server"  # hides the list of sources
    asked = f"`{shown(name)}`" if name else ""
    return Refusal(status=status, message=words if asked in words else f"{asked}: {words}")
