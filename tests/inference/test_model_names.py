"""What vLLM and its clients see of names, with FastAPI routes that do what vLLM's do (`tests/inference/engines` has the real ones)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from adapterhub.core.errors import StoreLocked
from adapterhub.inference.serving.chain import asgi
from adapterhub.inference.serving.effects import PROMPT
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.vllm_plugin import guard, residency
from adapterhub.vllm_plugin.model_names import MOST_LOOK_UPS
from adapterhub.vllm_plugin.resolver import AdapterHubResolver
from tests.support.standin_vllm import importable

Add = Callable[..., Added]
KEY = {"authorization": "Bearer k"}
USUAL: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
}
"""The field that a route requires."""


class Engine:
    """The routes, behind the guard. `bodies` are those that the completion route read."""

    def __init__(self, base: BaseRecord, resolver: AdapterHubResolver, *, has_key: bool = True) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.questions: list[str] = []
        self.effects: set[str] | None = None
        """The adapters that change a likelihood; None: answers have none."""
        self.resolver = resolver
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.may_tell = asyncio.Event()
        """Whether the question about an adapter is answered."""
        self.may_tell.set()
        self.left: list[str] = []
        """The adapters of requests that ended because their client was gone."""
        self.sent: list[Any] = []
        """The messages of the last answer."""
        self.has_loaded = asyncio.Event()
        self.lora_requests: dict[str, Any] = {}
        self.removed: list[int] = []
        self._ids = 0
        self.has_removed = asyncio.Event()
        self.app = FastAPI()
        self.app.state.openai_serving_models = SimpleNamespace(
            is_base_model=lambda name: name == "base-7b",
            lora_requests=self.lora_requests,
            resolve_lora=self.resolve_lora,
            model_config=SimpleNamespace(model=str(base.path)),
            engine_client=SimpleNamespace(remove_lora=self._remove),
        )
        self._base = str(base.path)
        self._add_routes(self._base)
        if has_key:
            self.app.add_middleware(_Keys)
        self.app.add_middleware(guard.Guard)

    async def resolve_lora(self, name: str) -> Any:
        if name not in self.lora_requests:
            request = await self.resolver.resolve_lora(self._base, name)
            self._ids += 1
            request.lora_int_id = self._ids
            self.lora_requests[name] = request
        return self.lora_requests[name]

    def _add_routes(self, base: str) -> None:
        @self.app.post("/v1/completions")
        async def complete(request: Request) -> Response:
            from vllm.exceptions import GracefulHTTPError

            body = await request.json()
            name = body["model"]
            if body.get("prompt") == PROMPT:
                self.questions.append(name)
                await self.may_tell.wait()
                told = (
                    [] if self.effects is None else [-1.0 - (name != "base-7b" and name.split("==")[0] in self.effects)]
                )
                return JSONResponse({"choices": [{"text": "a", "logprobs": {"token_logprobs": told}}]})
            self.bodies.append(body)
            try:
                if name != "base-7b":
                    await self.resolve_lora(name)
            except GracefulHTTPError as error:
                return JSONResponse({"error": error.message}, error.http_status.value)
            self.has_loaded.set()
            await self._wait(request, name)
            usage = {"prompt_tokens": 3, "completion_tokens": 2}
            if not body.get("stream"):
                return JSONResponse({"model": name, "choices": [{"text": "ab"}], "usage": usage})
            events: list[dict[str, Any]] = [{"model": name, "choices": [{"text": text}]} for text in "ab"]
            if (body.get("stream_options") or {}).get("include_usage"):
                events.append({"model": name, "choices": [], "usage": usage})
            lines = [json.dumps(event, separators=(",", ":")) for event in events]
            return StreamingResponse(
                (f"data: {line}\n\n" for line in [*lines, "[DONE]"]), media_type="text/event-stream"
            )

        @self.app.post("/v1/unload_lora_adapter")
        async def unload(request: Request) -> JSONResponse:
            name = (await request.json())["lora_name"]
            return JSONResponse({}, 200 if self.lora_requests.pop(name, None) else 404)

        @self.app.get("/health")
        async def health() -> dict[str, str]:
            return {}

        @self.app.get("/v1/models")
        async def models() -> dict[str, Any]:
            cards = [{"id": "base-7b", "root": base, "parent": None}]
            cards += [{"id": n, "root": r.lora_path, "parent": "base-7b"} for n, r in self.lora_requests.items()]
            return {"object": "list", "data": cards}

    async def _wait(self, request: Request, name: str) -> None:
        """As vLLM computes an answer: until it is there, or until the client is gone."""
        waits = [asyncio.ensure_future(one) for one in (self.may_answer.wait(), request.receive())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not self.may_answer.is_set():
            self.left.append(name)
        for one in waits:
            one.cancel()

    async def _remove(self, lora_id: int) -> bool:
        self.removed.append(lora_id)
        self.has_removed.set()
        return True

    async def send(
        self, method: str, path: str, value: object = None, **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """The status, the headers and the body of the answer. A completion has a prompt, a chat a message."""
        if isinstance(value, dict) and path in USUAL:
            value = USUAL[path] | value
        body = json.dumps(value).encode()
        client = headers.pop("client", "10.0.0.1")
        sent = {"content-type": "application/json", **KEY, **{k.replace("_", "-"): v for k, v in headers.items()}}
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "scheme": "http", "http_version": "1.1", "client": (client, 1), "headers": [(k.encode(), v.encode()) for k, v in sent.items()],
        }  # fmt: skip
        parts = [body[:5], body[5:]]
        self.sent = answer = list[Any]()

        async def receive() -> dict[str, Any]:
            if not parts:
                await asyncio.Event().wait()  # the client stays
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def take(message: Any) -> None:
            answer.append(message)

        await self.app(scope, receive, take)
        told = {name.decode(): data.decode() for name, data in answer[0]["headers"]}
        text = b"".join(message.get("body", b"") for message in answer[1:])
        is_json = told.get("content-type") == "application/json"
        return answer[0]["status"], told, json.loads(text) if is_json else text.decode()

    @contextlib.asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """The server as its host runs it, from its start to its end."""
        messages: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        said: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.create_task(self.app({"type": "lifespan", "asgi": {}}, messages.get, said.put))
        await messages.put({"type": "lifespan.startup"})
        assert (await said.get())["type"] == "lifespan.startup.complete"
        yield
        await messages.put({"type": "lifespan.shutdown"})
        await task

    def ask(self, name: str, **headers: str) -> tuple[int, dict[str, str], Any]:
        return asyncio.run(self.send("POST", "/v1/completions", {"model": name, "prompt": "a"}, **headers))


class _Keys:
    """Refuses requests without the key before it reads their body, as vLLM does."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and dict(scope["headers"]).get(b"authorization") != b"Bearer k":
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


