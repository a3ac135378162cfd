"""The routes `/api/adapt/v1`, which the Hub's API lacks: search by base and rank, versions, yanking, tokens, health.

Hub clients never call these routes and need none of them.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import StringConstraints
from sqlalchemy import ColumnElement, Row, Select, Table, func, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.routing import Match

from adapterhub.formats.administration import NewToken, Token
from adapterhub_registry.access.tokens import Caller
from adapterhub_registry.api import events_api, tests_api, versions_api
from adapterhub_registry.api.adapt_models import (
    NAME,
    SHA256,
    USER_NAME,
    BlobPlace,
    BlobPlaces,
    Health,
    ListedAdapter,
    ListedAdapters,
    ListedRelease,
    Log,
    ProblemAnswer,
    ReleasePage,
    ReleaseQuery,
    Releases,
    SearchQuery,
    ServerInfo,
    TokenList,
    TokenRequest,
    UnyankRequest,
    UserList,
    YankedRelease,
    YankedReleases,
    YankRequest,
    adapt_router,
)
from adapterhub_registry.api.bodies import ThreadedRoute, hub_router, sent_by
from adapterhub_registry.api.context import (
    CallerOf,
    Registry,
    RegistryOf,
    caller_of,
    dumped,
    opened_cursor,
    query_of,
    reading,
    sealed_cursor,
    user_of,
)
from adapterhub_registry.api.hub.info import iso_time
from adapterhub_registry.api.versions_api import info_of, releases_of, why_yanked
from adapterhub_registry.database.db import adapters, blobs, commits, releases, repos, tokens
from adapterhub_registry.database.search_tables import counted
from adapterhub_registry.errors import HttpRefusal, forbidden, unauthorized
from adapterhub_registry.names import known_repo_id
from adapterhub_registry.repos import adapters as index
from adapterhub_registry.repos import search as found
from adapterhub_registry.storage.blobs import StoreUnreachable

MAX_DIGESTS: Final = 50
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY")
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_FORBIDDEN: dict[int | str, dict[str, Any]] = {
    403: {"model": ProblemAnswer, "description": "The token lacks the right"}
}
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": ProblemAnswer, "description": "Not found"}}
_BODY: dict[int | str, dict[str, Any]] = {413: {"model": ProblemAnswer, "description": "The body is too large"}}

router = adapt_router()

NamePart = Annotated[str, Path(pattern=NAME)]


@router.get("/info")
def info(registry: RegistryOf) -> ServerInfo:
    """The version and the features of this server."""
    return info_of(registry)


def search(request: Request) -> Response:
    """Adapters that meet all conditions, one for each repository: newest first, or at most 200 by relevance."""
    registry: Registry = request.app.state.registry
    with reading(request, registry) as (connection, caller):
        query = query_of(request, SearchQuery)
        registry.repos.check_may_read(caller)
        asked = query.model_dump(exclude={"rank_by", "by"}) | {"cursor": opened_cursor(registry, query.cursor)}
        wanted = found.AdapterQuery(**asked, by_relevance=query.rank_by == "relevance" or query.by == "meaning")
        rank = registry.nearest.ranked if wanted.is_ranked and registry.nearest.serves(wanted.q, query.by) else None
        page = found.search_adapters(connection, wanted, registry.repos.sight(caller), rank)
        answer = ListedAdapters(
            adapters=[_adapter(row, page.fits.get(row.repo_id)) for row in page.rows],
            by=None if not wanted.is_ranked else "words" if rank is None else "meaning",
            next_cursor=sealed_cursor(registry, page.next_cursor),
        )
    return Response(dumped(answer), media_type="application/json")


def _documented(query: Annotated[SearchQuery, Query()]) -> None:
    """The parameters of `search` for the OpenAPI document."""


router.add_api_route(
    "/adapters",
    search,
    methods=["GET"],
    response_model=ListedAdapters,
    responses=_MISSING,
    dependencies=[Depends(_documented)],
    route_class_override=ThreadedRoute,
)


@router.post("/adapters/{namespace}/{name}/yank", responses={**_FORBIDDEN, **_MISSING, **_BODY})
def yank(registry: RegistryOf, caller: CallerOf, namespace: NamePart, name: NamePart, wanted: YankRequest) -> Releases:
    """Yank a version: nothing new installs it. Its bytes stay, so that locked digests still install."""
    with registry.db.begin() as connection:
        repo = registry.repos.find_writable(connection, caller, known_repo_id(namespace, name))
        index.yank(connection, repo, wanted.version, reason=wanted.reason, by=str(caller.user))
        return releases_of(connection, repo)


@router.post("/adapters/{namespace}/{name}/unyank", responses={**_FORBIDDEN, **_MISSING, **_BODY})
def unyank(
    registry: RegistryOf, caller: CallerOf, namespace: NamePart, name: NamePart, wanted: UnyankRequest
) -> Releases:
    """Undo a yank."""
    with registry.db.begin() as connection:
        repo = registry.repos.find_writable(connection, caller, known_repo_id(namespace, name))
        index.unyank(connection, repo, wanted.version)
        return releases_of(connection, repo)


@router.get("/releases", responses=_MISSING)
def releases_in(registry: RegistryOf, caller: CallerOf, query: Annotated[ReleaseQuery, Query()]) -> ReleasePage:
    """Every release in a namespace, yanked ones included; a mirror learns from it what it lacks."""
    registry.repos.check_may_read(caller)
    cursor = opened_cursor(registry, query.cursor)
    with registry.db.read() as connection:
        visible = registry.repos.visible(caller)
        rows, position = index.releases_in(connection, query.namespace, visible, cursor=cursor, limit=query.limit)
    listed = [
        ListedRelease(
            repo=row.full_name,
            name=row.name,
            version=row.version,
            digest=f"sha256:{row.digest}",
            commit=row.commit_id,
            yanked=row.yanked_at is not None,
        )
        for row in rows
    ]
    return ReleasePage(releases=listed, next_cursor=sealed_cursor(registry, position))


@router.get("/yanked")
def yanked(
    registry: RegistryOf,
    caller: CallerOf,
    digest: Annotated[list[Annotated[str, StringConstraints(pattern=SHA256)]], Query(max_length=MAX_DIGESTS)],
) -> YankedReleases:
    """The yanked releases among builds with these digests: one request for all that a client has installed."""
    registry.repos.check_may_read(caller)
    with registry.db.read() as connection:
        rows = index.yanked_of(connection, digest, registry.repos.visible(caller))
    return YankedReleases(
        releases=[
            YankedRelease(
                repo=row.full_name, version=row.version, digest=f"sha256:{row.digest}", yanked=why_yanked(row)
            )
            for row in rows
        ]
    )


@router.get("/blobs/{sha256}", responses=_MISSING)
def blob(registry: RegistryOf, caller: CallerOf, sha256: Annotated[str, Path(pattern=SHA256)]) -> BlobPlaces:
    """The locations of a file with these bytes, in repositories that the caller may read."""
    registry.repos.check_may_read(caller)
    with registry.db.read() as connection:
        rows = index.places_of(connection, sha256, registry.repos.visible(caller))
    rows = [row for row in rows if not row.gated or caller.reaches(row.full_name)]
    if not rows:
        raise HttpRefusal(404, "BlobNotFound", f"no file with sha256 {sha256}")
    places = [BlobPlace(repo=row.full_name, commit=row.commit_id, path=row.path, size=row.size) for row in rows]
    return BlobPlaces(sha256=sha256, places=places)


async def administrator(request: Request, registry: Registry) -> None:
    """An administrator, as the sender of a body."""
    _administrator(await caller_of(request, registry))


@router.get("/tokens")
def list_tokens(registry: RegistryOf, caller: CallerOf) -> TokenList:
    """The caller's tokens; for an administrator, all tokens."""
    user_of(caller)
    records = [r for r in registry.tokens.records() if caller.is_admin or r.user == caller.user]
    return TokenList(tokens=records)


