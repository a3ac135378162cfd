"""Hub API: who asks, and repositories with their settings, branches, tags, gates and history."""

from __future__ import annotations

import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

from fastapi import Query, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import Row, or_, select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError
from starlette.concurrency import run_in_threadpool

from adapterhub.core.errors import shown
from adapterhub_registry.access import rights
from adapterhub_registry.access.audit import log_change
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.api.bodies import hub_router, sent_by, user
from adapterhub_registry.api.context import (
    BaseUrl,
    CallerOf,
    JsonBody,
    JsonObject,
    RegistryOf,
    RepoOf,
    RevisionOf,
    json_object,
    next_link,
    user_of,
)
from adapterhub_registry.api.hub.info import iso_time, public_number
from adapterhub_registry.database.db import lock_space, refs, repos
from adapterhub_registry.errors import HttpRefusal, bad_request, conflict, not_offered
from adapterhub_registry.names import RepoId, parse_repo_id, parse_sha256, split
from adapterhub_registry.repos import commits, lfs_files
from adapterhub_registry.repos.repos import RepoChange

router = hub_router()
REPOSITORIES_PAGE = 1000
TAGS_PAGE: Final = 1000
GATED = {"auto": "auto", "manual": "manual", False: "no"}


# ------------------------------------------------------------ identity
@router.get("/api/whoami-v2")
def whoami(caller: CallerOf) -> JSONResponse:
    """Return the user, the namespaces that the token covers, and its role there."""
    user = user_of(caller)
    orgs = [{"type": "org", "name": name, "fullname": name} for name in caller.spaces if name != user]
    access = {"displayName": caller.label, "role": "read" if caller.only_reads else "write"}
    return JSONResponse(
        {
            "type": "user",
            "id": user,
            "name": user,
            "fullname": user,
            "orgs": orgs,
            "auth": {"type": "access_token", "accessToken": access},
        }
    )


@router.get("/api/models/{namespace}/{name}/auth-check")
@router.get("/api/models/{namespace}/{name}/auth-check/{right}")
def auth_check(registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, right: str = "read") -> JSONResponse:
    """Answer 200 if the caller may read the files (or, with `write`, change them), or the error of such a request."""
    with registry.db.read() as connection:
        if right == "write":
            registry.repos.find_writable(connection, caller, repo_id)
        elif right == "read":
            registry.repos.find_files(connection, caller, repo_id)
        else:
            raise bad_request(f"right `{shown(right)}`: expected read or write")
    return JSONResponse({"ok": True})


@router.get("/api/agent-harnesses")
async def agent_harnesses() -> JSONResponse:
    """Return an empty list: once a day, the client requests the known tools that may drive it."""
    return JSONResponse({"standardEnvVars": [], "harnesses": {}})


@router.api_route("/api/telemetry/{topic:path}", methods=["HEAD", "GET"])
async def telemetry() -> Response:
    """Accept and discard a client's telemetry."""
    return Response()


# ------------------------------------------------------------ repositories
@router.post("/api/repos/create")
def create_repo(registry: RegistryOf, caller: CallerOf, body: JsonBody, base: BaseUrl) -> JSONResponse:
    """Create a repository; 409 with the URL of an existing one, which the client's `exist_ok` reads."""
    repo_id = _repo_of(caller, body)
    url = f"{base}/{repo_id}"
    try:
        with registry.db.begin() as connection:
            row = registry.repos.create(connection, caller, repo_id, private=_private(body) or False)
    except (HttpRefusal, IntegrityError) as error:  # IntegrityError: another request created it at the same moment
        if isinstance(error, HttpRefusal) and error.status != HTTPStatus.CONFLICT:
            raise
        raise conflict(f"repository `{repo_id}` already exists; use it, or choose another name", url=url) from None
    return JSONResponse({"url": url, "name": repo_id, "id": public_number(row)})


@router.delete("/api/repos/delete")
def delete_repo(registry: RegistryOf, caller: CallerOf, body: JsonBody) -> JSONResponse:
    """Remove a repository."""
    repo_id = _repo_of(caller, body)
    with registry.db.begin() as connection:
        registry.repos.delete(connection, caller, repo_id)
    return JSONResponse({})


@router.post("/api/repos/move")
def move_repo(registry: RegistryOf, caller: CallerOf, body: JsonBody) -> JSONResponse:
    """Rename a repository."""
    _check_type(body)
    source, target = (parse_repo_id(*split(body.text(name))) for name in ("fromRepo", "toRepo"))
    with registry.db.begin() as connection:
        registry.repos.move(connection, caller, source, target)
    return JSONResponse({})


