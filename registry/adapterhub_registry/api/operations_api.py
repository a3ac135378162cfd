"""`/healthz` and `/metrics`, where orchestrators and Prometheus look for them."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from adapterhub_registry.api.context import CallerOf, RegistryOf
from adapterhub_registry.errors import forbidden, unauthorized
from adapterhub_registry.storage.blobs import StoreUnreachable

router = APIRouter()


@router.get("/healthz")
def healthz(registry: RegistryOf) -> JSONResponse:
    """200 when the database and the blobs answer, else 503; what does not answer is named, why is in the log."""
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
    well = set(parts.values()) == {"ok"}
    return JSONResponse({"status": "ok" if well else "unreachable", **parts}, status_code=200 if well else 503)


@router.get("/metrics")
def metrics(registry: RegistryOf, caller: CallerOf) -> Response:
    """What this server counted since its start. How much the registry holds is told by `/api/adapt/v1/metrics`.

    Traffic of private repositories is in it (creations would count them), so it needs a token that sees all of them.
    """
    if caller.user is None:
        raise unauthorized("metrics need a token that reads everything")
    if not caller.sees_all:
        raise forbidden("metrics need a token that reads everything: `--role read --namespaces '*'`")
    return Response(registry.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)
