"""One name for each adapter inside vLLM, whatever spec a request writes; and a list of models without paths.

vLLM keeps an adapter for each spelling: `legal-qa` and `legal-qa>=1` would have slots and batches of their own. So the
`model` of each request becomes `LeasedAdapter.model` before vLLM reads it. The answer names the adapter in `model`, in
the headers `x-adapter-name`, `x-adapter-digest` and `x-base-digest`, and in the first event of a stream.

An alias, too, becomes the name of one build here, so that a request ends under the build with which it began.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from adapterhub.core.errors import AdapterDenied, AdapterHubError, AmbiguousSpec, shown
from adapterhub.formats.route import AUTO
from adapterhub.inference.serving.access.refused import RequestRefused
from adapterhub.inference.serving.aliases import KEY_HEADER, request_key
from adapterhub.inference.serving.answers import (
    asking_for_usage,
    described,
    says_only_usage,
    with_changes,
    with_field,
)
from adapterhub.inference.serving.auto import HEADER, label_of
from adapterhub.inference.serving.metrics import Measured
from adapterhub.inference.serving.vllm import option_in
from adapterhub.vllm_plugin.access import ASKED
from adapterhub.vllm_plugin.asgi import (
    App,
    Message,
    Receive,
    Send,
    header_of,
    is_json,
    is_stream,
    refuse_request,
)
from adapterhub.vllm_plugin.residency import Models, Residency
from adapterhub.vllm_plugin.resolver import FAULT, note_fault, note_refusal

if TYPE_CHECKING:
    from adapterhub.inference.serving import LeasedAdapter
    from adapterhub.inference.serving.access.gate import Asked
    from adapterhub.inference.serving.access.tenants import Tenant
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
        elif scope["method"] == "POST" and is_json(scope):
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
                await self.residency.leave(exchange.leased, exchange.tenant, exchange.models)
            exchange.measured.end()
        if exchange.refusal is not None:
            if exchange.asked is not None:
                raise exchange.refusal  # `Access` notes it
            await refuse_request(send, exchange.refusal)

    async def rewritten(self, exchange: _Exchange, body: bytes) -> bytes:
        """The body with the adapter's one name; the same body where it names none. `exchange` gets the adapter.

        Raises:
            AdapterDenied: the adapter is not served any more.
            RequestRefused: the tenant may not use it, or has no room for it.
        """
        tenant, asked, models = exchange.tenant, exchange.asked, exchange.models
        try:
            value = json.loads(body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            if tenant is not None:
                raise RequestRefused(400, "the body is not a JSON object")
            return body
        name = value.get(exchange.key)
        if name == AUTO and not exchange.is_unload and self.resolver.settings.route is not None:
            return await self._routed(exchange, body, value)
        is_base = name is None or (isinstance(name, str) and models.is_base_model(name))
        if asked is not None:
            name = _admitted(asked, name, is_base=is_base)
        changes = {} if exchange.is_unload else asking_for_usage(exchange.route, value)
        if name != value.get(exchange.key):  # a bare name has its tenant's namespace
            changes[exchange.key] = name
        if isinstance(name, str) and not is_base:
            exchange.measured.adapter = name
            if not self._is_of_others(name, models):
                named = await self._named(name, value, exchange)
                if named is None:
                    return body
                changes[exchange.key] = named
        exchange.hides_usage = "stream_options" in changes
        return with_changes(body, value, changes)

    async def _routed(self, exchange: _Exchange, body: bytes, value: dict[str, Any]) -> bytes:
        """The body with the name of the adapter that its text is for, or of the base.

        Raises:
            AdapterDenied, RequestRefused: as `rewritten`; 424 where the routing file cannot be used.
        """
        tenant, asked, model = exchange.tenant, exchange.asked, exchange.models.model_config.model
        exchange.is_routed = True
        if asked is not None:
            asked.model = AUTO
        try:
            auto = await self.resolver.auto(model)
            assert auto is not None  # the settings name a file
            chosen = await asyncio.get_running_loop().run_in_executor(
                self.resolver.local,
                auto.model_for,
                exchange.route,
                value,
                lambda one: (
                    (tenant is None or tenant.allows(one.name))
                    and self.resolver.denied.reason(one.label, one.digest) is None
                ),
            )
        except AdapterHubError as error:
            note_refusal(AUTO, error)
            raise RequestRefused(424, FAULT.format(name=AUTO)) from None
        changes = asking_for_usage(exchange.route, value)
        exchange.hides_usage = "stream_options" in changes
        if chosen is not None:
            changes[exchange.key] = await self._named(chosen.model, value, exchange) or chosen.model
        else:
            if tenant is not None:
                tenant.ensure_may_use_base()
            changes[exchange.key] = option_in(self.resolver.argv, "--served-model-name") or model
        return with_changes(body, value, changes)

    async def _named(self, name: str, value: dict[str, Any], exchange: _Exchange) -> str | None:
        """The adapter's one name, and its lease for `exchange`; None leaves the refusal to vLLM."""
        exact = name
        if not exchange.is_unload:
            with contextlib.suppress(Exception):  # the look-up below, or vLLM's, refuses with the reason
                key = request_key(exchange.key_header, value)
                exact = await self.resolver.aliases.exact(exchange.models.model_config.model, name, key)
        leased = await self._found(exact, exchange)
        if leased is None:
            return None if exact == name else exact
        if exchange.tenant is not None:
            exchange.tenant.ensure_may_use(name, leased.label)
        exchange.measured.adapter = leased.label
        await self.residency.enter(leased, exchange.tenant, exchange.models)
        exchange.leased = leased
        return leased.model

    async def _found(self, name: str, exchange: _Exchange) -> LeasedAdapter | None:
        """The adapter of that name; None leaves the refusal to vLLM. For a tenant, it is ours.

        A tenant must not learn from the form of a refusal whether others have an adapter of that name.
        """
        if exchange.is_unload:  # what is not loaded need not be looked up
            return self.residency.find(name) or self.resolver.known(name)
        measured = exchange.measured
        try:
            leased, measured.found = await self.resolver.found(exchange.models.model_config.model, name)
        except AdapterDenied:
            raise
        except AdapterHubError as error:
            if exchange.tenant is not None:
                note_refusal(name, error)
                if isinstance(error, AmbiguousSpec):  # it lists the adapters of others
                    raise RequestRefused(
                        400, f"`{shown(name, 200)}` means several adapters; name its namespace"
                    ) from None
                raise RequestRefused.of(error, name) from None
            return None
        except Exception:  # noqa: BLE001 - vLLM asks the resolver next, which refuses with the reason and logs a fault
            if exchange.tenant is not None:
                note_fault(name)
                raise RequestRefused(424, FAULT.format(name=shown(name))) from None
            return None
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
            asked: Asked | None = scope.get(ASKED)
            status, value = self._listing(json.loads(body), name, asked.tenant if asked else None)
            body = json.dumps(value).encode()
        headers = [(key, data) for key, data in start["headers"] if key.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _listing(self, value: dict[str, Any], name: str, tenant: Tenant | None) -> tuple[int, dict[str, Any]]:
        cards = [card | {"root": card["id"]} for card in value["data"]]
        if tenant is not None:
            cards = [card for card in cards if self._may_see(tenant, card)]
        if self.resolver.settings.route is not None and value["data"]:
            cards.append({**value["data"][0], "id": AUTO, "root": AUTO, "parent": None})
        if not name:
            return 200, value | {"data": cards}
        known = self.resolver.known(name)
        for card in cards:
            if card["id"] in {name, known.model if known else name}:
                return 200, card
        error = {
            "message": f"the model `{shown(name, 200)}` is not loaded",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }
        return 404, {"error": error}

    def _may_see(self, tenant: Tenant, card: dict[str, Any]) -> bool:
        leased = self.residency.find(card["id"])
        if leased is not None:
            return tenant.allows(leased.label.partition("==")[0])
        return tenant.base if card.get("parent") is None else tenant.allows(card["id"])


class _Exchange:
    """One request and its answer, between vLLM and the client. `leased` is the adapter, once the body is read."""

    def __init__(self, names: ModelNames, scope: Message, receive: Receive, send: Send, *, is_unload: bool) -> None:
        self.models = _models(scope)
        self.route = str(scope["path"]).removeprefix(scope.get("root_path", "")).rstrip("/")
        self.is_unload = is_unload
        self.key = "lora_name" if is_unload else "model"
        self.key_header = header_of(scope, KEY_HEADER).decode("latin-1")
        self.asked: Asked | None = scope.get(ASKED)
        self.tenant = self.asked.tenant if self.asked else None
        self.leased: LeasedAdapter | None = None
        self.refusal: RequestRefused | None = None
        self.measured = Measured(names.resolver.metrics)
        self.is_routed = False
        """Whether a routing file chose the adapter, or the base."""
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
            self.refusal = RequestRefused.of(error)
        except RequestRefused as refusal:
            self.refusal = refusal
        if self.refusal is not None:
            metrics = self._names.resolver.metrics
            metrics.looked_up("refused")
            if self.asked is None:  # else `Access` counts it, as it counts its own
                metrics.refused(self.refusal.status)
            return _GONE  # vLLM ends a request whose body does not come, and `send` drops its answer
        if self.asked is not None:
            self.asked.begins(len(body))
            if self.leased is not None:
                self.asked.is_for(self.leased.label, self.leased.digest, self._names.resolver.base_digest())
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Send a part of the answer on; the headers and the first event of a stream say who answers."""
        if self.refusal is not None:
            return
        if message["type"] == "http.response.start":
            self._is_answer = message["status"] == 200 and not self.is_unload  # noqa: PLR2004 - OK
            if self.is_routed:
                told = (HEADER.encode(), label_of(self.leased.label if self.leased else None).encode())
                message["headers"] = [*message.get("headers", ()), told]
            if self.leased is not None:
                base = self._names.resolver.base_digest()
                if is_stream(message):
                    self._field = described(self.leased.label, self.leased.digest, base)
                message["headers"] = [*message.get("headers", ()), *_headers(self.leased, base)]
        elif self._is_answer:
            body = message.get("body", b"")
            self.measured.take(body)
            if self.asked is not None:
                self.asked.usage = self.measured.usage
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


def _admitted(asked: Asked, name: Any, *, is_base: bool) -> Any:  # noqa: ANN401 - of an unchecked body
    """The name to look up for the name that a request asks for; refuses what its tenant may not ask for."""
    if isinstance(name, str):
        asked.model = shown(name, 300)
    if asked.tenant is None:
        return name
    if is_base:
        asked.tenant.ensure_may_use_base()
        return name
    if not isinstance(name, str):
        raise RequestRefused(400, "expected a text as the `model`")
    return asked.tenant.name_for(name)


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