@router.put("/api/models/{namespace}/{name}/settings")
def change_settings(registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, body: JsonBody) -> JSONResponse:
    """Set who may see a repository, and whether everyone who sees it may read its files."""
    gated = None
    if "gated" in body:
        wanted = body.value("gated")
        if not isinstance(wanted, str | bool) or wanted not in GATED:
            raise bad_request(f"gated: expected `auto`, `manual` or false, got {shown(wanted)}")
        gated = GATED[wanted]
    change = RepoChange(private=_private(body), gated=gated)  # type: ignore[arg-type]  # one of the three, by GATED
    with registry.db.begin() as connection:
        row = registry.repos.change(connection, caller, repo_id, change)
    visibility = "private" if row.private else "public"
    return JSONResponse({"private": row.private, "visibility": visibility, "gated": row.gated or False})


@router.get("/api/settings/repositories")
@router.get("/api/organizations/{namespace}/settings/repositories")
def own_repositories(
    request: Request,
    registry: RegistryOf,
    caller: CallerOf,
    base: BaseUrl,
    namespace: str | None = None,
    cursor: Annotated[int, Query(ge=0, lt=1 << 31)] = 0,
) -> JSONResponse:
    """Return the repositories of a namespace (default: the caller's) with their sizes.

    `Link` leads to the next page.
    """
    user = user_of(caller)
    shown_columns = (repos.c.id, repos.c.full_name, repos.c.modified_at, repos.c.private, repos.c.used_bytes)
    wanted = select(*shown_columns).where(
        repos.c.namespace == (namespace or user), registry.repos.visible(caller), repos.c.id > cursor
    )
    with registry.db.read() as connection:
        rows = connection.execute(wanted.order_by(repos.c.id).limit(REPOSITORIES_PAGE + 1)).all()
    page, headers = rows[:REPOSITORIES_PAGE], {}
    if len(rows) > len(page):
        headers["Link"] = next_link(request, f"{base}{request.url.path}", cursor=str(page[-1].id))
    return JSONResponse(
        [
            {
                "id": row.full_name,
                "type": "model",
                "updatedAt": iso_time(row.modified_at),
                "visibility": "private" if row.private else "public",
                "storage": row.used_bytes,
            }
            for row in page
        ],
        headers=headers,
    )


# ------------------------------------------------------------ branches and tags
@router.get("/api/models/{namespace}/{name}/refs")
def list_refs(
    request: Request,
    registry: RegistryOf,
    caller: CallerOf,
    repo_id: RepoOf,
    base: BaseUrl,
    include_prs: str | None = None,
    cursor: Annotated[str, Query(pattern=r"^([0-9]{1,18} \S{1,200})?$")] = "",
) -> JSONResponse:
    """Branches and the newest tags with their commits; an alias is a branch for clients. `Link` leads to older tags."""
    with registry.db.read() as connection:
        number = registry.repos.find(connection, caller, repo_id).id
        answer, rest = branches_and_tags(connection, number, cursor=cursor)
    headers = {} if rest is None else {"Link": next_link(request, f"{base}{request.url.path}", cursor=rest)}
    return JSONResponse({**answer, "pullRequests": []} if include_prs else answer, headers=headers)


def branches_and_tags(
    connection: Connection, repo_number: int, *, cursor: str = ""
) -> tuple[dict[str, Any], str | None]:
    """Return a repository's branches and a page of its tags in the Hub's form, and the cursor of the next page.

    The newest tags come first, each page by name; further pages have no branches.
    """
    about = select(refs.c.kind, refs.c.name, refs.c.commit_id, refs.c.created_at).where(refs.c.repo_id == repo_number)
    tags = about.where(refs.c.kind == "tag")
    if cursor:
        time, _, name = cursor.partition(" ")
        older = or_(refs.c.created_at < int(time), refs.c.name < name)
        tags = tags.where(refs.c.created_at <= int(time), older)
    newest = tags.order_by(refs.c.created_at.desc(), refs.c.name.desc()).limit(TAGS_PAGE + 1)
    found = connection.execute(newest).all()
    page, rest = found[:TAGS_PAGE], None
    if len(found) > len(page):
        rest = f"{page[-1].created_at} {page[-1].name}"
    others = () if cursor else connection.execute(about.where(refs.c.kind.in_(("branch", "alias")))).all()

    def listed(prefix: str, rows: Iterable[Any]) -> list[dict[str, Any]]:
        return [
            {"name": ref.name, "ref": f"{prefix}{ref.name}", "targetCommit": ref.commit_id}
            for ref in sorted(rows, key=lambda ref: ref.name)
        ]

    answer = {"branches": listed("refs/heads/", others), "tags": listed("refs/tags/", page), "converts": []}
    return answer, rest


