"""The routes `/api/adapt/v1`, which the Hub's API lacks: search by base and rank, versions, yanking, tokens, health.

Hub clients never call these routes and need none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Annotated, Any, Final

import anyio
import anyio.to_thread
from fastapi import Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import StringConstraints
from sqlalchemy import Row, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.routing import Match

from adapterhub.formats.administration import NewToken, Token
from adapterhub_registry.api import (
    events_api,
    log_api,
    members_api,
    namespaces_api,
    publish_api,
    sign_in_api,
    tests_api,
    trusted_api,
    versions_api,
)
from adapterhub_registry.api.adapt_models import (
    FORBIDDEN,
    MISSING,
    SHA256,
    TOO_LARGE,
    USER_NAME,
    AdapterOf,
    BlobPlace,
    BlobPlaces,
    Health,
    ListedAdapter,
    ListedAdapters,
    ListedRelease,
    NamePage,
    NumberPage,
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
from adapterhub_registry.api.bodies import ThreadedRoute, hub_router, sent_by, user
from adapterhub_registry.api.context import (
    CallerOf,
    Registry,
    RegistryOf,
    administrator_of,
    dumped,
    opened_cursor,
    query_of,
    reading,
    sealed_cursor,
    user_of,
)
from adapterhub_registry.api.hub.info import iso_time
from adapterhub_registry.api.versions_api import info_of, releases_of, why_yanked
from adapterhub_registry.database.counting import counted
from adapterhub_registry.errors import AWAY_RETRY_S, HttpRefusal, forbidden, no_such_route, unauthorized
from adapterhub_registry.repos import adapters as index
from adapterhub_registry.repos import search as found
from adapterhub_registry.repos.bases import kin_digests
from adapterhub_registry.storage.blobs import StoreUnreachable

MAX_DIGESTS: Final = 50
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY")
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

router = adapt_router()


@router.get("/info")
def info(registry: RegistryOf) -> ServerInfo:
    """Return the version and the features of this server."""
    return info_of(registry)


def search(request: Request) -> Response:
    """Adapters that meet all conditions, one for each repository: newest first, or at most 200 by relevance."""
    registry: Registry = request.app.state.registry
    with reading(request, registry) as (connection, caller):
        query = query_of(request, SearchQuery)
        registry.repos.check_may_read(caller)
        asked = query.model_dump(exclude={"rank_by", "by"}) | {"cursor": opened_cursor(registry, query.cursor)}
        kin = kin_digests(connection, query.base_sha256, registry.repos.readable(caller))
        wanted = found.AdapterQuery(
            **asked, kin=kin, by_relevance=query.rank_by == "relevance" or query.by == "meaning"
        )
        is_meant = wanted.is_ranked and registry.nearest.serves(connection, wanted.q, query.by)
        rank = registry.nearest.ranked if is_meant else None
        page = found.search_adapters(connection, wanted, registry.repos.sight(caller), rank)
        answer = ListedAdapters(
            adapters=[_adapter(row, page.fits.get(row.repo_id)) for row in page.rows],
            by=None if not wanted.is_ranked else "words" if rank is None else "meaning",
            next_cursor=sealed_cursor(registry, page.next_cursor),
        )
    return Response(dumped(answer), media_type="application/json")


def _documented(query: Annotated[SearchQuery, Query()]) -> None:
    """Declare the parameters of `search` for the OpenAPI document."""


router.add_api_route(
    "/adapters",
    search,
    methods=["GET"],
    response_model=ListedAdapters,
    responses=MISSING,
    dependencies=[Depends(_documented)],
    route_class_override=ThreadedRoute,
)


@router.post("/adapters/{namespace}/{name}/yank", responses={**FORBIDDEN, **MISSING, **TOO_LARGE})
def yank(registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf, wanted: YankRequest) -> Releases:
    """Yank a version: nothing new installs it. Its bytes stay, so that locked digests still install."""
    with registry.db.begin() as connection:
        repo = registry.repos.find_writable(connection, caller, repo_id, "release")
        index.yank(connection, repo, wanted.version, reason=wanted.reason, by=caller.by)
        return releases_of(connection, repo)


@router.post("/adapters/{namespace}/{name}/unyank", responses={**FORBIDDEN, **MISSING, **TOO_LARGE})
def unyank(registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf, wanted: UnyankRequest) -> Releases:
    """Undo a yank."""
    with registry.db.begin() as connection:
        repo = registry.repos.find_writable(connection, caller, repo_id, "release")
        index.unyank(connection, repo, wanted.version, by=caller.by)
        return releases_of(connection, repo)


@router.get("/releases", responses=MISSING)
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
    """Return the yanked releases among builds with these digests: one request for all that a client has installed."""
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


@router.get("/blobs/{sha256}", responses=MISSING)
def blob(registry: RegistryOf, caller: CallerOf, sha256: Annotated[str, Path(pattern=SHA256)]) -> BlobPlaces:
    """Return the locations of a file with these bytes, in repositories that the caller may read."""
    registry.repos.check_may_read(caller)
    with registry.db.read() as connection:
        rows = index.places_of(connection, sha256, registry.repos.visible(caller))
    rows = [row for row in rows if not row.gated or caller.reaches(row.full_name)]
    if not rows:
        raise HttpRefusal(
            404, "BlobNotFound", f"no file with sha256 {sha256}, expected that of a file which you may read"
        )
    places = [BlobPlace(repo=row.full_name, commit=row.commit_id, path=row.path, size=row.size) for row in rows]
    return BlobPlaces(sha256=sha256, places=places)


@router.get("/tokens")
def list_tokens(registry: RegistryOf, caller: CallerOf, query: Annotated[NumberPage, Query()]) -> TokenList:
    """Return the caller's tokens; for an administrator, all tokens."""
    mine = None if caller.is_admin else user_of(caller)
    records = registry.tokens.records(user=mine, after=query.after, limit=query.limit + 1)
    page = records[: query.limit]
    return TokenList(tokens=page, next_after=page[-1].id if len(records) > len(page) else None)


