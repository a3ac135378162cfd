"""The counters of serving, scraped over HTTP from the middleware and from llama.cpp's front; real vLLM is in `engines`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from adapterhub.core.digests import parse_digest
from adapterhub.inference.serving.answers import Usage, asking_for_usage, says_only_usage, usage_in
from adapterhub.inference.serving.llama_cpp.names import Names, Served
from adapterhub.inference.serving.llama_cpp.server import Front
from adapterhub.inference.serving.metrics import OTHER, ServingMetrics, exposition
from adapterhub.inference.serving.process import free_port
from adapterhub.library.library import Library
from tests.inference.test_model_names import KEY, USUAL, Add, Engine, engine  # noqa: F401 - a fixture
from tests.inference.test_tenants import ask as ask_as
from tests.inference.test_tenants import file, make  # noqa: F401 - fixtures
from tests.support.standin_llama import started

USAGE = {"prompt_tokens": 5, "total_tokens": 8, "completion_tokens": 3}
STREAMED = {"model": "", "prompt": "a", "stream": True}


def samples(text: str) -> dict[tuple[str, str], float]:
    """Our samples: `(name, its labels)` and the value, without times."""
    return {
        (sample.name.removeprefix("adapterhub_"), ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("adapterhub_") and not sample.name.endswith(("_created", "_sum", "_bucket"))
    }


async def _complete(request: Request) -> Any:
    """As vLLM answers: with the usage at the end of a stream only where that is asked for."""
    body = await request.json()
    if not body.get("stream"):
        return JSONResponse({"choices": [{"text": 'x "usage": {"prompt_tokens": 9}'}], "usage": USAGE})
    events = [{"choices": [{"text": "a"}]}, {"choices": [{"text": "b"}]}]
    if (body.get("stream_options") or {}).get("include_usage"):
        events.append({"choices": [], "usage": USAGE})
    lines = [f"data: {json.dumps(event, separators=(',', ':'))}\n\n" for event in events]
    return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    port = free_port("127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(60)


@pytest.fixture
def url(engine: Engine) -> Iterator[str]:  # noqa: F811 - the fixture
    """The middleware before routes that answer as vLLM's do."""
    registry = CollectorRegistry()
    engine.resolver.__dict__["metrics"] = ServingMetrics(registry)

    async def complete(request: Request) -> Any:
        name = (await request.json())["model"]
        if name != "base-7b":
            engine.lora_requests.setdefault(name, SimpleNamespace(lora_path=name, lora_int_id=1))
        return await _complete(request)

    engine.app.post("/v1/chat/completions")(complete)
    engine.app.get("/metrics")(lambda: PlainTextResponse(exposition(registry)[0]))
    with listening(engine.app) as url:
        yield url


