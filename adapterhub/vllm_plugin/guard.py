"""The middleware that `adapt serve` puts before vLLM's routes: no client gives vLLM a path or takes an adapter away.

The resolver needs runtime updating. With it, vLLM also opens routes by which any client can load any folder of the
machine, unchecked, and unload what others use. `--middleware adapterhub.vllm_plugin.guard.Guard` answers those with
403. Unloading is open to requests whose header `x-admin-key` has the value of ADAPTERHUB_SERVE_ADMIN_KEY.
"""

from __future__ import annotations

import os
from typing import Final

from adapterhub.inference.serving.control import CONTROL_KEY, LOADS_FIRST, is_key
from adapterhub.vllm_plugin.asgi import App, Message, Receive, Send, header_of, refuse
from adapterhub.vllm_plugin.draining import Draining
from adapterhub.vllm_plugin.model_names import ModelNames
from adapterhub.vllm_plugin.resolver import registered_resolver

LOADING: Final = ("/v1/load_lora_adapter", "/adapters")
"""Routes that take a path; the second is SageMaker's name for the first."""

_NO_LOADING: Final = (
    "loading an adapter by path is switched off: name it as the `model` of a request, which checks and loads it"
)
_NO_UNLOADING: Final = "unloading an adapter needs the admin key of this server, in the header `x-admin-key`"


class Guard:
    """ASGI middleware before vLLM's routes; inside it stand `Draining` and `ModelNames`."""

    def __init__(self, app: App) -> None:
        resolver = registered_resolver()
        named = ModelNames(app, resolver) if resolver else app
        self._app = Draining(named, os.environ.get(CONTROL_KEY, ""), loads_first=bool(os.environ.get(LOADS_FIRST)))
        self._admin_key = os.environ.get("ADAPTERHUB_SERVE_ADMIN_KEY", "")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse a request that loads, or unloads without the key; pass on every other request."""
        words = self._refusal(scope)
        if not words:
            await self._app(scope, receive, send)
            return
        await refuse(send, 403, words, "Forbidden")

    def _refusal(self, scope: Message) -> str:
        if scope["type"] != "http":
            return ""
        path, method = str(scope.get("path", "")).rstrip("/"), scope.get("method")
        if method == "POST" and path.endswith(LOADING):
            return _NO_LOADING
        unloads = path.endswith("/v1/unload_lora_adapter") if method == "POST" else "/adapters/" in path
        if unloads and method in {"POST", "DELETE"} and not is_key(header_of(scope, "x-admin-key"), self._admin_key):
            return _NO_UNLOADING
        return ""