@router.post("/tokens", status_code=201, responses={**FORBIDDEN, **TOO_LARGE})
@sent_by(user)
def create_token(registry: RegistryOf, caller: CallerOf, wanted: TokenRequest) -> NewToken:
    """Create a token; only this response shows it.

    Without `user`, it is the caller's own: it does no more than the token that creates it, and only where the caller is
    a member. An administrator grants one to any user.
    """
    about: dict[str, Any] = {
        "namespaces": wanted.namespaces,
        "scopes": wanted.scopes,
        "label": wanted.label,
        "days": wanted.days,
    }
    if wanted.user is None:
        token = registry.tokens.by(caller.by).create_own(caller, **about)
        return NewToken(token=token, user=user_of(caller), role=wanted.role)
    token = registry.tokens.by(administrator_of(caller)).create(wanted.user, wanted.role, **about)
    return NewToken(token=token, user=wanted.user, role=wanted.role)


@router.delete("/tokens/{token_id}", responses={**FORBIDDEN, **MISSING})
def revoke_token(registry: RegistryOf, caller: CallerOf, token_id: Annotated[int, Path(ge=1, le=2**31 - 1)]) -> Token:
    """Revoke a token. Every user may revoke their own."""
    mine = user_of(caller)
    if not (caller.is_admin or registry.tokens.user_of(token_id) == mine):
        raise forbidden("the token belongs to another user; use a token of that user, or one with the role `admin`")
    return registry.tokens.by(caller.by).revoke(token_id)


@router.get("/users", responses=FORBIDDEN)
def list_users(registry: RegistryOf, caller: CallerOf, query: Annotated[NamePage, Query()]) -> UserList:
    """Return the users, for an administrator."""
    administrator_of(caller)
    found = registry.tokens.users(after=query.after, limit=query.limit + 1)
    page = found[: query.limit]
    return UserList(users=page, next_after=page[-1].name if len(found) > len(page) else None)


@router.delete("/users/{name}", responses={**FORBIDDEN, **MISSING})
def revoke_user(registry: RegistryOf, caller: CallerOf, name: Annotated[str, Path(pattern=USER_NAME)]) -> TokenList:
    """Revoke all tokens of a user. The user's repositories stay."""
    actor = administrator_of(caller)
    return TokenList(tokens=registry.tokens.by(actor).revoke_user(name))