@router.post("/api/models/{namespace}/{name}/tag/{rev}")
def create_tag(
    registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, revision: RevisionOf, body: JsonBody
) -> JSONResponse:
    """Create a tag at a revision; with `overwrite`, an existing one moves there, and readers see one or the other."""
    tag, message = body.text("tag"), body.text_or_none("message", limit=100_000)
    overwrites = body.flag_or_none("overwrite") is True
    with registry.db.begin() as connection:
        registry.repos.create_tag(connection, caller, repo_id, tag, at=revision, message=message, overwrites=overwrites)
    return JSONResponse({})


@router.delete("/api/models/{namespace}/{name}/tag/{rev}")
def delete_tag(registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, tag: RevisionOf) -> JSONResponse:
    """Remove a tag."""
    with registry.db.begin() as connection:
        registry.repos.delete_tag(connection, caller, repo_id, tag)
    return JSONResponse({})


@router.post("/api/models/{namespace}/{name}/branch/{rev}")
def create_branch(
    registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, branch: RevisionOf, request: JsonBody
) -> JSONResponse:
    """Create a branch at `startingPoint`, or at the head of `main`; with `overwrite`, an existing one moves there."""
    start, overwrites = request.text_or_none("startingPoint"), request.flag_or_none("overwrite") is True
    if request.flag_or_none("emptyBranch"):
        raise not_offered("this registry has no empty branches; begin at a commit")
    with registry.db.begin() as connection:
        registry.repos.create_branch(connection, caller, repo_id, branch, start=start, overwrites=overwrites)
    return JSONResponse({})


@router.delete("/api/models/{namespace}/{name}/branch/{rev}")
def delete_branch(registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, branch: RevisionOf) -> JSONResponse:
    """Remove a branch."""
    with registry.db.begin() as connection:
        registry.repos.delete_branch(connection, caller, repo_id, branch)
    return JSONResponse({})


def _repo_of(caller: Caller, body: JsonObject) -> RepoId:
    _check_type(body)
    user = user_of(caller)
    return parse_repo_id(body.text_or_none("organization") or user, body.text("name"))


def _check_type(body: JsonObject) -> None:
    """Raise 400 unless the body describes a model."""
    kind = body.text("type", "model")
    if kind != "model":
        raise bad_request(f"type `{shown(kind)}`: expected model, the only type of this registry")


def _private(body: JsonObject) -> bool | None:
    """Read both forms: new clients send `visibility`, those before 1.0 `private`."""
    visibility = body.text_or_none("visibility")
    if visibility is None:
        return body.flag_or_none("private")
    if visibility not in {"public", "private"}:
        raise bad_request(f"visibility `{shown(visibility)}`: expected public or private")
    return visibility == "private"


REQUESTS_PAGE: Final = 1000
MAX_FIELDS: Final = 50
_REQUESTS: Final = "/api/models/{namespace}/{name}/user-access-request"


@router.post("/{namespace}/{name}/ask-access")
@sent_by(user)
async def ask(request: Request, registry: RegistryOf, caller: CallerOf, repo_id: RepoOf) -> JSONResponse:
    """Ask for access as the caller, with the fields of a form or of JSON; `status` is the answer so far."""
    user = user_of(caller)
    fields = await _fields(request)

    def work() -> str:
        with registry.db.begin() as connection:
            row = registry.repos.find(connection, caller, repo_id)
            return rights.ask(connection, row, user, fields)

    return JSONResponse({"status": await run_in_threadpool(work)})


