"""One name for each adapter inside vLLM, whatever spec a request writes; and a list of models without paths.

vLLM keeps an adapter for each spelling: `legal-qa` and `legal-qa>=1` would have slots and batches of their own. So the
`model` of each request becomes `LeasedAdapter.model` before vLLM reads it. The answer names the adapter in `model`, in
the headers `x-adapter-name`, `x-adapter-digest` and `x-base-digest`, and in the first event of a stream.

An alias, too, becomes the name of one build here, so that a request ends under the build with which it began.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from adapterhub.core.errors import AdapterDenied
from adapterhub.inference.serving import refusal_of
from adapterhub.inference.serving.aliases import KEY_HEADER, request_key
from adapterhub.inference.serving.answers import (
    WITH_USAGE,
    described,
    lacks_usage,
    says_only_usage,
    with_field,
    with_usage,
)
from adapterhub.inference.serving.metrics import Measured
from adapterhub.vllm_plugin.asgi import App, Message, Receive, Send, header_of, refuse
from adapterhub.vllm_plugin.residency import Models, Residency

if TYPE_CHECKING:
    from adapterhub.inference.serving import LeasedAdapter, Refusal
    from adapterhub.vllm_plugin.resolver import AdapterHubResolver

MODELS: Final = "/v1/models"
UNLOAD: Final = "/v1/unload_lora_adapter"
_GONE: Final[Message] = {"type": "http.disconnect"}


class ModelNames:
    """ASGI middleware before vLLM's routes. `resolver` finds the adapters, `residency` keeps those that vLLM has."""

    def __init__(self, app: App, resolver: AdapterHubResolver, residency: Residency) -> None:
        self._app = app
        self.resolver = resolver
        self.residency = residency

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on under the adapter's one name."""
        path = str(scope.get("path", "")).rstrip("/")
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "GET" and (path == MODELS or path.startswith(f"{MODELS}/")):
            await self._list(scope, receive, send, unquote(path[len(MODELS) + 1 :]))
        elif scope["method"] == "POST" and _is_json(scope):
            await self._forward(scope, receive, send, is_unload=path.endswith(UNLOAD))
        else:
            await self._app(scope, receive, send)

    # ------------------------------------------------------------ requests
    async def _forward(self, scope: Message, receive: Receive, send: Send, *, is_unload: bool) -> None:
        exchange = _Exchange(self, scope, receive, send, is_unload=is_unload)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            if exchange.refusal is None:
                raise
        finally:
            if exchange.leased is not None:
                await self.residency.leave(exchange.leased, exchange.models)
            exchange.measured.end()
        if exchange.refusal is not None:
            await refuse(send, exchange.refusal.status, exchange.refusal.message, "AdapterDenied")

    async def rewritten(self, exchange: _Exchange, body: bytes) -> bytes:
        """The body with the adapter's one name, which `exchange` gets; the same body where it names none."""
        try:
            value = json.loads(body)
        except ValueError:
            return body
        name = value.get(exchange.key) if isinstance(value, dict) else None
        models = exchange.models
        if not isinstance(name, str):
            return body
        exchange.hides_usage = lacks_usage(exchange.path, value)
        is_base = models.is_base_model(name)
        if is_base or self._is_of_others(name, models):
            exchange.measured.adapter = None if is_base else name
            return with_usage(body) if exchange.hides_usage else body
        exact = name if exchange.is_unload else await self._exact(name, request_key(exchange.key_header, value), models)
        leased = exchange.leased = await self._found(exact, exchange)
        if leased is None and exact == name:
            return body
        added = WITH_USAGE if exchange.hides_usage and leased else {}
        return json.dumps({**value, **added, exchange.key: leased.model if leased else exact}).encode()

    async def _exact(self, name: str, key: str | None, models: Models) -> str:
        """The exact spec that an alias means for a request key; every other name unchanged."""
        with contextlib.suppress(Exception):  # vLLM asks the resolver next, which refuses with the reason
            return await self.resolver.aliases.exact(models.model_config.model, name, key)
        return name

    async def _found(self, name: str, exchange: _Exchange) -> LeasedAdapter | None:
        if exchange.is_unload:  # what is not loaded need not be looked up
            return self.residency.find(name) or self.resolver.known(name)
        measured = exchange.measured
        try:
            leased, measured.found = await self.resolver.found(exchange.models.model_config.model, name)
        except AdapterDenied:
            raise
        except Exception:  # noqa: BLE001 - vLLM asks the resolver next, which refuses with the reason and logs a fault
            return None
        measured.adapter = leased.label
        self.resolver.metrics.looked_up(measured.found)
        return leased

    def _is_of_others(self, name: str, models: Models) -> bool:
        """Whether vLLM has an adapter of that name which is not ours, such as one of `--lora-modules`."""
        return name in models.lora_requests and self.residency.find(name) is None

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
        known = self.resolver.known(name)
        for card in cards:
            if card["id"] in {name, known.model if known else name}:
                return 200, card
        error = {"message": f"the model `{name}` is not loaded", "type": "NotFoundError", "param": "model", "code": 404}
        return 404, {"error": error}


