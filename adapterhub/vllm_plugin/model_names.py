"""One name for each adapter inside vLLM, whatever spec a request writes; and a list of models without paths.

vLLM keeps an adapter for each spelling: `legal-qa` and `legal-qa>=1` would have slots and batches of their own. So the
`model` of each request becomes `LeasedAdapter.model` before vLLM reads it. The answer names the adapter in `model` and
in the headers `x-adapter-name`, `x-adapter-digest` and `x-base-digest`.

An alias, too, becomes the name of one build here, so that a request ends under the build with which it began.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from adapterhub.inference.serving.aliases import KEY_HEADER, request_key
from adapterhub.vllm_plugin.asgi import App, Message, Receive, Send, header_of

if TYPE_CHECKING:
    from adapterhub.inference.serving import LeasedAdapter
    from adapterhub.vllm_plugin.resolver import AdapterHubResolver

MODELS: Final = "/v1/models"
UNLOAD: Final = "/v1/unload_lora_adapter"
MOST_LOADED: Final = 1000
"""How many adapters vLLM may know; the one that was used least recently is unloaded."""


class ModelNames:
    """ASGI middleware before vLLM's routes. `resolver` finds the adapters."""

    def __init__(self, app: App, resolver: AdapterHubResolver) -> None:
        self._app = app
        self._resolver = resolver
        self._running: Counter[str] = Counter()
        self._used: dict[str, LeasedAdapter] = {}
        """By model name, the least recently used first."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on under the adapter's one name."""
        path = str(scope.get("path", "")).rstrip("/")
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "GET" and (path == MODELS or path.startswith(f"{MODELS}/")):
            await self._list(scope, receive, send, unquote(path[len(MODELS) + 1 :]))
        elif scope["method"] == "POST" and _is_json(scope):
            await self._forward(scope, receive, send, "lora_name" if path.endswith(UNLOAD) else "model")
        else:
            await self._app(scope, receive, send)

    # ------------------------------------------------------------ requests
    async def _forward(self, scope: Message, receive: Receive, send: Send, key: str) -> None:
        leased: LeasedAdapter | None = None
        statuses: list[int] = []
        was_read = False

        async def named() -> Message:
            # The body is rewritten when vLLM reads it, which is after it has checked the client's key.
            nonlocal leased, was_read
            if was_read:
                return await receive()
            was_read = True
            body = await _whole_body(receive)
            if body is None:
                return {"type": "http.disconnect"}
            body, leased = await self._rewritten(scope, body, key)
            if leased is not None:
                self._running[leased.model] += 1
            return {"type": "http.request", "body": body, "more_body": False}

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
                if leased is not None:
                    message["headers"] = [*message.get("headers", ()), *self._headers(leased)]
            await send(message)

        try:
            await self._app(scope, named, signed)
        finally:
            if leased is not None:
                self._running[leased.model] -= 1
                if key == "lora_name" and statuses == [200]:
                    self._unloaded(leased, _models(scope).lora_requests)
                elif key == "model":
                    self._note_use(leased, _models(scope).lora_requests)

    async def _rewritten(self, scope: Message, body: bytes, key: str) -> tuple[bytes, LeasedAdapter | None]:
        """The body with the adapter's one name, and the adapter; the same body where it names none."""
        try:
            value = json.loads(body)
        except ValueError:
            return body, None
        name = value.get(key) if isinstance(value, dict) else None
        models = _models(scope)
        if not isinstance(name, str) or models.is_base_model(name) or self._is_of_others(name, models):
            return body, None
        leased: LeasedAdapter | None = None
        if key == "lora_name":  # what is not loaded need not be looked up
            leased = self._used.get(name) or self._resolver.known(name)
            return body if leased is None else json.dumps(value | {key: leased.model}).encode(), leased
        base, exact = models.model_config.model, name
        request = request_key(header_of(scope, KEY_HEADER).decode("latin-1"), value)
        with contextlib.suppress(Exception):  # vLLM asks the resolver next, which refuses with the reason
            exact = await self._resolver.aliases.exact(base, name, request)
            leased = await self._resolver.leased(base, exact)
        model = leased.model if leased is not None else exact
        return body if model == name else json.dumps(value | {key: model}).encode(), leased

    def _is_of_others(self, name: str, models: Any) -> bool:  # noqa: ANN401 - vLLM's class
        """Whether vLLM has an adapter of that name which is not ours, such as one of `--lora-modules`."""
        return name in models.lora_requests and name not in self._used

    def _headers(self, leased: LeasedAdapter) -> list[tuple[bytes, bytes]]:
        return [
            (b"x-adapter-name", leased.label.encode()),
            (b"x-adapter-digest", leased.digest.encode()),
            (b"x-base-digest", self._resolver.base_digest().encode()),
        ]

    # ------------------------------------------------------------ what is loaded
    def _note_use(self, leased: LeasedAdapter, lora_requests: dict[str, Any]) -> None:
        if leased.model not in lora_requests:  # vLLM could not load it, or it was unloaded meanwhile
            self._unloaded(leased, lora_requests)
            return
        self._used.pop(leased.model, None)
        self._used[leased.model] = leased
        idle = iter([name for name in self._used if not self._running[name]])
        while len(self._used) > MOST_LOADED and (name := next(idle, None)) is not None:
            lora_requests.pop(name, None)
            self._unloaded(self._used[name], lora_requests)

    def _unloaded(self, leased: LeasedAdapter, lora_requests: dict[str, Any]) -> None:
        """End the lease, unless vLLM may read the files again: for a request that runs, or under another name."""
        self._used.pop(leased.model, None)
        is_read = any(request.lora_path == str(leased.folder) for request in lora_requests.values())
        if not self._running[leased.model] and not is_read:
            del self._running[leased.model]
            self._resolver.release(leased)

    # ------------------------------------------------------------ the list of models
    async def _list(self, scope: Message, receive: Receive, send: Send, name: str) -> None:
        """Send the list of models with names in place of paths; with `name`, that model alone."""
        start: Message = {}
        body = b""

        async def kept(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
            else:
                body += message.get("body", b"")

        await self._app({**scope, "path": MODELS, "raw_path": MODELS.encode()}, receive, kept)
        status = start["status"]
        if status == 200:  # noqa: PLR2004 - OK
            status, value = self._listing(json.loads(body), name)
            body = json.dumps(value).encode()
        headers = [(key, data) for key, data in start["headers"] if key.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _listing(self, value: dict[str, Any], name: str) -> tuple[int, dict[str, Any]]:
        cards = [card | {"root": card["id"]} for card in value["data"]]
        if not name:
            return 200, value | {"data": cards}
        known = self._resolver.known(name)
        for card in cards:
            if card["id"] in {name, known.model if known else name}:
                return 200, card
        error = {"message": f"the model `{name}` is not loaded", "type": "NotFoundError", "param": "model", "code": 404}
        return 404, {"error": error}


def _models(scope: Message) -> Any:  # noqa: ANN401 - vLLM's OpenAIServingModels
    return scope["app"].state.openai_serving_models


def _is_json(scope: Message) -> bool:
    return header_of(scope, "content-type").partition(b";")[0].strip().lower() == b"application/json"


async def _whole_body(receive: Receive) -> bytes | None:
    """The body of a request; None where the client left."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
