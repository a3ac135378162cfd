"""Assembles the application: the parts of a registry, its routes, and one format for every error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from threading import Event
from typing import cast

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from adapterhub.core.errors import AdapterHubError, DiskFull, shown
from adapterhub_registry import kin, vectors, worker
from adapterhub_registry.access import audit
from adapterhub_registry.access.accounts import Accounts
from adapterhub_registry.access.devices import Devices
from adapterhub_registry.access.issuers import Issuers, is_here
from adapterhub_registry.access.members import Members
from adapterhub_registry.access.oidc import MOST_DAYS, SignIn, read_rules
from adapterhub_registry.access.telemetry import FLUSH_EVERY_S, Downloads, Rates, Telemetry, record_refusal
from adapterhub_registry.access.tokens import FIRST_USER, Tokens
from adapterhub_registry.access.trusted import Publishers
from adapterhub_registry.api import adapt_api, trusted_api
from adapterhub_registry.api.bodies import MOST, PARSED_AT_ONCE, FairSlots, Threads, UploadSlots
from adapterhub_registry.api.context import Registry
from adapterhub_registry.api.edge import Edge
from adapterhub_registry.api.hub import files, git, info, missing, repositories, upload, xet
from adapterhub_registry.database.db import Database
from adapterhub_registry.database.schema import bring_up_to_date
from adapterhub_registry.errors import HttpRefusal, away, conflict, refusal_of
from adapterhub_registry.nearest import Nearest
from adapterhub_registry.outbox import Deliverer, EventWatch, Webhooks, prune
from adapterhub_registry.pages.home import add_pages
from adapterhub_registry.repos import retention
from adapterhub_registry.repos.repos import Repos
from adapterhub_registry.settings import Settings
from adapterhub_registry.storage.blobs import BlobStore, StoreUnreachable, raising_disk_full
from adapterhub_registry.storage.stores import stores_of
from adapterhub_registry.treelog import TreeLog, complete
from adapterhub_registry.upkeep.space import sweep_xorbs

log = logging.getLogger("adapterhub_registry")

ADAPT_PREFIX = "/api/adapt/"
SWEEP_EVERY_S = 3600.0
DERIVE_EVERY_S = 2.0
VECTORS_EVERY_S = 5.0
END_S = 5.0
_POSTGRESQL_FULL = "53100"
_OF_LIBRARIES = frozenset({"library", "projects", "outdated", "playground", "playground-stream"})
"""What the paths of pages that only `adapt ui` has begin with."""
_CODE_OF = {404: "NotFound", 405: "MethodNotAllowed", 413: "TooLarge"}


def open_registry(settings: Settings, *, schema: Callable[[Connection], None] = bring_up_to_date) -> Registry:
    """Open the registry that `settings` describe; create its folders and tables when they are absent.

    `schema` decides how a database of an earlier version is treated, see `database.schema`.

    Raises:
        MissingExtra: the extra `scale` is not installed.
        UsageProblem: a newer version made the database, or the file of `--sign-in` has something else than expected.
    """
    file, url = settings.sign_in_file, settings.public_url
    rules = None if file is None else read_rules(file, public_url=url)
    database = Database(settings.database, connections=settings.limits.database_connections, schema=schema)
    blobs, xorbs = stores_of(settings)
    return Registry(
        settings=settings,
        db=database,
        blobs=blobs,
        xorbs=xorbs,
        repos=Repos(blobs, anonymous_read=settings.anonymous_read, limits=settings.limits),
        tokens=Tokens(database),
        members=Members(database),
        publishers=Publishers(database, Issuers(allows_loopback=is_here(settings.public_url or ""))),
        accounts=Accounts(database),
        devices=Devices(database, own_days=MOST_DAYS if rules is None else rules.token_days),
        sign_in=None if rules is None else SignIn(rules, database, public_url=url or "", secret=settings.secret),
        downloads=Downloads(database),
        rates=Rates(),
        telemetry=Telemetry(sys.stderr if settings.log_requests else None),
        webhooks=Webhooks(database, networks=settings.webhook_networks, limits=settings.limits),
        watch=EventWatch(database),
        nearest=Nearest(settings.root),
        log=TreeLog(database, settings.witnesses),
    )


def create_app(settings: Settings, registry: Registry | None = None) -> FastAPI:
    """Return the server as an ASGI application. Pass `registry` when it is open already."""
    registry = registry or open_registry(settings)
    app = FastAPI(
        title="adapterhub registry",
        summary="The adapter routes. The server also speaks the Hub's API, which the Hub documents.",
        lifespan=_lifespan,
        openapi_url="/api/adapt/v1/openapi.json",
        docs_url=None,  # these pages would load scripts from another host
        redoc_url=None,
        redirect_slashes=False,  # redirects would go to the Host that a request names
    )
    app.state.registry = registry
    app.state.upload_slots = UploadSlots(settings.limits.uploads_at_once)
    app.state.git_slots = git.GitSlots(settings.limits.git_at_once)
    app.state.exchange_slots = trusted_api.ExchangeSlots()
    app.state.health = anyio.CapacityLimiter(adapt_api.LOOKS_AT_ONCE)
    app.state.parsing = anyio.CapacityLimiter(PARSED_AT_ONCE)
    app.state.follower_slots = FairSlots(settings.limits.followers_at_once, "followers")
    app.add_middleware(Edge, limits=settings.limits, telemetry=registry.telemetry)
    app.add_exception_handler(HttpRefusal, _on_refusal)
    app.add_exception_handler(AdapterHubError, _on_library_error)
    app.add_exception_handler(IntegrityError, _on_race)
    app.add_exception_handler(OperationalError, _on_busy)
    app.add_exception_handler(PoolTimeout, _on_busy)
    app.add_exception_handler(OSError, _on_os_error)
    app.add_exception_handler(StoreUnreachable, _on_unreachable)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    ours = (adapt_api.router, adapt_api.operations_router)
    hub = (xet.router, repositories.router, files.router, git.router, upload.router, missing.router)
    for router in (info.router, *ours, *hub):  # `include_router` would build each route again
        app.router.routes += router.routes
    app.state.threads = Threads(MOST)
    app.router.routes.insert(0, files.SOONEST)
    app.state.pages = add_pages(app, registry)
    # the first user keeps a namespace; only its page is that of administration
    registry.repos.reserved |= (_first_words(app) | _OF_LIBRARIES) - {FIRST_USER}
    return app


def _first_words(app: FastAPI) -> frozenset[str]:
    """Return the first parts of the routes' paths, which no namespace may have as its name."""
    paths = [str(getattr(route, "path", "")) for route in app.router.routes]
    return frozenset(word for path in paths if "{" not in (word := path.split("/")[1].lower()))


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    registry: Registry = app.state.registry
    settings, retry_s = registry.settings, registry.settings.limits.webhook_retry_s

    async def repeat(what: Callable[[], object], every_s: float) -> None:
        while True:
            try:
                await run_in_threadpool(what)
            except (SQLAlchemyError, StoreUnreachable, OSError):
                log.warning("maintenance failed; the server tries again", exc_info=True)
            await asyncio.sleep(every_s)

    stopped = Event()
    tasks = [
        asyncio.create_task(repeat(registry.downloads.flush, FLUSH_EVERY_S)),
        asyncio.create_task(repeat(registry.tokens.flush, FLUSH_EVERY_S)),
        asyncio.create_task(repeat(partial(audit.prune, registry.db, settings.limits.log_days), SWEEP_EVERY_S)),
        asyncio.create_task(repeat(registry.blobs.sweep, SWEEP_EVERY_S)),
        asyncio.create_task(repeat(partial(sweep_xorbs, registry), SWEEP_EVERY_S)),
        asyncio.create_task(repeat(partial(prune, registry.db), SWEEP_EVERY_S)),
        asyncio.create_task(repeat(partial(retention.apply, registry.db), SWEEP_EVERY_S)),
        asyncio.create_task(repeat(partial(complete, registry.db), SWEEP_EVERY_S)),
        asyncio.create_task(Deliverer(registry.db, allowed=settings.webhook_networks, retry_s=retry_s).run()),
    ]
    keep_near = partial(worker.keep_near, registry.db, registry.sketches)
    tasks.append(asyncio.create_task(repeat(keep_near, VECTORS_EVERY_S)))
    tasks.append(asyncio.create_task(repeat(partial(registry.nearest.keep, registry.db), VECTORS_EVERY_S)))
    if settings.derives:
        derive = partial(worker.work, registry.db, registry.blobs, stopped=stopped)
        tasks.append(asyncio.create_task(repeat(derive, DERIVE_EVERY_S)))
        bases, texts = worker.Lookout(), worker.Lookout()

        def compare_bases() -> None:
            kin.make(registry.db, registry.blobs, stopped=stopped, since_ms=bases.since_ms())

        def make_vectors() -> None:
            if vectors.has_model(settings.root):  # it may come at any time
                vectors.make(registry.db, settings.root, stopped=stopped, since_ms=texts.since_ms())

        tasks.append(asyncio.create_task(repeat(compare_bases, DERIVE_EVERY_S)))
        tasks.append(asyncio.create_task(repeat(make_vectors, VECTORS_EVERY_S)))
    try:
        yield
    finally:
        stopped.set()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=END_S)  # their threads give their connections back
        with contextlib.suppress(SQLAlchemyError):  # the database may stop at the same time
            registry.downloads.flush()
            registry.tokens.flush()
        app.state.threads.close()
        registry.db.close()


