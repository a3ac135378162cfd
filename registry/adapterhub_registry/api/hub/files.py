"""Hub API: listings of folders, facts about paths, and downloads of files.

The conditions of a request (RFC 9110, section 13) are evaluated against the file's strong ETag. Files have no dates
here and no response carries Last-Modified, so conditions on dates are ignored, as the RFC requires.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, BinaryIO, Final
from urllib.parse import parse_qs, quote, unquote

from fastapi import Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import Row, select
from sqlalchemy.engine import Connection
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from adapterhub.core.specs import COUNTED, COUNTER
from adapterhub_registry.access.callers import ANONYMOUS, Caller
from adapterhub_registry.access.tokens import BadSignature, check, sign
from adapterhub_registry.api.bodies import ThreadedRoute, anyone, hub_router, sent_by
from adapterhub_registry.api.context import (
    BaseUrl,
    CallerOf,
    Registry,
    RegistryOf,
    RepoOf,
    RevisionOf,
    admitted,
    dumped,
    glanced,
    json_object,
    next_link,
)
from adapterhub_registry.api.hub.info import iso_time
from adapterhub_registry.database.db import Database, blobs, places, slices
from adapterhub_registry.database.db import commits as commits_table
from adapterhub_registry.database.trees import FileTree, Totals, TreeFile, key_of
from adapterhub_registry.errors import HttpRefusal, bad_request, entry_not_found, forbidden, unauthorized
from adapterhub_registry.names import RESERVED_NAMESPACES, RepoId, known_repo_id, parse_path, split
from adapterhub_registry.repos import commits
from adapterhub_registry.repos.adapter_facts import ADAPTER_CONFIG, CONFIG
from adapterhub_registry.repos.commits import parents_of

router = hub_router()
TREE_PAGE: Final = 1000
EXPANDED_PAGE: Final = 50  # as on the Hub
SHOWN_TITLE_CHARACTERS: Final = 500  # one commit's title comes with each of its files
GONE_TITLE: Final = "(removed from the history)"
MAX_PATHS: Final = 10_000
SMALL_BYTES: Final = 1 << 16
"""A file of at most this size is read before the answer: for more, the server waits between the head and the bytes."""
ZERO_COPY: Final = "http.response.zerocopysend"  # of ASGI; see `operations/server.py`
_RANGE = re.compile(r"(?i:bytes)=([0-9]{0,18})-([0-9]{0,18})")
_TRUE = {"true", "True", "1"}


# ------------------------------------------------------------ tree
class TreeQuery(BaseModel):
    """`recursive` includes subfolders; `expand` adds the commit that last changed an entry."""

    recursive: bool = False
    expand: bool = False
    limit: int = Field(default=TREE_PAGE, ge=1, le=TREE_PAGE)
    cursor: str = ""


@router.get("/api/models/{namespace}/{name}/tree/{rev}")
@router.get("/api/models/{namespace}/{name}/tree/{rev}/{path:path}")
def list_tree(
    request: Request,
    registry: RegistryOf,
    caller: CallerOf,
    repo_id: RepoOf,
    revision: RevisionOf,
    base: BaseUrl,
    query: Annotated[TreeQuery, Query()],
) -> JSONResponse:
    """List files and folders below a folder of a revision, by path; `Link` leads to the next page."""
    folder = unquote(request.path_params.get("path", "")).strip("/")
    if folder:
        parse_path(folder)
    limit = min(query.limit, EXPANDED_PAGE) if query.expand else query.limit
    with registry.db.read() as connection:
        row = registry.repos.find(connection, caller, repo_id)
        commit_id = commits.find_commit(connection, row, revision)
        tree = commits.tree_of(connection, row.id, commit_id)
        if folder and next(tree.walk(folder), None) is None:
            raise entry_not_found(folder, commit_id)
        listed = _walk_deep if query.recursive else walk_flat
        entries = list(islice(listed(tree, folder, query.cursor), limit + 1))
        page = _described(connection, row, entries[:limit], expand=query.expand)
    headers = {"X-Repo-Commit": commit_id}
    if len(entries) > limit:
        place = f"{base}/api/models/{repo_id}/tree/{quote(revision, safe='')}"
        place += f"/{quote(folder, safe='')}" if folder else ""
        headers["Link"] = next_link(request, place, cursor=page[-1]["path"])
    return JSONResponse(page, headers=headers)


@router.post("/api/models/{namespace}/{name}/paths-info/{rev}")
@sent_by(anyone)
async def paths_info(
    request: Request, registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, revision: RevisionOf
) -> Response:
    """Return the facts about some paths; leaves out missing ones. Clients send a form, or JSON."""
    paths, expand = await _requested_paths(request)
    if len(paths) > MAX_PATHS:
        raise bad_request(f"{len(paths)} paths, expected at most {MAX_PATHS}")

    def look() -> bytes:
        wanted = sorted({path.strip("/") for path in paths} - {""}, key=key_of)
        with registry.db.read() as connection:
            row = registry.repos.find(connection, caller, repo_id)
            commit_id = commits.find_commit(connection, row, revision)
            tree = commits.tree_of(connection, row.id, commit_id)
            found = []
            for start in range(0, len(wanted), TREE_PAGE):
                entries = [entry for path in wanted[start : start + TREE_PAGE] if (entry := _entry_at(tree, path))]
                found += [dumped(item) for item in _described(connection, row, entries, expand=expand)]
        return b"[" + b",".join(found) + b"]"

    return Response(await run_in_threadpool(look), media_type="application/json")


async def _requested_paths(request: Request) -> tuple[list[str], bool]:
    if request.headers.get("content-type", "").startswith("application/json"):
        body = await json_object(request)
        return body.texts("paths", most=MAX_PATHS), body.value("expand") is True
    try:
        form = parse_qs((await request.body()).decode("utf-8"), max_num_fields=MAX_PATHS + 10)
    except ValueError:
        raise bad_request("body: expected a form with `paths` and `expand`") from None
    return form.get("paths", []), form.get("expand", [""])[0] in _TRUE


@dataclass(frozen=True, slots=True)
class TreeFolder:
    """A folder in a listing, with the sums over its files."""

    path: str
    totals: Totals


def _walk_deep(tree: FileTree, folder: str, cursor: str) -> Iterator[TreeFile | TreeFolder]:
    """Files and folders below `folder` after `cursor`; each folder precedes its content."""
    listed = max(key_of(cursor), key_of(folder))
    for entry in tree.walk(folder, after=cursor):
        for parent in reversed(parents_of(entry.path)):
            if key_of(parent) > listed:
                yield TreeFolder(parent, tree.totals(parent))
        listed = key_of(entry.path)
        yield entry


def walk_flat(tree: FileTree, folder: str, cursor: str) -> Iterator[TreeFile | TreeFolder]:
    """Files and folders directly in `folder` after `cursor`."""
    start = len(folder) + 1 if folder else 0
    while (entry := next(tree.walk(folder, past=cursor), None)) is not None:
        end = entry.path.find("/", start)
        cursor = entry.path if end == -1 else entry.path[:end]
        yield entry if end == -1 else TreeFolder(cursor, tree.totals(cursor))


def _entry_at(tree: FileTree, path: str) -> TreeFile | TreeFolder | None:
    entry = tree.first_below(path)
    return TreeFolder(path, tree.totals(path)) if entry is not None and entry.path != path else entry


def _described(
    connection: Connection, repo: Row[Any], entries: Sequence[TreeFile | TreeFolder], *, expand: bool
) -> list[dict[str, Any]]:
    found = [_folder(entry) if isinstance(entry, TreeFolder) else file_facts(entry) for entry in entries]
    if expand:
        changed = [entry.totals.changed_in for entry in entries]
        query = select(commits_table.c.id, commits_table.c.title, commits_table.c.created_at).where(
            commits_table.c.repo_id == repo.id, commits_table.c.id.in_(set(changed))
        )
        made = {row.id: row for row in connection.execute(query)}
        for item, entry, commit_id in zip(found, entries, changed, strict=True):
            last = made.get(commit_id)
            title = last.title[:SHOWN_TITLE_CHARACTERS] if last is not None else GONE_TITLE
            item["lastCommit"] = {"id": commit_id, "title": title, "date": iso_time(entry.totals.changed_at)}
    return found


def _folder(entry: TreeFolder) -> dict[str, Any]:
    # not git's tree id, which needs file modes; clients only need an id that changes with the content
    return {"type": "directory", "path": entry.path, "oid": f"{entry.totals.digest:040x}", "size": 0}


def file_facts(entry: TreeFile) -> dict[str, Any]:
    """Return a file as listings describe it."""
    found: dict[str, Any] = {"type": "file", "path": entry.path, "oid": entry.oid, "size": entry.size}
    if entry.lfs:
        found["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": len(entry.pointer)}
    return found


# ------------------------------------------------------------ resolve
RESOLVE: Final = "/{namespace}/{name}/resolve/{rev}/{path:path}"


def resolve(request: Request) -> Response:
    """Return a file: HEAD returns its headers without a redirect, GET its bytes or one range of them."""
    registry: Registry = request.app.state.registry
    given = request.path_params
    revision, name = unquote(given["rev"]), f"{given['namespace']}/{given['name']}"
    caller, top = glanced(request, registry, commits.top_of(revision), full_name=name, revision=revision)
    repo_id, path = known_repo_id(given["namespace"], given["name"]), parse_path(unquote(given["path"]))
    found = registry.repos.find_file_in(caller, top, path)
    if found is None:
        with registry.db.read() as connection:
            found = registry.repos.find_file(connection, caller, repo_id, revision, path)
    counter = request.headers.get(COUNTER) if request.method == "GET" else None
    counts = counter is not None and _stands_for_download(registry.db, found, path, counter)
    return _sent(request, registry, found, counts=counts)


def _sent(request: Request, registry: Registry, found: commits.FoundFile, *, counts: bool = False) -> Response:
    """Return the answer to a request for a file that its sender may read.

    `counts` where it is a download of the adapter.
    """
    entry, commit_id, warning = found.entry, found.commit_id, found.warning
    etag = f'"{entry.etag}"'
    headers = {"X-Repo-Commit": commit_id, "ETag": etag}
    if warning:
        headers["X-HF-Warning"] = warning
    answered = answer_to(request.headers, headers)
    if answered is not None:
        return answered
    headers |= {
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(entry.path.rpartition('/')[2])}",
        "X-Content-Type-Options": "nosniff",
    }
    if entry.lfs:
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(entry.size)}
    kind = "application/octet-stream" if entry.lfs else "text/plain; charset=utf-8"
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(entry.size)}, media_type=kind)
    start, end, status = 0, entry.size, 200
    has_link = entry.lfs and entry.size and not is_conditional(request.headers)
    link = registry.blobs.download_link(entry.sha256) if has_link else None
    wanted = None
    if link is None and wants_range(request.headers, etag):
        wanted = _range(request.headers.get("range", ""), entry.size)
    if counts:
        registry.downloads.count(found.repo_id)
    if link is not None:
        return Response(status_code=302, headers={**headers, "Location": link, "Cache-Control": "no-store"})
    if wanted is not None:
        start, end = wanted
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
    headers["Content-Length"] = str(end - start)
    if end - start <= SMALL_BYTES:
        small = b"".join(registry.blobs.open(entry.sha256, start, end))
        return Response(small, status_code=status, headers=headers, media_type=kind)
    file = registry.blobs.file(entry.sha256) if ZERO_COPY in request.scope.get("extensions", {}) else None
    if file is not None:
        return _FileAnswer(file, start, end - start, status=status, headers=headers, kind=kind)
    content = registry.blobs.open(entry.sha256, start, end)
    return StreamingResponse(content, status_code=status, headers=headers, media_type=kind)


class _FileAnswer(Response):
    """Bytes of an open file, which go to the client without a copy in this process."""

    def __init__(
        self, file: BinaryIO, start: int, count: int, *, status: int, headers: dict[str, str], kind: str
    ) -> None:
        super().__init__(status_code=status, headers=headers, media_type=kind)
        self._file, self._start, self._count = file, start, count

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the head, then the bytes."""
        with self._file:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers},
            )
            await send({"type": ZERO_COPY, "file": self._file, "offset": self._start, "count": self._count})


