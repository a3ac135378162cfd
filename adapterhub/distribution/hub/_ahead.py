"""The answers to the requests that choosing among many adapters makes, which our registry gives in one."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from adapterhub.core.errors import AdapterHubError
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.http.wire import HttpError, Wire

_FEATURE: Final = "ahead"
_ASKED_AT_ONCE: Final = 25


def look_ahead(wire: Wire, specs: Sequence[AdapterSpec], features: Callable[[], Collection[str]]) -> None:
    """Ask for 25 adapters in one request, and keep the answers in `wire`, whose readers check them as all others.

    What goes wrong here is left to the requests that follow.
    """
    wire.ahead.forget()
    wanted = [spec for spec in specs if spec.namespace is not None]
    with contextlib.suppress(AdapterHubError, HttpError, OSError, LookupError, TypeError, ValueError):
        if not wanted[1:] or _FEATURE not in features():
            return
        for start in range(0, len(wanted), _ASKED_AT_ONCE):
            some = wanted[start : start + _ASKED_AT_ONCE]
            named = [f"{one.full_name}-{one.base.text}" for one in some if one.base and one.base.kind == "alias"]
            asked = {"adapter": sorted({one.full_name for one in some}), "repo": sorted(set(named))}
            _take(wire, asked)


def look_at(wire: Wire, repo: str) -> None:
    """As `look_ahead`, for what a push asks first of one repository, of its namespace and of the server."""
    with contextlib.suppress(AdapterHubError, HttpError, OSError, LookupError, TypeError, ValueError):
        _take(wire, {"repo": [repo]})


def _take(wire: Wire, asked: Mapping[str, list[str]]) -> None:
    told = wire.json("api/adapt/v1/ahead", asked)["answers"]
    wire.ahead.take(
        {str(one["path"]): str(one["error"]) if one["error"] else base64.b64decode(one["body"]) for one in told}
    )
