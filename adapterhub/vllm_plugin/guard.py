"""The middleware that `adapt serve` puts before vLLM's routes: no client gives vLLM a path or takes an adapter away.

The resolver needs runtime updating. With it, vLLM also opens routes by which any client can load any folder of the
machine, unchecked, and unload what others use. `--middleware adapterhub.vllm_plugin.guard.Guard` answers those with
403. Unloading is open to requests whose header `x-admin-key` has the value of ADAPTERHUB_SERVE_ADMIN_KEY.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from adapterhub.core.errors import AdapterHubError, UsageProblem
from adapterhub.inference.serving import ServeSettings
from adapterhub.inference.serving.access.gate import Gate
from adapterhub.inference.serving.aliases import MovingNames
from adapterhub.inference.serving.chain.asgi import App, Message, Receive, Send, answer, header_of, refuse
from adapterhub.inference.serving.chain.entrance import Access, Draining
from adapterhub.inference.serving.control import ALIASES_PATH, CONTROL_HEADER, CONTROL_KEY, is_key
from adapterhub.inference.serving.vllm import engine_room, ensure_room
from adapterhub.vllm_plugin.model_names import ModelNames
from adapterhub.vllm_plugin.names import LOGGER
from adapterhub.vllm_plugin.residency import VllmResidency, living
from adapterhub.vllm_plugin.resolver import registered_resolver

_log = logging.getLogger(LOGGER)

LOADING: Final = ("/v1/load_lora_adapter", "/adapters")
"""Routes that take a path; the second is SageMaker's name for the first."""

_NO_LOADING: Final = (
    "loading an adapter by path is switched off: name it as the `model` of a request, which checks and loads it"
)
_NO_UNLOADING: Final = "unloading an adapter needs the admin key of this server, in the header `x-admin-key`"


class Guard:
    """ASGI middleware before vLLM's routes; inside it stand `Access`, `Draining` and `ModelNames`."""

    def __init__(self, app: App) -> None:
        self._life: Callable[[object], AbstractAsyncContextManager[None]] | None = None
        self._app = self._inner = app
        self._admin_key = os.environ.get("ADAPTERHUB_SERVE_ADMIN_KEY", "")
        self._control_key = os.environ.get(CONTROL_KEY, "")
        self._aliases: MovingNames | None = None
        self._broken = ""
        """Why this server must not answer."""
        try:
            self._build(app)
        except AdapterHubError as error:
            self._broken = _told(error)

    def _build(self, app: App) -> None:
        resolver = registered_resolver()
        self._aliases = resolver.aliases if resolver else None
        if resolver is None:
            if ServeSettings.from_environ(os.environ).tenants is not None:
                raise UsageProblem(
                    "the plug-in could not be set up, and nothing else keeps tenants apart",
                    hint="start vLLM with `adapt serve --tenants FILE`",
                )
            self._app = self._inner = Draining(app, self._control_key)
            return
        settings = resolver.settings
        resolver.denied  # noqa: B018 - a bad list ends the start
        self.gate = gate = Gate(settings.tenants, settings.audit_log)
        is_shared = settings.tenants is not None or bool(settings.pins)
        room = engine_room(resolver.argv) if is_shared else None
        if room is not None:
            gate.accept(lambda tenants: ensure_room(room, tenants.loaded, len(settings.pins)))
        residency = VllmResidency(resolver, gate, room)
        self._life = lambda app: living(app, resolver, residency, gate)
        self._inner = Draining(ModelNames(app, resolver, residency, gate), self._control_key)
        self._app = Access(self._inner, gate, resolver.metrics.refused)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse a request that loads, or unloads without the key; pass on every other request."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif self._broken:
            await refuse(send, 503, "this server could not start; its log has the reason", "ServiceUnavailable")
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, scope: Message, receive: Receive, send: Send) -> None:
        if self._life is None and not self._broken:
            await self._app(scope, receive, send)
            return
        failure = self._broken
        if self._life is not None:
            try:
                async with self._life(scope["app"]):
                    await self._app(scope, receive, send)
            except AdapterHubError as error:
                failure = _told(error)
            else:
                return
        await receive()
        await send({"type": "lifespan.startup.failed", "message": failure})

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        path, method = str(scope.get("path", "")).rstrip("/"), scope.get("method")
        if method == "POST" and path.endswith(LOADING):
            await refuse(send, 403, _NO_LOADING, "Forbidden")
            return
        if method == "POST" and path == ALIASES_PATH:
            await self._refresh_aliases(scope, send)
            return
        unloads = path.endswith("/v1/unload_lora_adapter") if method == "POST" else "/adapters/" in path
        if not unloads or method not in {"POST", "DELETE"}:
            await self._app(scope, receive, send)
        elif is_key(header_of(scope, "x-admin-key"), self._admin_key):
            await self._inner(scope, receive, send)
        else:
            await refuse(send, 403, _NO_UNLOADING, "Forbidden")

    async def _refresh_aliases(self, scope: Message, send: Send) -> None:
        """Look every alias up again, for `adapt serve` on its SIGHUP."""
        allowed = is_key(header_of(scope, CONTROL_HEADER), self._control_key)
        names = await self._aliases.refresh() if allowed and self._aliases else []
        await answer(send, 200 if allowed else 403, {"aliases": names})


def _told(error: AdapterHubError) -> str:
    """Return the reason why the server does not start, which is also written to its log."""
    _log.error("the server does not start: %s", f"{error.message} ({error.hint})" if error.hint else error.message)
    return error.message
