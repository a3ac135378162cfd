"""The application: the parts of a registry put together, its routes, and one form for every error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import IntegrityError, OperationalError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from adapterhub.errors import AdapterHubError, shown
from adapterhub_registry import adapt_api, hub_api, hub_files, hub_info, hub_upload, xet
from adapterhub_registry.blobs import DiskBlobs
from adapterhub_registry.context import Registry
from adapterhub_registry.db import Database
from adapterhub_registry.downloads import FLUSH_EVERY_S, Downloads
from adapterhub_registry.edge import Edge
from adapterhub_registry.errors import Refusal, conflict, refusal_of
from adapterhub_registry.repos import Repos
from adapterhub_registry.settings import Settings
from adapterhub_registry.tokens import Tokens

log = logging.getLogger("adapterhub_registry")

ADAPT_PREFIX = "/api/adapt/"
_CODE_OF = {404: "NotFound", 405: "MethodNotAllowed", 413: "TooLarge"}


def open_registry(settings: Settings) -> Registry:
    """The registry over `settings.root`, with its folders and tables made when absent."""
    database, blobs = Database(settings.database), DiskBlobs(settings.root)
    return Registry(
        settings=settings,
        db=database,
        blobs=blobs,
        repos=Repos(blobs, anonymous_read=settings.anonymous_read),
        tokens=Tokens(database),
        downloads=Downloads(database),
    )


def create_app(settings: Settings, registry: Registry | None = None) -> FastAPI:
    """The server as an ASGI application; `registry` when it is open already."""
    registry = registry or open_registry(settings)
    app = FastAPI(
        title="adapterhub registry",
        summary="The adapter routes. The Hub's own API is served as well and documented there.",
        lifespan=_lifespan,
        openapi_url="/api/adapt/v1/openapi.json",
        docs_url=None,  # the pages would load scripts from another host
        redoc_url=None,
    )
    app.state.registry = registry
    app.state.upload_places = anyio.CapacityLimiter(settings.limits.uploads_at_once)
    app.add_middleware(Edge, limits=settings.limits)
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(AdapterHubError, _on_library_error)
    app.add_exception_handler(IntegrityError, _on_race)
    app.add_exception_handler(OperationalError, _on_busy)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.include_router(adapt_api.router)
    for routes in (xet.router, hub_api.router, hub_info.router, hub_files.router, hub_upload.router, hub_api.fallback):
        app.include_router(routes, include_in_schema=False)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    registry: Registry = app.state.registry

    async def flush_for_ever() -> None:
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            await run_in_threadpool(registry.downloads.flush)

    task = asyncio.create_task(flush_for_ever())
    try:
        yield
    finally:
        task.cancel()
        registry.downloads.flush()
        registry.db.close()


def _on_refusal(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return error.response()


def _on_library_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AdapterHubError)
    return refusal_of(error).response()


def _on_race(_request: Request, error: Exception) -> JSONResponse:
    """Two requests made the same thing at once, where the database runs them side by side: one of them was first."""
    log.info("a request lost a race", exc_info=error)
    return conflict("another request came first; look again").response()


def _on_busy(_request: Request, error: Exception) -> JSONResponse:
    """The database is away, locked too long, or broke off a transaction: clients try 503 again by themselves."""
    log.error("the database did not answer", exc_info=error)
    return Refusal(503, "Busy", "the database does not answer; try again", headers={"Retry-After": "2"}).response()


def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    """Parameters of the wrong type, each with its place."""
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
    status = 422 if request.url.path.startswith(ADAPT_PREFIX) else 400
    return Refusal(status, "BadRequest", "; ".join(shown(text, 200) for text in problems[:5])).response()


def _on_http(_request: Request, error: Exception) -> JSONResponse:
    """What the framework refuses by itself: no such route, no such method."""
    assert isinstance(error, HTTPException)
    code = _CODE_OF.get(error.status_code, "BadRequest")
    return Refusal(error.status_code, code, str(error.detail), headers=error.headers).response()