class FilesRoute(ThreadedRoute):
    """`resolve` before all other routes."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether this is a file of a repository; the other routes have the namespaces that none may have."""
        found, inner = super().matches(scope)
        if found is Match.FULL and inner["path_params"]["namespace"].lower() in RESERVED_NAMESPACES:
            return Match.NONE, {}
        return found, inner


SOONEST: Final = FilesRoute(RESOLVE, resolve, methods=["GET", "HEAD"], include_in_schema=False)
router.add_api_route(RESOLVE, resolve, methods=["GET", "HEAD"], route_class_override=ThreadedRoute)


# ------------------------------------------------------------ files for git-lfs
LFS_FILE: Final = "/_lfs/file/{token}"
_LFS_READ: Final = "lfs-read"


def lfs_links(registry: Registry, caller: Caller, repo_id: RepoId, base: str, oids: Sequence[str]) -> dict[str, Any]:
    """Return the signed download link of each object of a repository that the caller may read, with its size.

    Raises:
        HttpRefusal: 401, 403 or 404 as of its files.
    """
    found: dict[str, Any] = {}
    with registry.db.read() as connection:
        row = registry.repos.find_files(connection, caller, repo_id)
        for some in slices(sorted(set(oids))):
            named = select(places.c.sha256).where(places.c.repo_id == row.id, places.c.sha256.in_(some)).distinct()
            wanted = select(blobs.c.sha256, blobs.c.size).where(blobs.c.sha256.in_(named))
            sizes = {blob.sha256: blob.size for blob in connection.execute(wanted)}
            for oid, size in sizes.items():
                claims = {"repo": row.full_name, "oid": oid, "token": caller.token_id, "purpose": _LFS_READ}
                signed = sign(claims, registry.settings.secret, registry.settings.limits.href_ttl_s)
                found[oid] = (size, f"{base}{LFS_FILE.format(token=signed)}")
    return found


