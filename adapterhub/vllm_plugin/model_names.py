"""One name for each adapter inside vLLM, whatever spec a request writes; and a list of models without paths.

vLLM keeps an adapter for each spelling: `legal-qa` and `legal-qa>=1` would have slots and batches of their own. So the
`model` of each request becomes `LeasedAdapter.model` before vLLM reads it. The answer names the adapter in `model`, in
the headers `x-adapter-name`, `x-adapter-digest` and `x-base-digest`, and in the first event of a stream.

An alias also becomes the name of one build here, so that a request ends under the build with which it began.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterDenied, AdapterHubError, AmbiguousSpec, shown
from adapterhub.formats.route import AUTO
from adapterhub.inference.serving.access.gate import AskedName
from adapterhub.inference.serving.aliases import KEY_HEADER, LOOKS, request_key
from adapterhub.inference.serving.answers import asking_for_usage, described, refusal_body, says_only_usage, with_field
from adapterhub.inference.serving.chain.asgi import (
    App,
    Message,
    Receive,
    Send,
    header_of,
    is_json,
    is_stream,
    read_body,
)
from adapterhub.inference.serving.chain.bodies import demand_of, parsed
from adapterhub.inference.serving.chain.entrance import ASKED
from adapterhub.inference.serving.chain.slots import Slots
from adapterhub.inference.serving.effects import COMPLETION, POOLING, Effects, Told, told_in
from adapterhub.inference.serving.metrics import MeasuredRequest
from adapterhub.inference.serving.refusal import RequestRefused, refusal_of
from adapterhub.inference.serving.vllm import option_in, sequences_in
from adapterhub.vllm_plugin.residency import Models, VllmResidency
from adapterhub.vllm_plugin.resolver import FAULT, note_fault, note_refusal
from adapterhub.vllm_plugin.routes import OPEN, ROUTES, SALTED

if TYPE_CHECKING:
    from adapterhub.inference.serving import LeasedAdapter
    from adapterhub.inference.serving.access.gate import Gate
    from adapterhub.inference.serving.access.tenants import Tenant
    from adapterhub.vllm_plugin.resolver import AdapterHubResolver

MODELS: Final = "/v1/models"
UNLOAD: Final = "/v1/unload_lora_adapter"
HEADERS: Final = frozenset({
    b"accept", b"authorization", b"content-length", b"content-type", b"host", b"origin", b"traceparent", b"tracestate",
    b"user-agent", b"x-request-id",
})  # fmt: skip
"""The headers of a client that vLLM gets."""

MOST_LOOK_UPS: Final = 16
"""How many names of one client are looked up at once."""

QUESTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "/v1/completions": COMPLETION,
    "/v1/embeddings": POOLING,
    "/classify": POOLING,
}
"""What shows the effect of an adapter, by route; the first that the base answers is asked."""

_GONE: Final[Message] = {"type": "http.disconnect"}


class ModelNames:
    """ASGI middleware before vLLM's routes. `resolver` finds the adapters, `residency` keeps those that vLLM has."""

    def __init__(self, app: App, resolver: AdapterHubResolver, residency: VllmResidency, gate: Gate) -> None:
        self._app, self._gate = app, gate
        self._salts: dict[str, str] = {}
        self._looking: Counter[str] = Counter()
        count = sequences_in(resolver.argv)
        self.places = Slots(count, lambda: count // 2 if gate.tenants and len(gate.tenants.by_name) > 1 else None)
        self.resolver = resolver
        self.residency = residency
        self._effects = Effects(resolver.metrics)
        self._questions = QUESTIONS

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on under the adapter's one name."""
        path, method = str(scope.get("path", "")).rstrip("/"), scope.get("method")
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http" or method == "OPTIONS" or (method in {"GET", "HEAD"} and path in OPEN - {MODELS}):
            await self._app(scope, receive, send)
        elif method == "GET" and (path == MODELS or path.startswith(f"{MODELS}/")):
            await self._list(scope, receive, send, unquote(path[len(MODELS) + 1 :]))
        elif method == "POST" and (path.endswith(UNLOAD) or path in ROUTES):
            await self._forward(scope, receive, send, is_unload=path.endswith(UNLOAD))
        elif method == "DELETE" and "/adapters/" in path:  # the guard has asked for the admin key
            await self._app(scope, receive, send)
        else:
            raise RequestRefused(404, "this server does not pass on this route; GET /v1/models lists what it serves")

    # ------------------------------------------------------------ requests
    async def _forward(self, scope: Message, receive: Receive, send: Send, *, is_unload: bool) -> None:
        if not is_json(scope):
            raise RequestRefused(415, "expected a body of the type `application/json`")
        exchange = _NamedExchange(self, scope, receive, send, is_unload=is_unload)
        try:
            await self._app(_with_known_headers(scope), exchange.receive, exchange.send)
        except Exception:
            if exchange.refusal is None:
                raise
        finally:
            await exchange.close()
            if exchange.leased is not None:
                await self.residency.leave(exchange.leased, exchange.tenant, exchange.models)
            exchange.measured.end()
        if exchange.refusal is not None:
            raise exchange.refusal  # `Access` notes it

    async def rewritten(self, exchange: _NamedExchange, body: bytes) -> bytes:
        """Rebuild the body: the fields of its route, and the adapter's one name. `exchange` gets the adapter.

        Raises:
            AdapterDenied: the adapter is not served any more.
            RequestRefused: a field or value is refused, or the tenant may not use the adapter or has no room for it.
        """
        tenant, asked, models = exchange.tenant, exchange.asked, exchange.models
        if exchange.is_unload:
            return await self._unloading(exchange, body)
        may_write_grammars = tenant is None or tenant.grammars
        value = parsed(ROUTES[exchange.route], body, may_write_grammars=may_write_grammars)
        self._gate.reserve(asked, demand_of(value, len(body)))
        name = value.get("model")
        if name == AUTO and self.resolver.settings.route is not None:
            changes = await self._routed(exchange, value)
        else:
            is_base = name is None or models.is_base_model(name)
            name = asked.asks_for(name, is_base=is_base)
            changes = {} if name is None else {"model": name}  # a bare name has its tenant's namespace
            if name is not None and not is_base:
                exchange.measured.adapter = name
                if not self._is_of_others(name, models):
                    changes |= {"model": await self._named(name, value, exchange) or name}
        added = asking_for_usage(exchange.route, value)
        exchange.hides_usage = bool(added)
        if tenant is not None and exchange.route in SALTED:
            added["cache_salt"] = self._salt_of(tenant)
        return json.dumps({**value, **changes, **added}).encode()

    def _salt_of(self, tenant: Tenant) -> str:
        """Keep the cached prompts of a tenant from all others, who would learn by time and counts what it sent."""
        return self._salts.setdefault(tenant.name, secrets.token_hex(16))

    async def _unloading(self, exchange: _NamedExchange, body: bytes) -> bytes:
        try:
            value = json.loads(body)
            name = value[exchange.key]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise RequestRefused(400, f'expected a body such as {{"{exchange.key}": "legal-qa"}}') from None
        named = await self._named(name, {}, exchange) if isinstance(name, str) else None
        return json.dumps({exchange.key: named or name}).encode()

    async def _routed(self, exchange: _NamedExchange, value: dict[str, Any]) -> dict[str, Any]:
        """Return the name of the adapter that the text of a request is for, or of the base, as a field.

        Raises:
            AdapterDenied, RequestRefused: as `rewritten`; 424 where the routing file cannot be used.
        """
        resolver = self.resolver
        try:
            auto = await resolver.auto()
            assert auto is not None  # the settings name a file
            chosen = await asyncio.get_running_loop().run_in_executor(
                resolver.local, auto.adapter_for, exchange.route, value, exchange.asked, resolver.denied
            )
        except AdapterHubError as error:
            note_refusal(AUTO, error)
            raise RequestRefused(424, FAULT.format(name=AUTO)) from None
        if chosen is not None:
            return {exchange.key: await self._named(chosen.model, value, exchange) or chosen.model}
        if exchange.tenant is not None:
            exchange.tenant.ensure_may_use_base()
        return {exchange.key: option_in(resolver.argv, "--served-model-name") or resolver.base_model}

    async def _named(self, name: str, value: dict[str, Any], exchange: _NamedExchange) -> str | None:
        """Return the adapter's one name, and its lease for `exchange`; None leaves the refusal to vLLM."""
        exact, leased = await self._exact(name, request_key(exchange.key_header, value), exchange)
        if leased is None:
            return None if exact == name else exact
        if exchange.tenant is not None:
            exchange.tenant.ensure_may_use(name, leased.label)
        exchange.measured.adapter = leased.label
        await self.residency.enter(leased, exchange.tenant, exchange.models)
        exchange.leased = leased
        if not self.resolver.leases(leased):  # it was let go while this request waited for room
            await self._found(exact, exchange)
        return leased.model

    async def _exact(self, name: str, key: str | None, exchange: _NamedExchange) -> tuple[str, LeasedAdapter | None]:
        """Look up the meaning of `name`, and its adapter as `_found`; again where an alias left its old meaning."""
        for left in reversed(range(LOOKS)):
            exact, refusal, leased = await self._meaning(name, key, exchange), None, None
            try:
                leased = await self._found(exact, exchange)
            except RequestRefused as error:
                refusal = error
            if leased or exact == name or not left or not await self.resolver.aliases.left(name, exact):
                break
        if refusal is not None:
            raise refusal
        return exact, leased

    async def _meaning(self, name: str, key: str | None, exchange: _NamedExchange) -> str:
        """Return the exact spec of an alias, whose build stays until the exchange ends.

        Of any other name, that name.
        """
        if exchange.is_unload:
            return name
        exact = name
        with contextlib.suppress(Exception):  # the look-up below, or vLLM's, refuses with the reason
            exact = await self.resolver.aliases.exact(name, key)
        if exact != name:
            digest = Digest(exact.rpartition("#")[2])
            self.residency.claim(digest)
            exchange.places.push_async_callback(self.residency.disclaim, digest, exchange.models)
        return exact

    async def _found(self, name: str, exchange: _NamedExchange) -> LeasedAdapter | None:
        """Return the adapter of that name; None leaves the refusal to vLLM. For a tenant, it is ours.

        A tenant must not learn from the form of a refusal whether others have an adapter of that name.
        """
        if exchange.is_unload:  # what is not loaded need not be looked up
            return self.residency.find(name) or self.resolver.known(name)
        measured = exchange.measured
        try:
            with self._counted(exchange.client, name):
                leased, measured.found = await self.resolver.found(name)
        except (AdapterDenied, RequestRefused):
            raise
        except AdapterHubError as error:
            if exchange.tenant is not None:
                note_refusal(name, error)
                if isinstance(error, AmbiguousSpec):  # it lists the adapters of others
                    raise RequestRefused(
                        400, f"`{shown(name, 200)}` means several adapters; name its namespace"
                    ) from None
                raise refusal_of(error, name) from None
            return None
        except Exception:  # noqa: BLE001 - vLLM asks the resolver next, which refuses with the reason and logs a fault
            if exchange.tenant is not None:
                note_fault(name)
                raise RequestRefused(424, FAULT.format(name=shown(name))) from None
            return None
        self.resolver.metrics.looked_up(measured.found)
        return leased

    @contextlib.contextmanager
    def _counted(self, client: str, name: str) -> Iterator[None]:
        """Let one client look few names up at once: they share threads, in which others would wait behind them."""
        if self.resolver.known(name) is None and self._looking[client] >= MOST_LOOK_UPS:
            raise RequestRefused(429, f"{MOST_LOOK_UPS} names of this client are looked up already", 1)
        self._looking[client] += 1
        try:
            yield
        finally:
            self._looking[client] -= 1
            if not self._looking[client]:
                del self._looking[client]

    def _is_of_others(self, name: str, models: Models) -> bool:
        """Return whether vLLM has an adapter of that name which is not ours, such as one of `--lora-modules`."""
        return name in models.lora_requests and self.residency.find(name) is None

    # ------------------------------------------------------------ effects
    def knows_effect(self, leased: LeasedAdapter) -> bool:
        """Return whether the adapter was asked about, so that its answers need not wait."""
        return self._effects.knows(leased.digest)

    async def ensure_effect(self, exchange: _NamedExchange, leased: LeasedAdapter) -> None:
        """Refuse an adapter with which vLLM answers like the base. The question shares the place of the request.

        Raises:
            RequestRefused: 424.
        """
        base = option_in(self.resolver.argv, "--served-model-name") or self.resolver.base_model

        async def ask(is_adapted: bool) -> Told | None:  # noqa: FBT001 - see `Ask`
            for path, question in self._questions.items():
                answer = await self._answer(exchange, path, {**question, "model": leased.model if is_adapted else base})
                if answer is not None:
                    self._questions = {path: question}
                    return told_in(answer)
            return None

        tenant = exchange.tenant.name if exchange.tenant else None
        await self._effects.ensure(leased.label, leased.digest, tenant, leased.asleep, ask)

    async def _answer(self, exchange: _NamedExchange, path: str, value: Mapping[str, Any]) -> Any:
        """Send a request of ours to vLLM's own route, within that of a client; None for a refusal.

        Raises:
            RequestRefused: the client has left, and vLLM ended its work.
        """
        parts = [{"type": "http.request", "body": json.dumps(value).encode(), "more_body": False}]
        status, body = 0, b""

        async def receive() -> Message:
            return parts.pop() if parts else await exchange.left()

        async def keep(message: Message) -> None:
            nonlocal status, body
            status = message.get("status", status)
            body += message.get("body", b"")

        await self._app(exchange.inner(path), receive, keep)
        if not status or exchange.has_left:
            raise RequestRefused(424, "the client has left")
        try:
            return json.loads(body) if status == 200 else None
        except ValueError:
            return None

    # ------------------------------------------------------------ the list of models
    async def _list(self, scope: Message, receive: Receive, send: Send, name: str) -> None:
        """Send the list of models with names instead of paths; with `name`, only that model."""
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
        if status == 200:
            asked: AskedName = scope[ASKED]
            status, value = self._listing(json.loads(body), name, asked.tenant)
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
        return 404, refusal_body(404, f"the model `{shown(name, 200)}` is not loaded", "NotFoundError", "model")

    def _may_see(self, tenant: Tenant, card: dict[str, Any]) -> bool:
        leased = self.residency.find(card["id"])
        if leased is not None:
            return tenant.allows(leased.label.partition("==")[0])
        return tenant.base if card.get("parent") is None else tenant.allows(card["id"])


class _NamedExchange:
    """One request and its answer, between vLLM and the client. `leased` is the adapter, once the body is read."""

    def __init__(self, names: ModelNames, scope: Message, receive: Receive, send: Send, *, is_unload: bool) -> None:
        self.models: Models = scope["app"].state.openai_serving_models
        names.resolver.base_model = self.models.model_config.model
        self.route = str(scope["path"]).removeprefix(scope.get("root_path", "")).rstrip("/")
        self.is_unload = is_unload
        self.key = "lora_name" if is_unload else "model"
        self.key_header = header_of(scope, KEY_HEADER).decode("latin-1")
        self.asked: AskedName = scope.get(ASKED) or AskedName(route=self.route, request_id="")
        self.tenant = self.asked.tenant
        self.client = self.tenant.name if self.tenant else str((scope.get("client") or ("",))[0])
        self.places = contextlib.AsyncExitStack()
        self.leased: LeasedAdapter | None = None
        self.refusal: RequestRefused | None = None
        self.measured = MeasuredRequest(names.resolver.metrics)
        self.hides_usage = False
        """Whether the usage in the stream is for us alone."""
        self._names = names
        self._scope, self._receive, self._send = scope, receive, send
        self._was_read = False
        self.has_left = False
        self._leaving: asyncio.Future[Message] | None = None
        self._proof: asyncio.Future[None] | None = None
        """Finds out whether the adapter has an effect while vLLM computes the answer, in one batch with it."""
        self._is_answer = False
        self._field = b""
        """Of the first event of a stream, until that was sent."""

    async def receive(self) -> Message:
        """Return the body under the adapter's one name. vLLM reads it after it has checked the client's key."""
        if self._was_read:
            return await self._gone()
        self._was_read = True
        try:
            body = await self._names.rewritten(self, await read_body(self._scope, self._receive))
        except AdapterDenied as error:
            self.refusal = refusal_of(error)
        except RequestRefused as refusal:
            self.refusal = refusal
        if self.refusal is not None:
            self._names.resolver.metrics.looked_up("refused")
            return _GONE  # vLLM ends a request whose body does not come, and `send` drops its answer
        self.asked.begins(len(body))
        if self.leased is not None:
            self.asked.is_for(self.leased.label, self.leased.digest, self._names.resolver.base_digest())
        if self.tenant is not None:
            await self.places.enter_async_context(self._names.places.taken((self.tenant.name, None)))
        if self.leased is not None and self.route in SALTED:
            self._proof = asyncio.ensure_future(self._names.ensure_effect(self, self.leased))
            if self._names.knows_effect(self.leased):
                await self._proved()
        return _GONE if self.refusal else {"type": "http.request", "body": body, "more_body": False}

    def inner(self, path: str) -> Message:
        """Return the scope of a request of ours to another route, with the client's key."""
        kept = [pair for pair in _with_known_headers(self._scope)["headers"] if pair[0].lower() != b"content-length"]
        root = self._scope.get("root_path", "")
        return {**self._scope, "path": root + path, "raw_path": (root + path).encode(), "headers": kept}

    async def left(self) -> Message:
        """Wait until the client leaves, for each of those who wait for that."""
        if self._leaving is None:
            self._leaving = asyncio.ensure_future(self._receive())
        message = await asyncio.shield(self._leaving)
        self.has_left = message["type"] == "http.disconnect"
        return message

    async def _proved(self) -> None:
        """Wait until it is known whether the adapter has an effect; without one, the request is refused."""
        if self._proof is None:
            return
        try:
            await asyncio.shield(self._proof)
        except RequestRefused as refusal:
            if self.refusal is None:
                self._names.resolver.metrics.looked_up("refused")
            self.refusal = refusal
        else:
            self._proof = None

    async def _gone(self) -> Message:
        """Wait until the client leaves, or until its request is refused, whose answer vLLM need not compute."""
        if self._proof is None:
            return await self.left()
        waits = [asyncio.ensure_future(one) for one in (self.left(), self._proved())]
        try:
            for one in asyncio.as_completed(waits):
                if await one is not None or self.refusal is not None:
                    break
        finally:
            for wait in waits:
                wait.cancel()
        return _GONE

    async def close(self) -> None:
        """End what still runs for the request."""
        running = [one for one in (self._proof, self._leaving) if one is not None]
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self.places.aclose()

    async def send(self, message: Message) -> None:
        """Send a part of the answer on; the headers and the first event of a stream name the adapter that answers."""
        if self.refusal is None:
            await self._proved()
        if self.refusal is not None:
            return
        if message["type"] == "http.response.start":
            self._is_answer = message["status"] == 200 and not self.is_unload
            if self.leased is not None and is_stream(message):
                base = self._names.resolver.base_digest()
                self._field = described(self.leased.label, self.leased.digest, base)
            message["headers"] = [*message.get("headers", ()), *self.asked.headers()]
        elif self._is_answer:
            body = message.get("body", b"")
            self.measured.take(body)
            self.asked.usage = self.measured.usage
            if self.hides_usage and says_only_usage(body):
                message["body"] = b""
            elif self._field and (event := with_field(body, self._field)):
                message["body"], self._field = event, b""
        await self._send(message)


def _with_known_headers(scope: Message) -> Message:
    """Return the scope without headers that could steer the engine, such as the choice of a replica or session."""
    return {**scope, "headers": [(name, text) for name, text in scope["headers"] if name.lower() in HEADERS]}