@router.post("/tokens", status_code=201, responses={**_FORBIDDEN, **_BODY})
@sent_by(administrator)
def create_token(registry: RegistryOf, caller: CallerOf, wanted: TokenRequest) -> NewToken:
    """Create a token; only this response shows it."""
    actor = _administrator(caller)
    token = registry.tokens.by(actor).create(
        wanted.user, wanted.role, namespaces=wanted.namespaces, label=wanted.label, days=wanted.days
    )
    return NewToken(token=token, user=wanted.user, role=wanted.role)


@router.delete("/tokens/{token_id}", responses={**_FORBIDDEN, **_MISSING})
def revoke_token(registry: RegistryOf, caller: CallerOf, token_id: Annotated[int, Path(ge=1, le=2**31 - 1)]) -> Token:
    """Revoke a token. Every user may revoke their own."""
    user = user_of(caller)
    mine = any(record.id == token_id and record.user == user for record in registry.tokens.records())
    if not (caller.is_admin or mine):
        raise forbidden("the token belongs to another user")
    return registry.tokens.by(caller.actor).revoke(token_id)


@router.get("/users", responses=_FORBIDDEN)
def list_users(registry: RegistryOf, caller: CallerOf) -> UserList:
    """The users, for an administrator."""
    _administrator(caller)
    return UserList(users=registry.tokens.users())


@router.delete("/users/{name}", responses={**_FORBIDDEN, **_MISSING})
def revoke_user(registry: RegistryOf, caller: CallerOf, name: Annotated[str, Path(pattern=USER_NAME)]) -> TokenList:
    """Revoke all tokens of a user. The user's repositories stay."""
    actor = _administrator(caller)
    return TokenList(tokens=registry.tokens.by(actor).revoke_user(name))