def _on_refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HttpRefusal)
    record_refusal(request.app.state.registry.db, request.scope, error)
    return error.response()


def _on_library_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AdapterHubError)
    return _on_refusal(request, refusal_of(error))


def _on_race(_request: Request, error: Exception) -> JSONResponse:
    """Two requests created the same thing at the same time, and the database took the other one."""
    log.info("a request lost a race", exc_info=error)
    return conflict("another request was faster; read the current state, then try again").response()


def _on_busy(request: Request, error: Exception) -> JSONResponse:
    """Answer 503, which clients retry: the database is unreachable, locked for too long, or aborted a transaction.

    A full disk gets another answer, because a retry two seconds later would also fail.
    """
    if _is_full(error, request.app.state.registry.blobs):
        log.error("the disk of the database is full")
        return refusal_of(DiskFull("the server's disk is full; nothing was changed")).response()
    log.error("the database did not answer", exc_info=error)
    return away("database").response()


def _is_full(error: Exception, blobs: BlobStore) -> bool:
    cause = getattr(error, "orig", None)
    if getattr(cause, "sqlstate", "") == _POSTGRESQL_FULL or "disk is full" in str(cause):
        return True
    return "disk I/O error" in str(cause) and blobs.room() == 0  # SQLite's error when it cannot enlarge its files


def _on_os_error(_request: Request, error: Exception) -> JSONResponse:
    """Return a full disk, wherever the error arose; any other error is a bug of this program."""
    try:
        with raising_disk_full():
            raise error
    except DiskFull as full:
        return refusal_of(full).response()


def _on_unreachable(_request: Request, error: Exception) -> JSONResponse:
    """Return the bucket does not answer: clients retry 503 by themselves."""
    log.error("the blob store does not answer", exc_info=error)
    return away("blob store").response()


def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    """Parameters of the wrong type, each with its position."""
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
    status = 422 if request.url.path.startswith(ADAPT_PREFIX) else 400
    return HttpRefusal(
        status, "BadRequest", f"expected other parameters: {'; '.join(shown(text, 200) for text in problems[:5])}"
    ).response()


async def _on_http(request: Request, error: Exception) -> Response:
    """Return a refusal by the framework: no such route, or no such method."""
    assert isinstance(error, HTTPException)
    page = await request.app.state.pages.nothing_here(request, error)
    if page is not None:
        return cast("Response", page)
    code = _CODE_OF.get(error.status_code, "BadRequest")
    return HttpRefusal(error.status_code, code, str(error.detail), headers=error.headers).response()