@pytest.fixture
def engine(tmp_path: Path, library: Library, base: BaseRecord, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    with importable(tmp_path / "standin", monkeypatch):
        monkeypatch.setenv("ADAPTERHUB_SERVE_ADMIN_KEY", "admin")
        monkeypatch.setenv("ADAPTERHUB_SERVE_CONTROL_KEY", "control")
        resolver = AdapterHubResolver({"ADAPTERHUB_HOME": str(library.root), "ADAPTERHUB_SERVE_OFFLINE": "1"}, ["vllm"])
        monkeypatch.setattr(guard, "registered_resolver", lambda: resolver)
        yield Engine(base, resolver)


def test_every_spelling_is_one_adapter_of_the_engine(engine: Engine, add: Add) -> None:
    manifest = add("legal-qa").build.manifest
    name = f"legal-qa==1.0.0#{manifest.digest[:19]}"

    answers = [engine.ask(spec) for spec in ["legal-qa", "legal-qa>=1", "legal-qa@base-7b", "legal-qa==1.0", name]]

    assert {status for status, _, _ in answers} == {200}
    assert {body["model"] for _, _, body in answers} == {name}
    assert list(engine.lora_requests) == [name]
    assert {(told["x-adapter-name"], told["x-adapter-digest"]) for _, told, _ in answers} == {
        ("legal-qa==1.0.0", manifest.digest)
    }
    assert {told["x-base-digest"] for _, told, _ in answers} == {manifest.base.fingerprint.weights}


def test_the_base_and_adapters_of_others_keep_their_names(engine: Engine) -> None:
    engine.lora_requests["static"] = SimpleNamespace(lora_path="/static", lora_int_id=1)

    answers = [engine.ask(name) for name in ("base-7b", "static")]

    assert [body["model"] for _, _, body in answers] == ["base-7b", "static"]
    assert not any("x-adapter-name" in told for _, told, _ in answers)


def test_a_body_without_end_is_refused_before_it_is_kept(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "MOST_BYTES", 1000)

    bodies = [{"model": "base-7b", "prompt": prompt} for prompt in ("a" * 2000, "a")]
    statuses = [asyncio.run(engine.send("POST", "/v1/completions", body))[0] for body in bodies]

    assert statuses == [413, 200]


def test_a_name_follows_the_library_in_every_spelling(engine: Engine, add: Add) -> None:
    add("legal-qa", version="1.0.0")
    before = {engine.ask(spec)[1]["x-adapter-name"] for spec in ("legal-qa", "legal-qa>=1.0")}
    add("legal-qa", version="1.1.0", seed=1)

    after = {engine.ask(spec)[1]["x-adapter-name"] for spec in ("legal-qa>=1.0", "legal-qa")}

    assert (before, after) == ({"legal-qa==1.0.0"}, {"legal-qa==1.1.0"})


def test_an_adapter_in_use_outlasts_its_folder(engine: Engine, library: Library, add: Add) -> None:
    build = add("legal-qa").build
    before = engine.ask("legal-qa")[2]
    shutil.rmtree(build.folder)
    library.gc(grace_s=0)
    add("summarize")  # changes the library

    assert engine.ask("legal-qa")[2] == before


def test_a_client_without_a_key_has_nothing_looked_up(engine: Engine, library: Library, add: Add) -> None:
    add("legal-qa")

    status, _, _ = engine.ask("legal-qa", authorization="Bearer wrong")

    assert status == 401
    assert not list((library.root / "leases").glob("*"))


def test_a_refusal_has_its_status_and_reason(engine: Engine) -> None:
    status, _, body = engine.ask("nothing")

    assert (status, body) == (404, {"error": "no adapter `nothing` is known to this server"})


def test_a_fault_of_ours_is_no_fault_of_the_request(engine: Engine, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    add("legal-qa")
    monkeypatch.setattr(AdapterHubResolver, "_opened", fail)

    assert (engine.ask("legal-qa")[0], engine.ask("base-7b")[0]) == (424, 200)


def test_the_list_of_models_shows_no_path(engine: Engine, add: Add) -> None:
    digest = add("legal-qa").build.manifest.digest
    name = f"legal-qa==1.0.0#{digest[:19]}"
    engine.ask("legal-qa")

    listing = asyncio.run(engine.send("GET", "/v1/models"))[2]
    one = [asyncio.run(engine.send("GET", f"/v1/models/{path}")) for path in ("legal-qa", "base-7b", "nothing")]

    assert [(card["id"], card["root"], card["parent"]) for card in listing["data"]] == [
        ("base-7b", "base-7b", None), (name, name, "base-7b")
    ]  # fmt: skip
    assert [(status, body.get("id")) for status, _, body in one] == [(200, name), (200, "base-7b"), (404, None)]


# ---------------------------------------------------------------- what is passed on
@pytest.mark.parametrize(
    ("path", "value", "status", "told"),
    [
        ("/v1/completions", {"cache_salt": "theirs"}, 400, "`cache_salt`: is not a field"),
        ("/v1/completions", {"priority": -(10**9)}, 400, "`priority`: is not a field"),
        ("/v1/completions", {"kv_transfer_params": {}}, 400, "`kv_transfer_params`: is not a field"),
        ("/v1/completions", {"n": 10_000}, 400, "`n`"),
        ("/v1/completions", {"prompt": ["a"] * 257}, 400, "`prompt`"),
        ("/v1/completions", {"structured_outputs": {"regex": "a" * 10_000}}, 400, "`structured_outputs.regex`"),
        ("/v1/completions", {"response_format": {"type": "json_schema", "json_schema": {"schema": {"pattern": "a"}}}},
         400, "`pattern`"),
        ("/v1/chat/completions", {"chat_template": "{{ 1 }}"}, 400, "`chat_template`: is not a field"),
        ("/v1/responses", {"input": "a", "store": True}, 400, "`store`"),
        ("/v1/responses", {"input": "a", "previous_response_id": "resp_1"}, 400, "`previous_response_id`"),
        ("/v1/audio/transcriptions", {}, 404, "does not pass on this route"),
        ("/collective_rpc", {}, 404, "does not pass on this route"),
        ("/sleep", {}, 404, "does not pass on this route"),
    ],
)  # fmt: skip
def test_the_engine_gets_only_routes_and_fields_that_are_known(
    engine: Engine, path: str, value: dict[str, Any], status: int, told: str
) -> None:
    async def read(request: Request) -> JSONResponse:
        return JSONResponse(await request.json())

    engine.app.post("/v1/{rest:path}")(read)
    answer = asyncio.run(engine.send("POST", path, {"model": "base-7b", **value}))

    assert (answer[0], told in answer[2]["error"]["message"]) == (status, True), answer
    assert engine.bodies == []


def test_the_engine_gets_no_header_that_could_steer_it(engine: Engine) -> None:
    got: dict[str, str] = {}

    async def read(request: Request) -> JSONResponse:
        got.update(request.headers)
        return JSONResponse(await request.json())

    engine.app.post("/v1/{rest:path}")(read)
    sent = {"x_data_parallel_rank": "1", "x_session_id": "theirs", "cookie": "a=b", "x_request_id": "mine"}
    asyncio.run(engine.send("POST", "/v1/chat/completions", {"model": "base-7b"}, **sent))

    assert got["x-request-id"] == "mine"
    assert not got.keys() & {"x-data-parallel-rank", "x-session-id", "cookie"}


def test_one_client_does_not_fill_the_line_of_look_ups(
    engine: Engine, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("legal-qa")
    held, look_up = asyncio.Event(), engine.resolver._look_up

    async def slow(name: str) -> Any:
        if name.startswith("unknown"):
            await held.wait()
        return await look_up(name)

    monkeypatch.setattr(engine.resolver, "_look_up", slow)

    async def run() -> tuple[list[int], int]:
        asked = [
            asyncio.create_task(engine.send("POST", "/v1/completions", {"model": f"unknown-{at}"}))
            for at in range(MOST_LOOK_UPS + 10)
        ]
        await asyncio.sleep(0.5)
        refused = [task.result()[0] for task in asked if task.done()]
        scope = await engine.send("POST", "/v1/completions", {"model": "legal-qa"}, client="10.0.0.2")
        held.set()
        await asyncio.gather(*asked)
        return refused, scope[0]

    refused, other = asyncio.run(run())

    assert refused == [429] * 10
    assert other == 200


# ---------------------------------------------------------------- unload
def test_only_an_administrator_unloads_and_that_ends_the_lease(engine: Engine, library: Library, add: Add) -> None:
    build = add("legal-qa").build
    engine.ask("legal-qa")
    value = {"lora_name": "legal-qa"}

    denied = asyncio.run(engine.send("POST", "/v1/unload_lora_adapter", value))
    with pytest.raises(StoreLocked):
        library.remove([build])
    done = asyncio.run(engine.send("POST", "/v1/unload_lora_adapter", value, x_admin_key="admin"))

    assert (denied[0], done[0]) == (403, 200)
    assert engine.lora_requests == {}
    library.remove([build])


def test_a_lease_outlasts_the_requests_that_run(engine: Engine, library: Library, add: Add) -> None:
    build = add("legal-qa").build

    async def run() -> None:
        engine.may_answer.clear()
        running = asyncio.create_task(engine.send("POST", "/v1/completions", {"model": "legal-qa"}))
        await engine.has_loaded.wait()
        await engine.send("POST", "/v1/unload_lora_adapter", {"lora_name": "legal-qa"}, x_admin_key="admin")
        with pytest.raises(StoreLocked):
            library.remove([build])
        engine.may_answer.set()
        await running

    asyncio.run(run())

    library.remove([build])


def test_the_least_recently_used_adapter_makes_room(
    engine: Engine, library: Library, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = [add(name, seed=at).build for at, name in enumerate(("one", "two", "three"))]
    monkeypatch.setattr(residency, "MOST_LOADED", 2)

    for name in ("one", "two", "one", "three"):
        engine.ask(name)

    assert [name.partition("=")[0] for name in engine.lora_requests] == ["one", "three"]
    library.remove([builds[1]])
    with pytest.raises(StoreLocked):
        library.remove([builds[0]])


# ---------------------------------------------------------------- stop
def test_a_server_that_drains_finishes_what_runs_and_takes_nothing_new(engine: Engine, add: Add) -> None:
    add("legal-qa")

    async def run() -> tuple[list[int], dict[str, str]]:
        engine.may_answer.clear()
        running = asyncio.create_task(engine.send("POST", "/v1/completions", {"model": "legal-qa"}))
        await engine.has_loaded.wait()
        denied, _, _ = await engine.send("POST", "/adapterhub/drain", x_control_key="wrong")
        drained = asyncio.create_task(engine.send("POST", "/adapterhub/drain", x_control_key="control"))
        await asyncio.sleep(0)
        refused, told, _ = await engine.send("POST", "/v1/completions", {"model": "base-7b"})
        health, _, _ = await engine.send("GET", "/health")
        waited = not drained.done()
        engine.may_answer.set()
        statuses = [(await task)[0] for task in (running, drained)]
        assert waited
        return [denied, refused, health, *statuses], told

    statuses, told = asyncio.run(run())

    assert statuses == [403, 503, 503, 200, 200]
    assert told["connection"] == "close"


# ---------------------------------------------------------------- adapters without an effect
def test_an_adapter_that_the_engine_drops_is_refused_before_it_answers_and_a_good_one_is_served(
    engine: Engine, add: Add
) -> None:
    names = {spec: f"{spec}==1.0.0#{add(spec).build.manifest.digest[:19]}" for spec in ("legal-qa", "summarize")}
    engine.effects = {"summarize"}

    async def run() -> list[tuple[int, Any]]:
        asked = ["legal-qa", "summarize", "legal-qa>=1", "summarize"]
        answers = [await engine.send("POST", "/v1/completions", {"model": name}) for name in asked]
        return [(status, value) for status, _, value in answers]

    told = asyncio.run(run())

    assert [status for status, _ in told] == [424, 200, 424, 200]
    assert told[0][1]["error"]["type"] == "AdapterWithoutEffect"
    assert "`legal-qa==1.0.0` has no effect on the base" in told[0][1]["error"]["message"]
    assert [body["model"] for body in engine.bodies] == [names["legal-qa"], *[names["summarize"]] * 2]
    assert engine.questions[1:] == [names["legal-qa"], names["summarize"]]  # once each, and once the base


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_waits_until_its_adapter_is_known_to_have_an_effect(
    engine: Engine, add: Add, *, stream: bool
) -> None:
    names = ["legal-qa", "summarize"]
    for name in names:
        add(name)
    engine.effects = {"summarize"}

    async def run() -> list[tuple[int, Any]]:
        told = list[tuple[int, Any]]()
        for name in names:
            engine.may_tell.clear()
            engine.has_loaded.clear()
            asking = asyncio.create_task(
                engine.send("POST", "/v1/completions", {"model": name, "stream": stream, "max_tokens": 2})
            )
            await engine.has_loaded.wait()
            for _ in range(1000):
                await asyncio.sleep(0)  # the engine has long answered
            assert (len(engine.bodies), engine.sent) == (len(told) + 1, [])
            engine.may_tell.set()
            status, _, value = await asking
            told.append((status, value))
        return told

    (refused, reason), (status, value) = asyncio.run(run())

    assert (refused, reason["error"]["type"], status) == (424, "AdapterWithoutEffect", 200)
    assert value.count('"text":') == 2 if stream else value["choices"] == [{"text": "ab"}]


def test_an_engine_need_not_compute_the_answer_of_an_adapter_that_is_refused(engine: Engine, add: Add) -> None:
    add("legal-qa")
    engine.effects = set()
    engine.may_answer.clear()

    told = engine.ask("legal-qa")

    assert (told[0], [name.partition("==")[0] for name in engine.left]) == (424, ["legal-qa"])