async def _fields(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").startswith("application/json"):
        body = await json_object(request)
        return {name: body.value(name) for name in body.names()}
    try:
        return dict(parse_qsl((await request.body()).decode("utf-8"), max_num_fields=MAX_FIELDS))
    except ValueError:
        raise bad_request(f"body: expected a form with at most {MAX_FIELDS} fields, or a JSON object") from None


@router.post(f"{_REQUESTS}/cancel")
def withdraw(registry: RegistryOf, caller: CallerOf, repo_id: RepoOf) -> JSONResponse:
    """Take back the caller's own request."""
    user = user_of(caller)
    with registry.db.begin() as connection:
        rights.withdraw(connection, registry.repos.find(connection, caller, repo_id), user)
    return JSONResponse({})


@router.post(f"{_REQUESTS}/grant")
def grant(registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, body: JsonBody) -> JSONResponse:
    """Give a user access, asked or not."""
    with registry.db.begin() as connection:
        row = registry.repos.find_writable(connection, caller, repo_id, "manage")
        rights.grant(connection, row, body.text("user"))
        log_change(connection, caller.by, "access", f"{body.text('user')}: accepted", repo=row.full_name)
    return JSONResponse({})


@router.post(f"{_REQUESTS}/handle")
def handle(registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, body: JsonBody) -> JSONResponse:
    """Accept or reject a user's request, or make it pending again."""
    reason = body.text_or_none("rejectionReason", limit=rights.MAX_REASON_CHARACTERS)
    status = _status(body.text("status"))
    with registry.db.begin() as connection:
        row = registry.repos.find_writable(connection, caller, repo_id, "manage")
        rights.answer(connection, row, _user_in(body), status, reason)
        log_change(connection, caller.by, "access", f"{_user_in(body)}: {status}", repo=row.full_name)
    return JSONResponse({})


@router.get(f"{_REQUESTS}/{{status}}")
def list_requests(
    request: Request,
    registry: RegistryOf,
    caller: CallerOf,
    repo_id: RepoOf,
    base: BaseUrl,
    status: str,
    after: Annotated[str, Query()] = "",
) -> JSONResponse:
    """List the requests that are pending, accepted or rejected; `Link` leads to the next page."""
    wanted = _status(status)
    with registry.db.read() as connection:
        row = registry.repos.find_writable(connection, caller, repo_id, "manage")
        found = rights.listed(connection, row, wanted, after=after, limit=REQUESTS_PAGE + 1)
    page, headers = found[:REQUESTS_PAGE], {}
    if len(found) > len(page):
        headers["Link"] = next_link(request, f"{base}{request.url.path}", after=page[-1].user_name)
    return JSONResponse([_described(one) for one in page], headers=headers)


def _user_in(body: JsonObject) -> str:
    """Return the user whose request a body names: by the user's name, or by the id that the list gives a request."""
    number = body.text_or_none("requestId")
    if number is None:
        return body.text("user")
    try:
        return bytes.fromhex(number).decode()
    except ValueError:
        raise bad_request("requestId: expected one from the list of requests") from None


def _described(row: Row[Any]) -> dict[str, Any]:
    found = {
        "requestId": row.user_name.encode().hex(),
        "user": {"user": row.user_name, "fullname": row.user_name},
        "status": row.status,
        "timestamp": iso_time(row.created_at),
    }
    if row.fields:
        found["fields"] = json.loads(row.fields)
    if row.reason:
        found["rejectionReason"] = row.reason
    return found


def _status(text: str) -> rights.Status:
    found = next((status for status in rights.STATUSES if status == text), None)
    if found is None:
        raise bad_request(f"status `{shown(text)}`: expected one of {', '.join(rights.STATUSES)}")
    return found


FILES_PAGE: Final = 100


@router.post("/api/models/{namespace}/{name}/super-squash/{rev}")
def squash(
    registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, revision: RevisionOf, body: JsonBody
) -> JSONResponse:
    """Replace the commits of a branch by one."""
    branch = revision.removeprefix("refs/heads/")
    title = body.text("message", "", limit=10_000) or f"Squash the branch {branch}"
    with registry.db.begin() as connection:
        lock_space(connection)
        row = registry.repos.find_writable(connection, caller, repo_id)
        made = commits.squash(connection, registry.blobs, row, branch, title=title, author=str(caller.user))
    return JSONResponse({"commitOid": made})


@router.get("/api/models/{namespace}/{name}/lfs-files")
def list_files(
    request: Request,
    registry: RegistryOf,
    caller: CallerOf,
    repo_id: RepoOf,
    base: BaseUrl,
    cursor: Annotated[str, Query()] = "",
) -> JSONResponse:
    """List the LFS files of all commits, by sha256; `Link` leads to the next page."""
    with registry.db.read() as connection:
        row = registry.repos.find_writable(connection, caller, repo_id)
        page, rest = lfs_files.lfs_files(connection, row, after=cursor, most=FILES_PAGE)
    headers = {} if rest is None else {"Link": next_link(request, f"{base}{request.url.path}", cursor=rest)}
    return JSONResponse(
        [
            {
                "fileOid": file.entry.sha256,
                "oid": file.entry.sha256,
                "filename": file.entry.path,
                "size": file.entry.size,
                "pushedAt": iso_time(file.entry.changed_at),
                "ref": file.ref,
            }
            for file in page
        ],
        headers=headers,
    )


@router.post("/api/models/{namespace}/{name}/lfs-files/batch")
def delete_files(registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, body: JsonBody) -> JSONResponse:
    """Remove LFS files from every commit."""
    wanted = body.child("deletions")
    doomed = {parse_sha256(text, what="sha") for text in wanted.texts("sha", most=FILES_PAGE)}
    if wanted.flag_or_none("rewriteHistory") is False:
        raise not_offered("this registry removes LFS files with their history: set rewriteHistory")
    with registry.db.begin() as connection:
        lock_space(connection)
        row = registry.repos.find_writable(connection, caller, repo_id, "manage")
        unknown = doomed - lfs_files.lfs_among(connection, row, doomed)
        if unknown:
            raise bad_request(
                f"`{row.full_name}` has no LFS file {min(unknown)}, expected the sha256 of one; nothing was removed"
            )
        commits.forget_files(connection, registry.blobs, row, doomed)
    return JSONResponse({"success": True})
