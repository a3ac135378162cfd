"""Every refusal of the server: one exception, a status, and the headers from which the hub client makes its own class.

The client looks at `X-Error-Code` first (RepoNotFound, RevisionNotFound, EntryNotFound, GatedRepo) and only then at the
status, so the header is set on every error. The body is JSON, always.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from adapterhub.core.errors import (
    AdapterHubError,
    Conflict,
    DigestMismatch,
    DiskFull,
    Malformed,
    NotAllowed,
    NotFound,
    UsageProblem,
    shown,
)

MESSAGE_CHARACTERS = 400


class Refusal(HTTPException):
    """What the caller is told: `status`, `code` (X-Error-Code), a sentence, further headers and members of the body."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        # of the framework's own kind, or it would call one that a body raises "an error parsing the body"
        super().__init__(status, message)
        self.status = status
        self.code = code
        self.message = shown(message, MESSAGE_CHARACTERS)
        self.headers: dict[str, str] = dict(headers or {})
        self.body = dict(body or {})

    def response(self) -> JSONResponse:
        """The answer that says it."""
        # a header is Latin-1 on the wire; the body carries the text unharmed
        plain = self.message.encode("ascii", "replace").decode("ascii")
        headers = {"X-Error-Code": self.code, "X-Error-Message": plain, **self.headers}
        return JSONResponse({"error": self.message, **self.body}, status_code=self.status, headers=headers)


def bad_request(message: str) -> Refusal:
    """400: the request cannot be read as sent."""
    return Refusal(400, "BadRequest", message)


def out_of_bounds(message: str) -> Refusal:
    """422: a path or parameter is longer than any that means something here."""
    return Refusal(422, "BadRequest", message)


def unauthorized(message: str = "a token is needed: `hf auth login` or HF_TOKEN") -> Refusal:
    """401: no token, or one that is not known here."""
    return Refusal(401, "Unauthorized", message, headers={"WWW-Authenticate": "Bearer"})


def forbidden(message: str) -> Refusal:
    """403: known, but without the right."""
    return Refusal(403, "Forbidden", message)


def repo_not_found(repo_id: str) -> Refusal:
    """404: no such repository, or none that this caller may know of; the two read the same."""
    return Refusal(404, "RepoNotFound", f"repository `{repo_id}` not found")


def gated(repo_id: str) -> Refusal:
    """403: the repository may be seen, its files only by those it was granted to."""
    return Refusal(403, "GatedRepo", f"access to the files of `{repo_id}` is restricted")


def revision_not_found(repo_id: str, revision: str) -> Refusal:
    """404: no branch, tag or commit by that name."""
    return Refusal(404, "RevisionNotFound", f"`{repo_id}` has no revision `{revision}`")


def entry_not_found(path: str, commit: str | None = None) -> Refusal:
    """404: no file by that name at that commit. With `commit`, the client remembers that it does not exist there."""
    headers = {"X-Repo-Commit": commit} if commit else {}
    return Refusal(404, "EntryNotFound", f"no file `{path}`", headers=headers)


def conflict(message: str, **body: Any) -> Refusal:  # noqa: ANN401 - members of a JSON body
    """409: it exists."""
    return Refusal(409, "Conflict", message, body=body)


def stale_parent(parent: str, head: str) -> Refusal:
    """412: the branch has moved since the caller looked."""
    return Refusal(412, "StaleParent", f"parent commit {parent} is not the head of the branch, which is {head}")


def too_large(limit_bytes: int) -> Refusal:
    """413: more bytes than are taken here. The connection closes: the rest of the body is not read."""
    return Refusal(
        413, "TooLarge", f"the body is larger than the {limit_bytes} bytes taken here", headers={"Connection": "close"}
    )


def too_slow(what: str, limit_s: float) -> Refusal:
    """408: it did not come in time. The connection closes: the rest is not waited for."""
    message = f"{what} did not come within {limit_s:g} seconds; send it again"
    return Refusal(408, "TooSlow", message, headers={"Connection": "close"})


def too_many(message: str, *, after_s: int) -> Refusal:
    """429: come back later."""
    return Refusal(429, "TooMany", message, headers={"Retry-After": str(after_s)})


def not_offered(message: str) -> Refusal:
    """501: a call of the Hub that this server does not answer."""
    return Refusal(501, "NotImplemented", message)


_STATUS_OF: tuple[tuple[type[AdapterHubError], int, str], ...] = (
    (NotFound, 404, "NotFound"),
    (DigestMismatch, 400, "DigestMismatch"),
    (Malformed, 400, "BadRequest"),
    (UsageProblem, 400, "BadRequest"),
    (DiskFull, 507, "NoRoom"),
    (NotAllowed, 403, "Forbidden"),
    (Conflict, 409, "Conflict"),
)


def refusal_of(error: AdapterHubError) -> Refusal:
    """An error of the library, as the server tells it."""
    for kind, status, code in _STATUS_OF:
        if isinstance(error, kind):
            return Refusal(status, code, error.message)
    return Refusal(500, "InternalError", error.message)
