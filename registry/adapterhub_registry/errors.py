"""Every refusal of the server: one exception with a status and the headers that the hub client maps to its errors.

The client reads `X-Error-Code` first (RepoNotFound, RevisionNotFound, EntryNotFound, GatedRepo) and the status only
then, so every error carries the header. The body is always JSON.
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
BUSY_RETRY_S = 2
AWAY_RETRY_S = 4
"""The hub client adds a second and tries six times, so it outlives 25 seconds without a part of the server."""


class HttpRefusal(HTTPException):
    """A refused request: `status`, `code` (X-Error-Code), a message, further headers and members of the body."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        # an HTTPException, as the framework reports other errors of a body as "an error parsing the body"
        super().__init__(status, message)
        self.status = status
        self.code = code
        self.message = shown(message, MESSAGE_CHARACTERS)
        self.headers: dict[str, str] = dict(headers or {})
        self.body = dict(body or {})

    def response(self) -> JSONResponse:
        """Return the HTTP response."""
        # a header is Latin-1 on the wire; the body carries the text unchanged
        plain = self.message.encode("ascii", "replace").decode("ascii").strip()  # no value begins or ends with a blank
        headers = {"X-Error-Code": self.code, "X-Error-Message": plain, **self.headers}
        return JSONResponse({"error": self.message, **self.body}, status_code=self.status, headers=headers)


def bad_request(message: str) -> HttpRefusal:
    """400: the request is malformed."""
    return HttpRefusal(400, "BadRequest", message)


def out_of_bounds(message: str) -> HttpRefusal:
    """422: a path or parameter exceeds a limit."""
    return HttpRefusal(422, "BadRequest", message)


def unauthorized(message: str = "this needs a token: run `hf auth login` or set HF_TOKEN") -> HttpRefusal:
    """401: no token, or an unknown one."""
    return HttpRefusal(401, "Unauthorized", message, headers={"WWW-Authenticate": "Bearer"})


def forbidden(message: str) -> HttpRefusal:
    """403: the caller is known but lacks the right."""
    return HttpRefusal(403, "Forbidden", message)


SEE_ROUTES = "see the reference of the registry's API"


def no_such_route() -> HttpRefusal:
    """404: no route has this path."""
    return HttpRefusal(404, "NotFound", f"no such route; {SEE_ROUTES}")


def sign_in_refused(why: str) -> HttpRefusal:
    """403: a person cannot sign in at the issuer."""
    message = f"the sign-in was refused: {why}; sign in again, or ask the administrator of the registry"
    return HttpRefusal(403, "SignInRefused", message)


def identity_refused(why: str) -> HttpRefusal:
    """403: an identity token is not one that may publish."""
    message = f"the identity token was refused: {why}; `adapt registry publishers` lists who may publish"
    return HttpRefusal(403, "IdentityRefused", message)


def name_reserved(name: str) -> HttpRefusal:
    """400: the namespace is kept for the server, or for the public Hub."""
    namespace = name.partition("/")[0]
    return bad_request(f"repository `{name}`: the namespace `{namespace}` is reserved; choose another namespace")


def build_not_found(repo_id: str, version: str) -> HttpRefusal:
    """404: the repository has no build of that version."""
    message = f"`{repo_id}` has no build {shown(version)}; `adapt info {repo_id}` shows the newest"
    return HttpRefusal(404, "VersionNotFound", message)


def quota_exceeded(state: str) -> HttpRefusal:
    """400: a namespace or a user has used up a quota of this server."""
    message = f"quota reached: {state}; delete what is not needed, or ask the operator for a higher `--limit`"
    return HttpRefusal(400, "QuotaExceeded", message)


def repo_not_found(repo_id: str) -> HttpRefusal:
    """404: no such repository, or one that this caller may not see; the answers are the same."""
    return HttpRefusal(
        404, "RepoNotFound", f"repository `{repo_id}` not found; check the name, or send a token that may read it"
    )


def gated(repo_id: str) -> HttpRefusal:
    """403: the caller may see the repository but not read its files."""
    return HttpRefusal(
        403,
        "GatedRepo",
        f"Access to model `{repo_id}` is restricted and you are not in the authorized list;"
        f" ask for access: POST /{repo_id}/ask-access",
    )


