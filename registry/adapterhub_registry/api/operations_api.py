"""The routes `/healthz` and `/metrics` for orchestrators and Prometheus."""

from __future__ import annotations

from fastapi import Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from adapterhub_registry.api.bodies import hub_router
from adapterhub_registry.api.context import CallerOf, RegistryOf
from adapterhub_registry.errors import forbidden, unauthorized
from adapterhub_registry.storage.blobs import StoreUnreachable

router = hub_router()


@router.get("/healthz")
def healthz(registry: RegistryOf) -> JSONResponse:
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


@router.get("/metrics")
def metrics(registry: RegistryOf, caller: CallerOf) -> Response:
    """The counters of this server since its start; `/api/adapt/v1/metrics` measures the content of the registry.

    The counters include the traffic of private repositories, so the caller needs a token that sees all of them.
    """
    if caller.user is None:
        raise unauthorized("metrics need a token that reads all namespaces")
    if not caller.sees_all:
        raise forbidden("metrics need a token that reads all namespaces: `--role read --namespaces '*'`")
    return Response(registry.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)
