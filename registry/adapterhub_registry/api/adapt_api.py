"""`/api/adapt/v1`: what the Hub's API has no words for. Search by base and rank, versions, yanking, tokens, health.

Clients of the Hub never come here, and everything that they can do stays possible without it.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy import ColumnElement, Row, Select, Table, func, select
from starlette.routing import Match

from adapterhub_registry.access.tokens import Caller, TokenRecord
from adapterhub_registry.api.adapt_models import (
    NAME,
    SHA256,
    Adapter,
    AdapterPage,
    Health,
    Info,
    NewToken,
    Place,
    Places,
    Problem,
    Release,
    Releases,
    SearchQuery,
    TokenFacts,
    TokenList,
    TokenRequest,
    UnyankRequest,
    Yanked,
    YankRequest,
)
from adapterhub_registry.api.context import CallerOf, Registry, RegistryOf, StrictRoute, opened_cursor, sealed_cursor
from adapterhub_registry.api.hub.model_info import iso_time
from adapterhub_registry.database.db import adapters, blobs, commits, releases, repos, tokens
from adapterhub_registry.errors import Refusal, forbidden, unauthorized
from adapterhub_registry.names import known_repo_id
from adapterhub_registry.repos import adapter_search as found
from adapterhub_registry.repos import adapters as index

FEATURES: Final = ("adapters", "blobs", "versions", "yank", "tokens", "tags")
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY")
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
UPLOAD_MODES: Final = ("regular", "lfs", "multipart", "xet")

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request cannot be read"},
    401: {"model": Problem, "description": "A token is needed, or the one sent is not good"},
    422: {"model": Problem, "description": "A member has the wrong type or is out of bounds"},
}
_FORBIDDEN: dict[int | str, dict[str, Any]] = {403: {"model": Problem, "description": "The token has not this right"}}
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "Nothing by that name"}}
_BODY: dict[int | str, dict[str, Any]] = {413: {"model": Problem, "description": "The body is too large"}}

router = APIRouter(prefix="/api/adapt/v1", tags=["adapters"], responses=_PROBLEMS, route_class=StrictRoute)

NamePart = Annotated[str, Path(pattern=NAME)]


@router.get("/info")
def info(registry: RegistryOf) -> Info:
    """What this server is and can do."""
    return Info(
        version=version("adapterhub"),
        features=list(FEATURES),
        upload_modes=list(UPLOAD_MODES),
        anonymous_read=registry.settings.anonymous_read,
    )


@router.get("/adapters", responses=_MISSING)
def search(registry: RegistryOf, caller: CallerOf, query: Annotated[SearchQuery, Query()]) -> AdapterPage:
    """Adapters that meet all conditions, one for each repository, the newest first."""
    _refuse_nobody(registry, caller)
    wanted = found.AdapterQuery(**query.model_dump() | {"cursor": opened_cursor(registry, query.cursor)})
    with registry.db.read() as connection:
        page = found.search_adapters(connection, wanted, registry.repos.visible(caller))
    cursor = sealed_cursor(registry, page.next_cursor)
    return AdapterPage(adapters=[_adapter(row) for row in page.rows], next_cursor=cursor)


@router.get("/adapters/{namespace}/{name}/versions", responses=_MISSING)
def versions(registry: RegistryOf, caller: CallerOf, namespace: NamePart, name: NamePart) -> Releases:
    """Every version of an adapter, the newest first, yanked ones marked."""
    with registry.db.read() as connection:
        repo = registry.repos.find(connection, caller, known_repo_id(namespace, name))
        rows = found.versions_of(connection, repo.id)
    return Releases(repo=repo.full_name, versions=[_release(row) for row in rows])


@router.post("/adapters/{namespace}/{name}/yank", responses={**_FORBIDDEN, **_MISSING, **_BODY})
def yank(registry: RegistryOf, caller: CallerOf, namespace: NamePart, name: NamePart, wanted: YankRequest) -> Releases:
    """Mark a version as one that should not be installed any more. Its bytes stay: locked digests still install."""
    with registry.db.begin() as connection:
        repo = registry.repos.find_writable(connection, caller, known_repo_id(namespace, name))
        index.yank(connection, repo, wanted.version, reason=wanted.reason, by=str(caller.user))
        rows = found.versions_of(connection, repo.id)
    return Releases(repo=repo.full_name, versions=[_release(row) for row in rows])


@router.post("/adapters/{namespace}/{name}/unyank", responses={**_FORBIDDEN, **_MISSING, **_BODY})
def unyank(
    registry: RegistryOf, caller: CallerOf, namespace: NamePart, name: NamePart, wanted: UnyankRequest
) -> Releases:
    """Take the mark off again."""
    with registry.db.begin() as connection:
        repo = registry.repos.find_writable(connection, caller, known_repo_id(namespace, name))
        index.unyank(connection, repo, wanted.version)
        rows = found.versions_of(connection, repo.id)
    return Releases(repo=repo.full_name, versions=[_release(row) for row in rows])


@router.get("/blobs/{sha256}", responses=_MISSING)
def blob(registry: RegistryOf, caller: CallerOf, sha256: Annotated[str, Path(pattern=SHA256)]) -> Places:
    """Where a file with these bytes lies, in repositories that the caller may read."""
    _refuse_nobody(registry, caller)
    with registry.db.read() as connection:
        rows = found.places_of(connection, sha256, registry.repos.visible(caller))
    rows = [row for row in rows if not row.gated or caller.reaches(row.full_name)]
    if not rows:
        raise Refusal(404, "BlobNotFound", f"no file with sha256 {sha256}")
    places = [Place(repo=row.full_name, commit=row.commit_id, path=row.path, size=row.size) for row in rows]
    return Places(sha256=sha256, places=places)


@router.get("/tokens")
def list_tokens(registry: RegistryOf, caller: CallerOf) -> TokenList:
    """The caller's tokens; everybody's for an administrator."""
    _refuse_stranger(caller)
    records = [r for r in registry.tokens.records() if caller.is_admin or r.user == caller.user]
    return TokenList(tokens=[_token(record) for record in records])


@router.post("/tokens", status_code=201, responses={**_FORBIDDEN, **_BODY})
def create_token(registry: RegistryOf, caller: CallerOf, wanted: TokenRequest) -> NewToken:
    """A new token. It is shown this once."""
    _refuse_stranger(caller)
    if not caller.is_admin:
        raise forbidden("only an administrator makes tokens")
    token = registry.tokens.create(
        wanted.user, wanted.role, namespaces=wanted.namespaces, label=wanted.label, days=wanted.days
    )
    return NewToken(token=token)


@router.delete("/tokens/{token_id}", responses={**_FORBIDDEN, **_MISSING})
def revoke_token(
    registry: RegistryOf, caller: CallerOf, token_id: Annotated[int, Path(ge=1, le=2**31 - 1)]
) -> TokenFacts:
    """The token, which from now on opens nothing. Everybody may revoke their own."""
    _refuse_stranger(caller)
    mine = any(record.id == token_id and record.user == caller.user for record in registry.tokens.records())
    if not (caller.is_admin or mine):
        raise forbidden("this is not a token of yours")
    return _token(registry.tokens.revoke(token_id))


@router.get("/healthz")
def healthz(registry: RegistryOf) -> Health:
    """Whether the server and its database answer."""
    with registry.db.read() as connection:
        connection.execute(select(1))
    return Health(status="ok")


@router.get("/metrics", response_class=Response, responses={200: {"content": {METRICS_TYPE: {}}}})
def metrics(registry: RegistryOf, caller: CallerOf) -> Response:
    """How much is here that the caller may see, in the text format of Prometheus.

    What cannot be counted by repository is counted for tokens that see all of them.
    """
    _refuse_nobody(registry, caller)
    visible = registry.repos.visible(caller)
    mine = select(repos.c.id).where(visible)

    def number(table: Table, *conditions: ColumnElement[bool]) -> Select[Any]:
        return select(func.count()).select_from(table).where(table.c.repo_id.in_(mine), *conditions)

    wanted = [
        ("repos", "Repositories", select(func.count()).select_from(repos).where(visible)),
        ("commits", "Commits", number(commits)),
        ("adapters", "Adapters that searches show", number(adapters, adapters.c.is_listed)),
        ("releases", "Versions that were released", number(releases)),
        ("releases_yanked", "Versions yanked", number(releases, releases.c.yanked_at.is_not(None))),
        ("downloads", "Downloads of all repositories", select(func.sum(repos.c.downloads)).where(visible)),
    ]
    if caller.sees_all:
        wanted += [
            ("blobs", "Stored blobs", select(func.count()).select_from(blobs)),
            ("blob_bytes", "Bytes of stored blobs", select(func.sum(blobs.c.size))),
            ("tokens_active", "Tokens not revoked", select(func.count()).where(tokens.c.revoked_at.is_(None))),
        ]
    with registry.db.read() as connection:
        lines = [_metric(f"adapterhub_{name}", text, connection.scalar(count)) for name, text, count in wanted]
    return Response("".join(lines), media_type=METRICS_TYPE)


@router.api_route("/{rest:path}", methods=list(METHODS), include_in_schema=False)
def nothing_else(request: Request, rest: str) -> Response:  # noqa: ARG001 - whatever it is
    """405 with the methods that a path has, 404 for a path that is not here."""
    matched = [route for route in router.routes if route.matches(request.scope)[0] is Match.PARTIAL]
    allowed = sorted({method for route in matched for method in getattr(route, "methods", ())})
    if allowed:
        headers = {"Allow": ", ".join(allowed)}
        raise Refusal(405, "MethodNotAllowed", "this path does not take that method", headers=headers)
    raise Refusal(404, "NotFound", "no such call")


def _metric(name: str, text: str, value: int | None) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} gauge\n{name} {int(value or 0)}\n"


def _refuse_nobody(registry: Registry, caller: Caller) -> None:
    if caller.user is None and not registry.settings.anonymous_read:
        raise unauthorized("this registry is read with a token only")


def _refuse_stranger(caller: Caller) -> None:
    if caller.user is None:
        raise unauthorized()


def _when_or_none(at_ms: int | None) -> str | None:
    return None if at_ms is None else iso_time(at_ms)


def _adapter(row: Row[Any]) -> Adapter:
    return Adapter(
        **index.facts_json(row),
        repo=row.full_name,
        commit=row.commit_id,
        private=row.private,
        downloads=row.downloads,
        last_modified=iso_time(row.modified_at),
    )


def _release(row: Row[Any]) -> Release:
    yanked = None
    if row.yanked_at is not None:
        yanked = Yanked(reason=row.yanked_reason, by=row.yanked_by, at=iso_time(row.yanked_at))
    facts = index.facts_json(row) | {"version": row.released_as}
    return Release(**facts, tag=row.tag, commit=row.commit_id, released_at=iso_time(row.released_at), yanked=yanked)


def _token(record: TokenRecord) -> TokenFacts:
    return TokenFacts(
        id=record.id,
        user=record.user,
        label=record.label,
        role=record.role,
        namespaces=list(record.namespaces),
        created_at=iso_time(record.created_at),
        expires_at=_when_or_none(record.expires_at),
        used_at=_when_or_none(record.used_at),
        revoked_at=_when_or_none(record.revoked_at),
    )
