"""Hub API: squash a branch, list the LFS files of a repository, and remove them from its history."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Query, Request
from fastapi.responses import JSONResponse

from adapterhub_registry.api.bodies import hub_router
from adapterhub_registry.api.context import BaseUrl, CallerOf, JsonBody, RegistryOf, RepoOf, RevisionOf, next_link
from adapterhub_registry.api.hub.model_info import iso_time
from adapterhub_registry.database.db import lock_space
from adapterhub_registry.errors import bad_request, not_offered
from adapterhub_registry.names import parse_sha256
from adapterhub_registry.repos import history

router = hub_router()
FILES_PAGE: Final = 1000


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
        made = history.squash(connection, registry.blobs, row, branch, title=title, author=str(caller.user))
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
        found = [file for file in history.lfs_files(connection, row) if file.entry.sha256 > cursor]
    page, headers = found[:FILES_PAGE], {}
    if len(found) > len(page):
        headers["Link"] = next_link(request, f"{base}{request.url.path}", cursor=page[-1].entry.sha256)
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
        row = registry.repos.find_writable(connection, caller, repo_id)
        unknown = doomed - {file.entry.sha256 for file in history.lfs_files(connection, row)}
        if unknown:
            raise bad_request(f"`{row.full_name}` has no LFS file {min(unknown)}; nothing was removed")
        history.forget_files(connection, registry.blobs, row, doomed)
    return JSONResponse({"success": True})