@router.get("/log", responses=_FORBIDDEN)
def log(registry: RegistryOf, caller: CallerOf) -> Log:
    """Who created and revoked tokens, for an administrator."""
    _administrator(caller)
    return Log(entries=registry.tokens.log())


@router.get("/healthz")
def healthz(registry: RegistryOf) -> Health:
    """Check that the server and its database respond."""
    with registry.db.read() as connection:
        connection.execute(select(1))
    return Health(status="ok")


@router.get("/metrics", response_class=Response, responses={200: {"content": {METRICS_TYPE: {}}}})
def metrics(registry: RegistryOf, caller: CallerOf) -> Response:
    """The size of the registry as far as the caller may see it, in the text format of Prometheus.

    Only a token that sees every repository gets the counts that no repository owns.
    """
    registry.repos.check_may_read(caller)
    visible = registry.repos.visible(caller)
    mine = select(repos.c.id).where(visible)

    def number(table: Table, *conditions: ColumnElement[bool]) -> Select[Any]:
        rows = select(func.count()).select_from(table).where(*conditions)
        return rows if caller.sees_all else rows.where(table.c.repo_id.in_(mine))

    wanted = [
        ("repos", "Repositories", select(func.count()).select_from(repos).where(visible)),
        ("commits", "Commits", number(commits)),
        ("adapters", "Adapters in search results", number(adapters, adapters.c.is_listed)),
        ("releases", "Released versions", number(releases)),
        ("releases_yanked", "Yanked versions", number(releases, releases.c.yanked_at.is_not(None))),
        ("downloads", "Downloads of all repositories", select(func.sum(repos.c.downloads)).where(visible)),
    ]
    if caller.sees_all:
        wanted += [
            ("blobs", "Stored blobs", select(func.count()).select_from(blobs)),
            ("blob_bytes", "Bytes of stored blobs", select(func.sum(blobs.c.size))),
            ("tokens_active", "Tokens not revoked", select(func.count()).where(tokens.c.revoked_at.is_(None))),
        ]
    with registry.db.read() as connection:
        known = counted(connection) if caller.sees_all else {}
        lines = [
            _metric(f"adapterhub_{name}", text, known[name] if name in known else connection.scalar(count))
            for name, text, count in wanted
        ]
    return Response("".join(lines), media_type=METRICS_TYPE)


router.routes += [*events_api.router.routes, *tests_api.router.routes, *versions_api.router.routes]


@router.api_route("/{rest:path}", methods=list(METHODS), include_in_schema=False)
def nothing_else(request: Request) -> Response:
    """405 with the methods of a known path, 404 for an unknown path."""
    matched = [route for route in router.routes if route.matches(request.scope)[0] is Match.PARTIAL]
    allowed = sorted({method for route in matched for method in getattr(route, "methods", ())})
    if allowed:
        headers = {"Allow": ", ".join(allowed)}
        raise HttpRefusal(405, "MethodNotAllowed", "the path does not allow this method", headers=headers)
    raise HttpRefusal(404, "NotFound", "no such route")


def _administrator(caller: Caller) -> str:
    """The administrator of a request, as the log names it; raises 401 or 403 for anyone else."""
    user_of(caller)
    if not caller.is_admin:
        raise forbidden("this needs the token of an administrator: role `admin`, namespaces `*`")
    return caller.actor


def _metric(name: str, text: str, value: int | None) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} gauge\n{name} {int(value or 0)}\n"


def _adapter(row: Row[Any], fit: found.Fit | None) -> ListedAdapter:
    return ListedAdapter(
        **index.facts_json(row),
        repo=row.full_name,
        commit=row.commit_id,
        private=row.private,
        downloads=row.downloads,
        last_modified=iso_time(row.modified_at),
        score=fit.score if fit else None,
        matched=fit.matched if fit else None,
    )


operations_router = hub_router()


@operations_router.get("/healthz")
def parts_health(registry: RegistryOf) -> JSONResponse:
    """200 when the database and the blobs respond; else 503 that names the failing part; the log has the cause."""
    parts = {"database": "ok", "blobs": "ok"}
    try:
        with registry.db.read() as connection:
            connection.execute(select(1))
    except SQLAlchemyError:
        parts["database"] = "unreachable"
    try:
        registry.blobs.check()
    except StoreUnreachable:
        parts["blobs"] = "unreachable"
    healthy = set(parts.values()) == {"ok"}
    return JSONResponse({"status": "ok" if healthy else "unreachable", **parts}, status_code=200 if healthy else 503)


@operations_router.get("/metrics")
def counters(registry: RegistryOf, caller: CallerOf) -> Response:
    """The counters of this server since its start; `/api/adapt/v1/metrics` measures the content of the registry.

    The counters include the traffic of private repositories, so the caller needs a token that sees all of them.
    """
    if caller.user is None:
        raise unauthorized("metrics need a token that reads all namespaces")
    if not caller.sees_all:
        raise forbidden("metrics need a token that reads all namespaces: `--role read --namespaces '*'`")
    return Response(registry.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)