def revision_not_found(repo_id: str, revision: str) -> HttpRefusal:
    """404: no branch, tag or commit has that name."""
    return HttpRefusal(
        404, "RevisionNotFound", f"`{repo_id}` has no revision `{revision}`, expected a branch, a tag or a commit"
    )


def version_not_found(repo_id: str, version: str) -> HttpRefusal:
    """404: the repository has no release of that version."""
    message = f"`{repo_id}` has no release {shown(version)}; `adapt info {repo_id}` shows the newest"
    return HttpRefusal(404, "VersionNotFound", message)


def alias_not_found(repo_id: str, alias: str) -> HttpRefusal:
    """404: no alias of the repository has that name."""
    message = f"`{repo_id}` has no alias `{shown(alias)}`; `adapt alias list {repo_id}` lists them"
    return HttpRefusal(404, "AliasNotFound", message)


def unknown_cursor(cursor: str) -> HttpRefusal:
    """400: a cursor of another list, or of another server."""
    return bad_request(f"cursor `{shown(cursor)}` is not of this list, expected that of the answer before, or none")


def entry_not_found(path: str, commit: str | None = None) -> HttpRefusal:
    """404: the commit has no such file. With `commit`, the client caches that the file does not exist there."""
    headers = {"X-Repo-Commit": commit} if commit else {}
    return HttpRefusal(404, "EntryNotFound", f"no file `{path}`", headers=headers)


def conflict(message: str, **body: object) -> HttpRefusal:
    """409: the name is taken."""
    return HttpRefusal(409, "Conflict", message, body=body)


def stale_parent(parent: str, head: str) -> HttpRefusal:
    """412: the branch has moved since the caller read it."""
    return HttpRefusal(
        412, "StaleParent", f"parent commit {parent} is not the head of the branch, which is {head}; read it again"
    )


def too_large(limit_bytes: int) -> HttpRefusal:
    """413: the body exceeds the limit. The connection closes, and the server reads no more of it."""
    return HttpRefusal(
        413,
        "TooLarge",
        f"the body exceeds the limit, expected at most {limit_bytes} bytes",
        headers={"Connection": "close"},
    )


def too_slow(what: str, limit_s: float) -> HttpRefusal:
    """408: the client was too slow. The connection closes."""
    message = f"{what} did not arrive within {limit_s:g} seconds; send it again"
    return HttpRefusal(408, "TooSlow", message, headers={"Connection": "close"})


def too_many(message: str, *, after_s: int) -> HttpRefusal:
    """429: the caller can retry later."""
    return HttpRefusal(429, "TooMany", message, headers={"Retry-After": str(after_s)})


def busy(message: str) -> HttpRefusal:
    """503: the client tries again by itself."""
    return HttpRefusal(503, "Busy", message, headers={"Retry-After": str(BUSY_RETRY_S)})


def away(part: str) -> HttpRefusal:
    """503: a part of the server does not answer; the client tries again by itself, for longer than after `busy`."""
    message = f"the {part} does not answer; try again"
    return HttpRefusal(503, "Busy", message, headers={"Retry-After": str(AWAY_RETRY_S)})


def not_offered(message: str) -> HttpRefusal:
    """501: this server lacks a feature of the Hub."""
    return HttpRefusal(501, "NotImplemented", message)


_STATUS_OF: tuple[tuple[type[AdapterHubError], int, str], ...] = (
    (NotFound, 404, "NotFound"),
    (DigestMismatch, 400, "DigestMismatch"),
    (Malformed, 400, "BadRequest"),
    (UsageProblem, 400, "BadRequest"),
    (DiskFull, 507, "NoRoom"),
    (NotAllowed, 403, "Forbidden"),
    (Conflict, 409, "Conflict"),
)


def refusal_of(error: AdapterHubError) -> HttpRefusal:
    """Return the refusal that stands for an error of the library."""
    for kind, status, code in _STATUS_OF:
        if isinstance(error, kind):
            return HttpRefusal(status, code, error.message, body={"hint": error.hint} if error.hint else {})
    return HttpRefusal(500, "InternalError", error.message)
