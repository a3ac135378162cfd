"""A request that is refused before the engine sees it, whatever carries it."""

from __future__ import annotations

import math
from typing import Final

from adapterhub.core.errors import AdapterHubError
from adapterhub.inference.serving.refusal import refusal_of

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


class RequestRefused(Exception):
    """The refusal of one request: its status, its message, and after how many seconds another try may succeed."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = KINDS.get(status, "InvalidRequestError")
        self.retry_after_s = None if retry_after_s is None else max(1, math.ceil(retry_after_s))

    @classmethod
    def of(cls, error: AdapterHubError, name: str = "") -> RequestRefused:
        """The refusal of an adapter; see `refusal_of`."""
        told = refusal_of(error, name)
        return cls(int(told.status), told.message)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer beside its type and length."""
        made = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return made | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})  # noqa: PLR2004 - unauthorised
