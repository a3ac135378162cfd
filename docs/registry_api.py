"""The routes of the registry as tables, read off the application: its own, and those of the Hub that it answers."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from adapterhub_registry.app import create_app
from adapterhub_registry.settings import Settings
from fastapi import FastAPI
from fastapi.routing import APIRoute

_OWN: Final = "/api/adapt/v1"
_ANSWERS_NOTHING: Final = ("Answer 501", "Answer 404", "Answer 405", "Always 404", "501", "404", "405")
"""How the docstrings of routes begin that answer only what is missing."""


def application() -> FastAPI:
    """Return the registry's application; its routes need no server, and its empty database is gone at once."""
    with tempfile.TemporaryDirectory() as folder:
        return create_app(Settings(root=Path(folder), secret=bytes(32)))


def openapi() -> dict[str, Any]:
    """Return the answer of a running registry at `/api/adapt/v1/openapi.json`."""
    return application().openapi()


def routes_text() -> str:
    """Return the registry's own routes with a sentence each, and those of the Hub's API."""
    app = application()
    own = app.openapi()["paths"]
    rows = [(m.upper(), path, said["description"]) for path, methods in own.items() for m, said in methods.items()]
    table = "\n".join(_row(method, path.removeprefix(_OWN), text) for method, path, text in rows)
    others = sorted({(path.replace(":path", ""), method) for method, path, _ in _other_routes(app, own)})
    paths = {path: [method for other, method in others if other == path] for path, _ in others}
    lines = ",\n".join(f"`{path}` ({', '.join(methods)})" for path, methods in paths.items()) + "."
    return f"### Of adapters, below `{_OWN}`\n\n{table}\n\n### Of the Hub, and of the server itself\n\n{lines}"


def _other_routes(app: FastAPI, own: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for route in app.routes:
        text = inspect.getdoc(getattr(route, "endpoint", None)) or ""
        if isinstance(route, APIRoute) and route.path not in own and not text.startswith(_ANSWERS_NOTHING):
            yield ", ".join(sorted(route.methods)), route.path, text


def _row(method: str, path: str, text: str) -> str:
    sentence = text.partition("\n")[0]
    return f"- {method} `{path.replace(':path', '')}`: {sentence[0].lower()}{sentence[1:]}"