def ask(url: str, model: str, *, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
    return httpx.post(url + path, json={"model": model, **USUAL[path], **more}, headers=KEY)


def scraped(url: str) -> dict[tuple[str, str], float]:
    return samples(httpx.get(f"{url}/metrics", headers=KEY).text)


def test_requests_look_ups_and_tokens_are_counted_by_adapter(url: str, add: Add) -> None:
    add("legal-qa")
    streams = [ask(url, name, stream=True).text for name in ("legal-qa", "base-7b")]
    for name in ("legal-qa>=1", "legal-qa", "base-7b"):
        assert ask(url, name).status_code == 200

    assert ask(url, "nothing", path="/v1/completions").status_code == 404

    found = scraped(url)
    assert {name: value for name, value in found.items() if name[0] == "lookups_total"} == {
        ("lookups_total", "installed"): 2,
        ("lookups_total", "hit"): 1,
        ("lookups_total", "refused"): 1,
    }
    assert found["refusals_total", "404"] == 1
    assert found["adapter_requests_total", "legal-qa==1.0.0"] == 3
    assert found["adapter_requests_total", "base"] == 2
    assert found["adapter_tokens_total", "legal-qa==1.0.0,prompt"] == 15
    assert found["adapter_tokens_total", "legal-qa==1.0.0,generated"] == 9
    assert found["adapter_tokens_total", "base,prompt"] == 10
    assert found["first_answer_seconds_count", "installed"] == 2
    assert found["first_answer_seconds_count", "base"] == 2
    assert all("usage" not in stream and stream.endswith("data: [DONE]\n\n") for stream in streams)


def test_what_is_denied_is_counted_as_refused(url: str, add: Add, engine: Engine) -> None:  # noqa: F811 - the fixture
    build = add("legal-qa").build
    ask(url, "legal-qa")
    engine.resolver.denied.deny(build.manifest.digest, "leaks names")

    assert ask(url, "legal-qa").status_code >= 400

    found = scraped(url)
    assert found["lookups_total", "refused"] == 1
    assert sum(value for (name, _), value in found.items() if name == "refusals_total") == 1
    assert found["adapter_requests_total", "legal-qa==1.0.0"] == 1


def test_what_a_tenant_must_not_do_is_counted_once(make: Callable[..., Engine], add: Add) -> None:  # noqa: F811 - the fixture
    add("beta-qa")
    tenants, registry = make(), CollectorRegistry()
    tenants.resolver.__dict__["metrics"] = ServingMetrics(registry)

    async def run() -> list[int]:
        asked = [("beta", "base-7b"), ("nobody", "beta-qa"), ("acme", "nothing"), ("beta", "beta-qa")]
        return [(await ask_as(tenants, *one))[0] for one in asked]

    assert asyncio.run(run()) == [403, 401, 404, 200]
    found = samples(exposition(registry)[0].decode())
    assert {code: value for (name, code), value in found.items() if name == "refusals_total"} == dict.fromkeys(
        ("401", "403", "404"), 1.0
    )


@pytest.mark.slow
def test_the_front_of_llama_cpp_counts_under_the_same_names() -> None:
    port = free_port("127.0.0.1")
    digest = parse_digest("sha256:" + 64 * "a")
    names = Names("base-7b", [Served(name="legal-qa", label="legal-qa==1.2.0", digest=digest)])
    url = f"http://127.0.0.1:{port}"
    with started() as where, Front("127.0.0.1", port, [where], names):
        path = "/v1/completions"
        stream = ask(url, "legal-qa", path=path, stream=True).text
        for name in ("legal-qa>=1", "base-7b", "nothing"):
            ask(url, name, path=path)
        text = httpx.get(f"{url}/metrics").text

    found = samples(text)
    assert (found["lookups_total", "hit"], found["lookups_total", "refused"]) == (2, 1)
    assert found["refusals_total", "404"] == 1
    assert found["adapter_requests_total", "legal-qa==1.2.0"] == 2
    assert found["adapter_tokens_total", "legal-qa==1.2.0,generated"] == 6
    assert found["adapter_tokens_total", "base,prompt"] == 5
    assert found["first_answer_seconds_count", "hit"] == 2
    assert "llamacpp:requests 7" in text
    assert "usage" not in stream


def test_bytes_from_sources_are_counted(tmp_path: Path, library: Library, base: Any, add: Add) -> None:
    from adapterhub.inference.serving import AdapterProvider

    build = add("legal-qa").build
    registry = CollectorRegistry()
    other = Library(tmp_path / "other")
    provider = AdapterProvider(
        other, base, engine="vllm@0.32", sources=lambda _: [library], progress=ServingMetrics(registry).fetched
    )
    with contextlib.closing(provider):
        provider.fetch("legal-qa")

    size = sum(entry.size_bytes for entry in build.manifest.files)
    assert samples(exposition(registry)[0].decode())["fetched_bytes_total", ""] >= size


def test_adapters_beyond_the_bound_share_one_series() -> None:
    registry = CollectorRegistry()
    metrics = ServingMetrics(registry, most_adapters=3)
    for number in range(50):
        metrics.answered(f"a{number}==1.0", "hit", 0.1)
        metrics.used_tokens(f"a{number}==1.0", 1, 1)

    found = samples(exposition(registry)[0].decode())

    assert found["adapter_requests_total", OTHER] == 47
    assert len([name for name, _ in found if name == "adapter_requests_total"]) == 4


PIECES: list[tuple[bytes, Usage | None]] = [
    (b'{"choices":[],"usage":{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3}}', Usage(5, 3)),
    (b'{"usage": {"input_tokens": 4, "output_tokens": 2}}', Usage(4, 2)),
    (b'{"data":[],"usage":{"prompt_tokens":4,"total_tokens":4}}', Usage(4, 0)),
    (b'{"text":"\\"usage\\":{\\"prompt_tokens\\":9,\\"completion_tokens\\":9}"}', None),
    (b'{"usage":null}', None),
    (b'{"usage":{"prompt_tokens":-1,"completion_tokens":1}}', None),
    (b'{"usage":{"prompt_tokens":true,"completion_tokens":1}}', None),
    (b'{"usage":{"prompt_tokens":', None),
    (b'"usage":' + b"[" * 5000, None),
    (b'event: x\ndata: {"response":{"usage":{"input_tokens":3,"output_tokens":2}}}\n\n', Usage(3, 2)),
    (b'{"usage":[1]}', None),
    (b"", None),
]


@pytest.mark.parametrize(("piece", "usage"), PIECES)
def test_usage_is_read_where_an_answer_says_it(piece: bytes, usage: Usage | None) -> None:
    assert usage_in(piece) == usage


def test_a_stream_is_made_to_tell_its_usage_unless_it_does() -> None:
    route, asks = "/v1/completions", {"stream_options": {"include_usage": True}}

    assert asking_for_usage(route, {"stream": True}) == asks
    assert asking_for_usage(route, {"stream": True, "stream_options": None}) == asks
    assert asking_for_usage(route, {"stream": True, "stream_options": {"continuous_usage_stats": True}}) == asks
    for value in ({"stream": "yes"}, {}, {"stream": True, **asks}, {"stream": True, "stream_options": 1}):
        assert asking_for_usage(route, value) == {}
    assert asking_for_usage("/v1/responses", {"stream": True}) == {}
    assert not says_only_usage(b'data: {"choices":[{"text":"\\"choices\\":[]"}],"usage":{}}')
