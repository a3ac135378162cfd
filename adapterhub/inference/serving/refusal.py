"""Refusals: an error as an HTTP answer, without addresses and paths of this machine, and a request that is refused.

No refusal of an adapter is a 5xx. A router in front of several servers repeats a 5xx on all of them and counts it
against each, so a few requests for one adapter would take the base and every loaded adapter away from all clients.
"""

from __future__ import annotations

import math
import re
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
    WithoutEffect,
    shown,
)

_STATUSES: Final[tuple[tuple[type[AdapterHubError], HTTPStatus], ...]] = (
    (UsageProblem, HTTPStatus.BAD_REQUEST),
    (NotFound, HTTPStatus.NOT_FOUND),
    (WithoutEffect, HTTPStatus.FAILED_DEPENDENCY),
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


KINDS: Final = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    410: "AdapterDenied",
    413: "BadRequestError",
    415: "BadRequestError",
    424: "FailedDependency",
    429: "RateLimitError",
    502: "InternalServerError",
    503: "ServiceUnavailable",
}
"""The `type` of an error in OpenAI's API, by status."""


NO_EFFECT: Final = "AdapterWithoutEffect"
"""That of an adapter with which the engine answers like the base; other adapters with 424 may be served later."""


class RequestRefused(Exception):
    """The refusal of one request: its status, its message, and after how many seconds another try may succeed.

    `kind` is the `type` of the error, by default that of the status.
    """

    def __init__(self, status: int, message: str, retry_after_s: float | None = None, kind: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind or KINDS.get(status, "InvalidRequestError")
        self.retry_after_s = None if retry_after_s is None else max(1, math.ceil(retry_after_s))

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer beside its type and length."""
        made = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return made | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def refusal_of(error: AdapterHubError, name: str = "") -> RequestRefused:
    """Return the refusal of an adapter, without hints, folders and addresses, which are for the operator.

    A message without `name`, as the client wrote it, begins with it: some errors name only a place.
    """
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), HTTPStatus.FAILED_DEPENDENCY)
    words = _PLACES.sub("…", error.message)
    if isinstance(error, AdapterNotFound):
        words = words.partition(" in ")[0] + " is known to this server"  # hides the list of sources
    asked = f"`{shown(name)}`" if name else ""
    kind = NO_EFFECT if isinstance(error, WithoutEffect) else ""
    return RequestRefused(int(status), words if asked in words else f"{asked}: {words}", kind=kind)
