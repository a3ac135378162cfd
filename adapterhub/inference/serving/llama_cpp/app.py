"""The application in front of llama.cpp's server: a name becomes a digest, a body is rebuilt, a slot is held.

`llama-server` numbers its adapters. The application sends the scale of each with every request, so that an answer uses
exactly the adapter that the request names, or none, and only on routes where that was proved (`proof`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar

from adapterhub.core.errors import AdapterHubError, shown
from adapterhub.formats.route import AUTO
from adapterhub.inference.serving.access.gate import AskedName, Gate
from adapterhub.inference.serving.aliases import KEY_HEADER, request_key
from adapterhub.inference.serving.answers import Usage, described, refusal_body, says_only_usage, with_field
from adapterhub.inference.serving.auto import Auto
from adapterhub.inference.serving.chain.asgi import (
    Message,
    Receive,
    Send,
    answer,
    header_of,
    is_json,
    read_body,
    send_whole,
)
from adapterhub.inference.serving.chain.bodies import choices_of, demand_of, parsed
from adapterhub.inference.serving.chain.entrance import ASKED
from adapterhub.inference.serving.chain.slots import Owner, Slot
from adapterhub.inference.serving.llama_cpp.engine import figures_of
from adapterhub.inference.serving.llama_cpp.generation import Generation
from adapterhub.inference.serving.llama_cpp.names import Served
from adapterhub.inference.serving.llama_cpp.routes import ROUTES, EngineRoute
from adapterhub.inference.serving.metrics import MeasuredRequest, ServingMetrics, exposition
from adapterhub.inference.serving.refusal import RequestRefused, refusal_of

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_PARSED_HERE: Final = 1 << 16
_MODELS: Final = ("/v1/models", "/models")
_HEALTH: Final = frozenset({"/health", "/v1/health", "/ping"})
_DATA: Final = b"data: "
_NO_ROUTE: Final = "this server does not pass on this route; GET /v1/models lists what it serves"
_OWN_FIELDS: Final = frozenset({"model", "user", "n", "cache_prompt", "stream_options"})
_COUNTS: Final = ("prompt_tokens", "completion_tokens")
_T = TypeVar("_T")


class App:
    """An ASGI application for the routes of `ROUTES`, the list of models, health and figures.

    `now` is the generation of engines that new requests go to. It stands behind `Access`, which puts the `Asked` of a
    request into its scope.
    """

    def __init__(
        self,
        now: Generation,
        *,
        gate: Gate,
        metrics: ServingMetrics,
        registry: CollectorRegistry | None = None,
        auto: Auto | None = None,
    ) -> None:
        self.now = now
        self._gate, self._metrics = gate, metrics
        self._registry, self._auto = registry, auto

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request.

        Raises:
            RequestRefused: it is not served.
        """
        path, method = str(scope["path"]).rstrip("/"), scope["method"]
        if method in {"GET", "HEAD"}:
            await self._get(path, scope, send)
            return
        route = ROUTES.get(path)
        if method != "POST" or route is None:
            raise RequestRefused(404, _NO_ROUTE)
        if not is_json(scope):
            raise RequestRefused(415, "expected a body of the type `application/json`")
        body = await read_body(scope, receive)
        await _unless_gone(self._post(route, body, scope, send), receive)

    # ------------------------------------------------------------ what needs no engine
    async def _get(self, path: str, scope: Message, send: Send) -> None:
        if path in _HEALTH:
            await answer(send, HTTPStatus.OK, {"status": "ok"})
        elif path == "/metrics" and self._registry is not None:
            data, kind = exposition(self._registry)
            await send_whole(send, HTTPStatus.OK, data + await figures_of(self.now.engines), kind)
        elif path in _MODELS or path.startswith("/v1/models/"):
            asked: AskedName = scope[ASKED]
            listed = self.now.names.listing(asked.tenant, (AUTO,) if self._auto is not None else ())
            name = "" if path in _MODELS else path.removeprefix("/v1/models/")
            found = next((row for row in listed["data"] if row["id"] == name), None)
            if name and found is None:
                raise RequestRefused(404, f"no adapter `{shown(name, 200)}` is served; GET /v1/models lists them")
            await answer(send, HTTPStatus.OK, found or listed)
        else:
            raise RequestRefused(404, _NO_ROUTE)

    # ------------------------------------------------------------ requests
    async def _post(self, route: EngineRoute, data: bytes, scope: Message, send: Send) -> None:
        asked: AskedName = scope[ASKED]
        measured = MeasuredRequest(self._metrics)
        grammars = asked.tenant is None or asked.tenant.grammars
        read = partial(parsed, route.body, data, may_write_grammars=grammars)
        value = await asyncio.to_thread(read) if len(data) > _PARSED_HERE else read()
        found = await self._named(value, route, asked, measured, header_of(scope, KEY_HEADER).decode("latin-1"))
        with found.generation.running():  # it has not changed since
            await self._answer(found, route, value, len(data), asked, measured, send)

    async def _answer(
        self,
        found: _Found,
        route: EngineRoute,
        value: dict[str, Any],
        size: int,
        asked: AskedName,
        measured: MeasuredRequest,
        send: Send,
    ) -> None:
        served = found.served
        is_stream, count = value.get("stream") is True, choices_of(value)
        if is_stream and route.parts != "whole" and count > 1:
            raise RequestRefused(400, "a stream has one prompt and one choice; send several without `stream`")
        self._gate.reserve(asked, demand_of(value, size))
        owner = (None if asked.tenant is None else asked.tenant.name, None if served is None else served.digest)
        if served is not None and route.probe is not None:
            await found.generation.ensure_effect(served, owner)
        asked.begins(size)
        call = _Call(found, route, value, owner, asked, measured)
        try:
            if is_stream:
                await call.stream(send)
            else:
                await call.answer(send)
        finally:
            measured.end()

    async def _named(
        self, value: Mapping[str, Any], route: EngineRoute, asked: AskedName, measured: MeasuredRequest, key: str
    ) -> _Found:
        """Find the adapter of a request, which is counted, and the engines that have it.

        Raises:
            RequestRefused: there is none, this client may not use it, or the engine ignores it on this route.
        """
        try:
            found = await self._admitted(value, route, asked, key)
            found.generation.ensure_proved(found.served, route)
        except RequestRefused:
            self._metrics.looked_up("refused")
            raise
        served = found.served
        if served is not None:
            measured.adapter, measured.found = served.label, "hit"
            asked.is_for(served.label, served.digest, found.generation.names.base_digest)
            self._metrics.looked_up("hit")
        return found

    async def _admitted(self, value: Mapping[str, Any], route: EngineRoute, asked: AskedName, key: str) -> _Found:
        """Find the adapter that the `model` of a request means for this client."""
        names, tenant = self.now.names, asked.tenant
        model = value.get("model", names.base)
        if model == AUTO and self._auto is not None:
            loop = asyncio.get_running_loop()
            chosen = await loop.run_in_executor(names.threads, self._routed, self._auto, value, route, asked)
            return self._found_or_base(chosen, asked)
        wanted = asked.asks_for(model, is_base=model == names.base) or model
        exact = await names.exact(wanted, request_key(key, value))
        found = _Found(self.now, None)  # from here to `running`, no other task runs
        try:
            found.served = found.generation.names.find(exact)
        except AdapterHubError as error:
            raise refusal_of(error) from None
        if tenant is not None and not names.may_use(tenant, found.served):
            raise RequestRefused(404, f"no adapter `{shown(model)}` is served; GET /v1/models lists them")
        return found

    def _routed(self, auto: Auto, value: Mapping[str, Any], route: EngineRoute, asked: AskedName) -> str | None:
        """Return the adapter that the text of a request is for; None for the base."""
        chosen = auto.adapter_for(route.path, value, asked, self.now.names.denied)
        return None if chosen is None else chosen.model

    def _found_or_base(self, model: str | None, asked: AskedName) -> _Found:
        found = _Found(self.now, None)
        if model is not None:
            with contextlib.suppress(AdapterHubError):
                found.served = found.generation.names.find(model)
        if found.served is None and asked.tenant is not None:
            asked.tenant.ensure_may_use_base()
        return found