@router.api_route(LFS_FILE, methods=["GET", "HEAD"])
def lfs_file(request: Request, registry: RegistryOf, token: str) -> Response:
    """Return a file of a signed link, while the token for which it was signed works and may read the repository."""
    try:
        claims = check(token, registry.settings.secret, purpose=_LFS_READ)
    except BadSignature as problem:
        raise forbidden(f"download link: {problem}; get the file again by its own address") from None
    number = claims["token"]
    caller = ANONYMOUS if number is None else registry.tokens.caller_numbered(number)
    if caller is None:
        raise unauthorized(
            "the token for which this was signed is revoked or has expired; get the file again with another token"
        )
    admitted(request, registry, caller)
    with registry.db.read() as connection:
        row = registry.repos.find_files(connection, caller, known_repo_id(*split(claims["repo"])))
        mine = (places.c.repo_id == row.id) & (places.c.sha256 == claims["oid"])
        place = connection.execute(select(places.c.commit_id, places.c.path).where(mine).limit(1)).one_or_none()
        if place is None:
            raise entry_not_found(claims["oid"])
        entry = commits.file_at(connection, row.id, place.commit_id, place.path)
    return _sent(
        request, registry, commits.FoundFile(repo_id=row.id, commit_id=place.commit_id, entry=entry, warning=None)
    )


