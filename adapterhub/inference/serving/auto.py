"""The model name `auto`: a routing file chooses the adapter of each request before the engine sees it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import BaseMismatch, shown
from adapterhub.formats.route import AUTO, Route, RoutedAdapter, read_route
from adapterhub.inference.serving.refusal import RequestRefused

if TYPE_CHECKING:
    from adapterhub.formats.meaning.encoder import Encoder
    from adapterhub.inference.serving.access.denied import Denied
    from adapterhub.inference.serving.access.gate import AskedName
    from adapterhub.library.installed import InstalledBuilds

_FIELDS: Final = {
    "/v1/completions": "prompt",
    "/v1/chat/completions": "messages",
    "/v1/messages": "messages",
    "/v1/responses": "input",
}
"""Where the text of a request is, by its route."""


class Auto:
    """Chooses adapters by a routing file. Threads may share it."""

    def __init__(self, route: Route, encoder: Encoder) -> None:
        from adapterhub.formats.meaning.routing import Chooser

        self._chooser = Chooser(route, encoder)

    @classmethod
    def open(cls, library: InstalledBuilds, file: Path, base_weights: str) -> Auto:
        """Return the routing of a file, for the base that is served.

        Raises:
            NotFound, Malformed, BaseMismatch: the file cannot be used, or is for another base.
            NotFound, MissingExtra: the model that compares texts is not set up.
        """
        from adapterhub.library.find.meaning import encoder_of

        return cls(route_for(file, base_weights), encoder_of(library))

    def adapter_for(
        self, route: str, body: Mapping[str, Any], asked: AskedName, denied: Denied
    ) -> RoutedAdapter | None:
        """Return the adapter for a request, None for the base; the last turn of its user decides. Takes about 15 ms.

        Raises:
            RequestRefused: 400, where `auto` does not answer the route.
        """
        asked.is_routed, asked.model = True, AUTO
        if route not in _FIELDS:
            raise RequestRefused(400, f"`{AUTO}` answers {', '.join(_FIELDS)}; name an adapter as the `model`")
        text, tenant = _text_of(body.get(_FIELDS[route])), asked.tenant

        def may_use(one: RoutedAdapter) -> bool:
            return (tenant is None or tenant.allows(one.name)) and denied.reason(one.label, one.digest) is None

        return self._chooser.choose(text, may_use).adapter if text.strip() else None


def route_for(file: Path, base_weights: str) -> Route:
    """Return the routing file for a base.

    Raises:
        NotFound, Malformed: it cannot be read.
        BaseMismatch: it is for another base.
    """
    route = read_route(file)
    if route.base != base_weights:
        raise BaseMismatch(
            f"the routing file `{shown(str(file), 200)}` is for base `{shown(route.base_name, 80)}` with other weights",
            hint="`adapt route --base BASE -o FILE` makes one for this base",
        )
    return route


def _text_of(value: object) -> str:
    """Return the text of a prompt, or of the last turn of the user; empty for tokens and other values."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        turns = [turn for turn in value if isinstance(turn, dict) and turn.get("role") == "user"]
        if turns:
            return _content_of(turns[-1].get("content"))
        return next((one for one in value if isinstance(one, str)), "")  # prompts of one request
    return ""


def _content_of(value: object) -> str:
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))
