"""`/healthz` and `/metrics`, where orchestrators and Prometheus look for them."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from adapterhub_registry.blobs import StoreUnreachable
from adapterhub_registry.context import CallerOf, RegistryOf

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
    """What this server counted since its start. How much the registry holds is told by `/api/adapt/v1/metrics`."""
    registry.repos.refuse_nobody(caller)
    return Response(registry.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)