@router.get("/healthz")
def healthz(registry: RegistryOf) -> Health:
    """Check that the server and its database respond."""
    with registry.db.read() as connection:
        connection.execute(select(1))
    return Health(status="ok")


@router.get("/metrics", response_class=Response, responses={200: {"content": {METRICS_TYPE: {}}}})
def metrics(registry: RegistryOf, caller: CallerOf) -> Response:
    """Return the size of the registry in the text format of Prometheus: of all for a token that sees every repository.

    Other callers get the counts of public repositories, and none that no repository owns.
    """
    registry.repos.check_may_read(caller)
    with registry.db.read() as connection:
        known = counted(connection, public=not caller.sees_all)
    lines = [_metric(f"adapterhub_{name}", text, known[name]) for name, text in _METRICS.items() if name in known]
    return Response("".join(lines), media_type=METRICS_TYPE)


_METRICS: Final = {
    "repos": "Repositories",
    "commits": "Commits",
    "adapters": "Adapters in search results",
    "releases": "Released versions",
    "releases_yanked": "Yanked versions",
    "downloads": "Downloads of all repositories",
    "blobs": "Stored blobs",
    "blob_bytes": "Bytes of stored blobs",
    "tokens_active": "Tokens not revoked",
}


for _part in (
    events_api,
    log_api,
    members_api,
    namespaces_api,
    publish_api,
    sign_in_api,
    tests_api,
    trusted_api,
    versions_api,
):
    router.routes += _part.router.routes


@router.api_route("/{rest:path}", methods=list(METHODS), include_in_schema=False)
def nothing_else(request: Request) -> Response:
    """405 with the methods of a known path, 404 for an unknown path."""
    matched = [route for route in router.routes if route.matches(request.scope)[0] is Match.PARTIAL]
    allowed = sorted({method for route in matched for method in getattr(route, "methods", ())})
    if allowed:
        headers = {"Allow": ", ".join(allowed)}
        raise HttpRefusal(
            405,
            "MethodNotAllowed",
            f"the path does not allow this method, expected {' or '.join(allowed)}",
            headers=headers,
        )
    raise no_such_route()


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


HEALTH_S: Final = 2.0
LOOKS_AT_ONCE: Final = 4


@operations_router.get("/livez")
async def alive() -> JSONResponse:
    """200 while this process answers at all: only without that answer does a restart help."""
    return JSONResponse({"status": "ok"})


@operations_router.get("/healthz")
async def parts_health(request: Request, registry: RegistryOf) -> JSONResponse:
    """Answer 200 if the database and the blobs respond, or 503 with the failing part; the log has the cause.

    It answers within two seconds, also when all threads of requests wait for a part.
    """

    def ask_database() -> None:
        with registry.db.read() as connection:
            connection.execute(select(1))

    async def answers(ask: Callable[[], None]) -> bool:
        with anyio.move_on_after(HEALTH_S), contextlib.suppress(SQLAlchemyError, StoreUnreachable):
            await anyio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=request.app.state.health)
            return True
        return False

    found = await asyncio.gather(answers(ask_database), answers(registry.blobs.check))
    parts = {name: "ok" if well else "unreachable" for name, well in zip(("database", "blobs"), found, strict=True)}
    if all(found):
        return JSONResponse({"status": "ok", **parts})
    headers = {"Retry-After": str(AWAY_RETRY_S)}
    return JSONResponse({"status": "unreachable", **parts}, status_code=503, headers=headers)


@operations_router.get("/metrics")
def counters(registry: RegistryOf, caller: CallerOf) -> Response:
    """Return the counters of this server since its start; `/api/adapt/v1/metrics` measures the content of the registry.

    The counters include the traffic of private repositories, so the caller needs a token that sees all of them.
    """
    if caller.user is None:
        raise unauthorized("metrics need a token that reads all namespaces")
    if not caller.sees_all:
        raise forbidden("metrics need a token that reads all namespaces: `--role read --namespaces '*'`")
    return Response(registry.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)