@dataclass(slots=True)
class _Found:
    """The target of a request: an adapter, or None for the base, of one generation."""

    generation: Generation
    served: Served | None


class _Call:
    """One request to the engine, or one for each of its prompts and choices, and the answer."""

    def __init__(
        self,
        found: _Found,
        route: EngineRoute,
        value: dict[str, Any],
        owner: Owner,
        asked: AskedName,
        measured: MeasuredRequest,
    ) -> None:
        generation, served = found.generation, found.served
        self._engines, self._names, self._slots = generation.engines, generation.names, generation.slots
        self._route, self._value, self._served = route, value, served
        self._owner, self._asked, self._measured = owner, asked, measured
        self._name = generation.names.base if served is None else served.name

    def _written(self, value: Mapping[str, Any], slot: Slot) -> dict[str, Any]:
        """Write the body for the engine."""
        body = {key: one for key, one in value.items() if key not in _OWN_FIELDS}
        if self._route.probe is None:
            return body
        reuses = not slot.is_fresh and value.get("cache_prompt") is not False
        body |= {"lora": self._names.scales(self._served), "id_slot": slot.number, "cache_prompt": reuses}
        if value.get("stream") and self._route.parts == "choices":
            body["stream_options"] = {"include_usage": True}
        return body

    def _parts(self) -> list[dict[str, Any]]:
        """Split the request into one for each prompt and choice."""
        if self._route.parts == "whole":
            return [self._value]
        prompt, count = self._value.get("prompt"), self._value.get("n", 1)
        prompts = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else None
        each = [self._value] if prompts is None else [self._value | {"prompt": one} for one in prompts]
        seed = self._value.get("seed")
        return [one | ({} if seed is None else {"seed": seed + at}) for one in each for at in range(count)]

    # ------------------------------------------------------------ whole answers
    async def answer(self, send: Send) -> None:
        """Send the whole answer."""
        tasks = [asyncio.create_task(self._one(value)) for value in self._parts()]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            await _cancelled(tasks)
        status, whole = next((one for one in answers if one[0] != HTTPStatus.OK), (200, self._joined(answers)))
        data = json.dumps(_renamed(whole, self._name)).encode()
        if status == HTTPStatus.OK:
            self._measured.take(data)
            if isinstance(whole, list):
                usages = [one.get("usage", {}) for one in map(_with_usage, whole)]
                self._measured.usage = Usage(*(sum(one.get(key, 0) for one in usages) for key in _COUNTS))
            self._asked.usage = self._measured.usage
        await send_whole(send, status, data, headers=self._asked.headers())

    async def _one(self, value: Mapping[str, Any]) -> tuple[int, Any]:
        async with self._slots.taken(self._owner) as slot:
            found = await self._engines[slot.engine].ask(self._route.path, self._written(value, slot))
            slot.is_fresh = slot.is_fresh and found[0] != HTTPStatus.OK
            return found

    def _joined(self, answers: list[tuple[int, Any]]) -> Any:
        values = [value for _, value in answers]
        if len(values) == 1:
            return values[0]
        if self._route.parts == "answers":
            return values
        choices = [choice for value in values for choice in value.get("choices", ())]
        usages = [value.get("usage") or {} for value in values]
        keys = {key for usage in usages for key, count in usage.items() if type(count) is int}
        return values[0] | {
            "choices": [choice | {"index": at} for at, choice in enumerate(choices)],
            "usage": {key: sum(usage.get(key, 0) for usage in usages) for key in sorted(keys)},
        }

    # ------------------------------------------------------------ streams
    async def stream(self, send: Send) -> None:
        """Send the answer as it comes."""
        shows_usage = bool((self._value.get("stream_options") or {}).get("include_usage"))
        async with (
            self._slots.taken(self._owner) as slot,
            self._engines[slot.engine].stream(self._route.path, self._written(self._parts()[0], slot)) as (
                status,
                events,
            ),
        ):
            if status != HTTPStatus.OK:
                data = b"".join([event async for event in events])
                await send_whole(send, status, _renamed_text(data, self._name), headers=self._asked.headers())
                return
            slot.is_fresh = False
            headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), *self._asked.headers()]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            try:
                async for event in self._told(events, shows_usage=shows_usage):
                    await send({"type": "http.response.body", "body": event + b"\n\n", "more_body": True})
            except RequestRefused as refusal:  # the engine ended; the answer has begun
                self._asked.refused(refusal)
                told = json.dumps(refusal_body(refusal.status, refusal.message, refusal.kind)).encode()
                await send({"type": "http.response.body", "body": _DATA + told + b"\n\n", "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _told(self, events: AsyncIterator[bytes], *, shows_usage: bool) -> AsyncIterator[bytes]:
        """Yield the events for the client: under the adapter's name, and without a usage that it did not request."""
        field = (
            b"" if self._served is None else described(self._served.label, self._served.digest, self._names.base_digest)
        )
        async for event in events:
            told = b"\n".join(
                _DATA + _renamed_text(line[len(_DATA) :], self._name) if line.startswith(_DATA) else line
                for line in event.split(b"\n")
            )
            self._measured.take(told)
            self._asked.usage = self._measured.usage
            if self._route.parts == "choices" and not shows_usage and says_only_usage(event):
                continue
            if field and (described_too := with_field(told, field)):
                told, field = described_too, b""
            yield told


# ---------------------------------------------------------------- ASGI
async def _unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do `work`; end it when the client leaves, so that the engine also stops."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
    finally:
        await _cancelled([task, gone])


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(tasks: list[asyncio.Task[_T]]) -> None:
    """Cancel what still runs, and wait until it has ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# ---------------------------------------------------------------- names in answers
def _renamed(value: Any, name: str) -> Any:
    """Return a JSON answer with `name` instead of the engine's model file, and with its usage in OpenAI's words."""
    if isinstance(value, list):
        return [_renamed(one, name) for one in value]
    if not isinstance(value, dict):
        return value
    paths = {"model", "model_path"} & value.keys()
    return _with_usage(value | dict.fromkeys(paths, name) if paths else value)


def _with_usage(value: dict[str, Any]) -> dict[str, Any]:
    """Return an answer of llama.cpp's own form with the member `usage`."""
    if "usage" in value or not (value.get("stop") is True or "generation_settings" in value):
        return value
    counts = [value.get(key) for key in ("tokens_evaluated", "tokens_predicted")]
    return (
        value | {"usage": dict(zip(_COUNTS, counts, strict=True))} if all(type(one) is int for one in counts) else value
    )


def _renamed_text(data: bytes, name: str) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    renamed = _renamed(value, name)
    return data if renamed is value else json.dumps(renamed).encode()