class _Exchange:
    """One request and its answer, between vLLM and the client. `leased` is the adapter, once the body is read."""

    def __init__(self, names: ModelNames, scope: Message, receive: Receive, send: Send, *, is_unload: bool) -> None:
        self.models = _models(scope)
        self.path = str(scope["path"])
        self.is_unload = is_unload
        self.key = "lora_name" if is_unload else "model"
        self.key_header = header_of(scope, KEY_HEADER).decode("latin-1")
        self.leased: LeasedAdapter | None = None
        self.refusal: Refusal | None = None
        self.measured = Measured(names.resolver.metrics)
        self.hides_usage = False
        """Whether the usage in the stream is for us alone."""
        self._names = names
        self._receive = receive
        self._send = send
        self._was_read = False
        self._is_answer = False
        self._field = b""
        """Of the first event of a stream, until that was sent."""

    async def receive(self) -> Message:
        """The body under the adapter's one name. vLLM reads it after it has checked the client's key."""
        if self._was_read:
            return await self._receive()
        self._was_read = True
        body = await _whole_body(self._receive)
        if body is None:
            return _GONE
        try:
            body = await self._names.rewritten(self, body)
        except AdapterDenied as error:
            self.refusal = refusal_of(error)
            self._names.resolver.count_refusal(self.refusal.status)
            return _GONE  # vLLM ends a request whose body does not come, and `send` drops its answer
        if self.leased is not None:
            self._names.residency.enter(self.leased)
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Send a part of the answer on; the headers and the first event of a stream say who answers."""
        if self.refusal is not None:
            return
        if message["type"] == "http.response.start":
            self._is_answer = message["status"] == 200 and not self.is_unload  # noqa: PLR2004 - OK
            if self.leased is not None:
                base = self._names.resolver.base_digest()
                if _is_stream(message):
                    self._field = described(self.leased.label, self.leased.digest, base)
                message["headers"] = [*message.get("headers", ()), *_headers(self.leased, base)]
        elif self._is_answer:
            body = message.get("body", b"")
            self.measured.take(body)
            if self.hides_usage and says_only_usage(body):
                message["body"] = b""
            elif self._field and (event := with_field(body, self._field)):
                message["body"], self._field = event, b""
        await self._send(message)


def _models(scope: Message) -> Models:
    return scope["app"].state.openai_serving_models


def _headers(leased: LeasedAdapter, base_digest: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-adapter-name", leased.label.encode()),
        (b"x-adapter-digest", leased.digest.encode()),
        (b"x-base-digest", base_digest.encode()),
    ]


def _is_stream(start: Message) -> bool:
    return any(key == b"content-type" and value.startswith(b"text/event-stream") for key, value in start["headers"])


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
