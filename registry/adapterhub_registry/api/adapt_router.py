"""What all routes below `/api/adapt/v1` have in common."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter

from adapterhub_registry.api.adapt_models import Problem
from adapterhub_registry.api.bodies import GuardedRoute

PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"model": Problem, "description": "The request is malformed"},
    401: {"model": Problem, "description": "The request has no token, or an invalid one"},
    422: {"model": Problem, "description": "A member has the wrong type or exceeds a limit"},
}


def adapt_router() -> APIRouter:
    """A router for some of these routes; `adapt_api` takes them in."""
    return APIRouter(prefix="/api/adapt/v1", tags=["adapters"], responses=PROBLEMS, route_class=GuardedRoute)