def _stands_for_download(database: Database, found: commits.FoundFile, path: str, counter: str) -> bool:
    """Return whether to count a repository download: of all its files, only the configuration counts.

    `adapt` names the request that stands for its download: it may have the configuration from another answer.
    """
    if counter == COUNTED:
        return True
    if path != CONFIG:
        return path == ADAPTER_CONFIG
    try:
        with database.read() as connection:
            commits.file_at(connection, found.repo_id, found.commit_id, ADAPTER_CONFIG)
    except HttpRefusal:
        return True
    return False


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Parse a Range header as `[start, end)`; None (the whole file) for no range, several, or a malformed one.

    Raises:
        HttpRefusal: 416, with the file's size.
    """
    found = _RANGE.fullmatch(header)
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < int(first):
            return None
    if start >= end:
        raise HttpRefusal(
            416,
            "RangeNotSatisfiable",
            "the range lies outside the file, expected a range within its size",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, end


NAMES: Final = ("if-match", "if-none-match", "if-range", "if-modified-since", "if-unmodified-since")
_OPAQUE = r'"[\x21\x23-\x7e\x80-\xff]*"'
_TAG = re.compile(rf"(W/)?({_OPAQUE})")
_ITEM = rf"[ \t]*(?:(?:W/)?{_OPAQUE}[ \t]*)?"  # may be empty; no two adjacent repeats, so matching takes linear time
_LIST = re.compile(rf"{_ITEM}(?:,{_ITEM})*")


def is_conditional(headers: Headers) -> bool:
    """Whether a request has a condition. Only this server can evaluate it: a bucket has other ETags, and dates."""
    return any(name in headers for name in NAMES)


def answer_to(headers: Headers, facts: Mapping[str, str]) -> Response | None:
    """304 when the client has the file; None when the server must send it. `facts` holds the ETag and other headers.

    Raises:
        HttpRefusal: 412 when If-Match names another file.
    """
    etag = facts["ETag"]
    if "if-match" in headers and not _names(headers, "if-match", etag, weak_too=False):
        raise HttpRefusal(
            412, "PreconditionFailed", "If-Match names another file, expected the ETag of this one", headers=facts
        )
    if "if-none-match" in headers and _names(headers, "if-none-match", etag, weak_too=True):
        return Response(status_code=304, headers=facts)
    return None


def wants_range(headers: Headers, etag: str) -> bool:
    """Return whether a Range header applies: when If-Range names another file, the client gets the whole file."""
    return headers.getlist("if-range") in ([], [etag])


def _names(headers: Headers, name: str, etag: str, *, weak_too: bool) -> bool:
    """Return whether the list in the headers `name` contains the ETag; a malformed list contains nothing."""
    text = ",".join(headers.getlist(name))
    if text.strip(" \t") == "*":
        return True
    if not _LIST.fullmatch(text):
        return False
    return any(opaque == etag and (weak_too or not weak) for weak, opaque in _TAG.findall(text))
