"""Names in front of llama.cpp's server, with a stand-in for it that says what it was sent."""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM

from adapterhub.core.digests import digest_of, parse_digest
from adapterhub.core.errors import AdapterNotFound, NotFound
from adapterhub.inference.serving.access.gate import Gate
from adapterhub.inference.serving.aliases import ServedAliases
from adapterhub.inference.serving.llama_cpp.engine import find_llama_server
from adapterhub.inference.serving.llama_cpp.names import Names, Served
from adapterhub.inference.serving.llama_cpp.server import Front
from adapterhub.inference.serving.process import free_port
from adapterhub.library.aliasing import point
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from tests.cli.test_serve_command import serving
from tests.support.command_line import Adapt
from tests.support.llama_cpp import write_base
from tests.support.run_library import make_library
from tests.support.standin_llama import HELD, started
from tests.support.standin_llama import program as standin


def post(url: str, value: object) -> tuple[int, Any]:
    answer = httpx.post(url, json=value, timeout=300, trust_env=False)
    return answer.status_code, answer.json() if answer.text[:1] in {"{", "["} else answer.text


NAMES = Names(
    "base-7b",
    [
        Served(name="legal-qa", label="legal-qa==1.2.0", digest=parse_digest("sha256:" + 64 * "a")),
        Served(name="summarize==1.0", label="summarize==1.0", digest=parse_digest("sha256:" + 64 * "b")),
    ],
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port("127.0.0.1")
    with started() as engine, Front("127.0.0.1", port, [engine], NAMES):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("model", "scales"),
    [
        ("base-7b", [0, 0]),
        (None, [0, 0]),
        ("legal-qa", [1, 0]),
        ("summarize==1.0", [0, 1]),
        ("legal-qa>=1.1", [1, 0]),
        ("legal-qa@base-7b", [1, 0]),
        ("summarize", [0, 1]),
        ("summarize#sha256:bbbbbbbb", [0, 1]),
    ],
)
def test_every_request_says_the_scale_of_every_adapter(url: str, model: str | None, scales: list[float]) -> None:
    body = {"prompt": "a"} | ({"model": model} if model else {})

    status, answer = post(f"{url}/v1/completions", body)

    assert (status, answer["prompt"], answer["path"]) == (200, "a", "/v1/completions")
    assert answer["model"] == ("base-7b" if not any(scales) else ["legal-qa", "summarize==1.0"][scales.index(1)])
    assert answer["lora"] == [{"id": at, "scale": float(scale)} for at, scale in enumerate(scales)]


@pytest.mark.parametrize("model", ["nothing", "legal-qa>=2", "legal-qa@other", "../x", "legal-qa#sha256:bbbbbbbb"])
def test_a_name_that_is_not_served_is_refused(url: str, model: str) -> None:
    status, answer = post(f"{url}/v1/completions", {"model": model, "prompt": "a"})

    assert (status, "no adapter" in answer["error"]["message"]) == (404, True)


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v1/completions", {"prompt": "a", "lora": [{"id": 1, "scale": 9}]}, "`lora`: is not a field"),
        ("/v1/completions", {"prompt": "a", "id_slot": 0}, "`id_slot`: is not a field"),
        ("/v1/completions", {"prompt": "a", "model": 7}, "`model`: input should be a valid string"),
        ("/v1/completions", {"prompt": "a", "model": ["legal-qa"]}, "`model`"),
        ("/v1/completions", {"prompt": "a", "n": 1000}, "`n`: input should be less than or equal to 256"),
        ("/v1/completions", {"prompt": "a", "grammar": "root ::= " + 60_000 * "("}, "`grammar`"),
        ("/v1/completions", {"prompt": "a", "grammar": "root ::= " + 40 * "(" + 40 * ")"}, "brackets 40 deep"),
        ("/v1/completions", {"prompt": "a", "grammar": 'root ::= "a"{1,99999999}'}, "a repetition above 1000"),
        ("/v1/completions", {"prompt": ["a", "b"], "stream": True}, "a stream has one prompt"),
        ("/v1/chat/completions", {"messages": []}, "`messages`"),
        (
            "/v1/chat/completions",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}
                ]
            },
            "this server fetches nothing for a request",
        ),
        ("/v1/completions", {"prompt": "a", "json_schema": {"pattern": "(a+)+"}}, "`pattern`"),
    ],
)
def test_a_field_that_no_model_has_and_a_value_beyond_a_bound_are_refused_by_name(
    url: str, path: str, body: Any, told: str
) -> None:
    status, answer = post(f"{url}{path}", body)

    assert (status, told in answer["error"]["message"]) == (400, True), answer


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/lora-adapters", b"[]", 404),
        ("/v1/%6cora-adapters", b"[]", 404),
        ("/slots/0?action=erase", b"{}", 404),
        ("/v1/completions", b"{", 400),
        ("/v1/completions", b"[1]", 400),
        ("/v1/completions", b"[" * 100_000, 400),
        ("/v1/completions", b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400),
    ],
)
def test_what_would_change_the_answers_of_others_or_says_nothing_is_refused(
    url: str, path: str, body: bytes, status: int
) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", path, body, {"Content-Type": "application/json"})

    assert connection.getresponse().status == status


def test_a_denied_adapter_is_refused_and_the_base_is_not(url: str) -> None:
    NAMES.denied.deny(parse_digest("sha256:" + 64 * "a"), "leaks names")
    refused = [post(f"{url}/v1/completions", {"model": name, "prompt": "a"}) for name in ("legal-qa", "legal-qa>=1.1")]
    others = [post(f"{url}/v1/completions", {"model": name, "prompt": "a"})[0] for name in ("base-7b", "summarize")]
    NAMES.denied.allow(parse_digest("sha256:" + 64 * "a"))

    assert [status for status, _ in refused] == [410, 410]
    assert refused[0][1]["error"]["message"] == "`legal-qa==1.2.0` is not served any more: leaks names"
    assert (others, post(f"{url}/v1/completions", {"model": "legal-qa", "prompt": "a"})[0]) == ([200, 200], 200)


def test_a_body_without_a_length_or_beyond_the_limit_is_refused(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()

    assert connection.getresponse().status == 413


def test_models_are_listed_and_streams_pass_through(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("GET", "/v1/models")
    listed = json.loads(connection.getresponse().read())
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request(
        "POST",
        "/v1/completions",
        json.dumps({"model": "legal-qa", "prompt": "a", "stream": True}),
        {"Content-Type": "application/json"},
    )
    answer = connection.getresponse()

    assert [row["id"] for row in listed["data"]] == ["base-7b", "legal-qa", "summarize==1.0"]
    assert answer.getheader("Content-Type") == "text/event-stream"
    *events, end = answer.read().decode().split("\n\n")[:-1]
    parsed = [json.loads(event.removeprefix("data: ")) for event in events]
    assert parsed[0].pop("adapter")["name"] == "legal-qa==1.2.0"
    assert [(event["at"], event["model"]) for event in parsed] == [(at, "legal-qa") for at in range(3)]
    assert end == "data: [DONE]"


def copy_of(source: Path, path: Path, kind: GGMLQuantizationType = GGMLQuantizationType.Q8_0) -> Path:
    """The model in a folder as a quantised GGUF file."""
    return write_base(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), path, kind)


def test_adapters_become_gguf_files_and_a_stopped_server_finishes_what_runs(tmp_path: Path) -> None:
    adapt = Adapt(make_library(tmp_path))
    config = tmp_path / "b" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/home/ann/base"}))
    adapt.ok("add", tmp_path / "b", "--name", "c", "--base", "base-7b")
    base, held = copy_of(tmp_path / "base", tmp_path / "base.gguf"), tmp_path / "held"
    program = standin(tmp_path)
    options = ["--engine", "llama.cpp", "--gguf", str(base), "--llama-server", str(program)]

    with (
        serving(adapt, Path(sys.executable), "a", "c", *options) as (document, process),
        ThreadPoolExecutor() as threads,
    ):
        url = f"{document['url']}/v1/completions"
        status, answer = post(url, {"model": "c", "prompt": "x"})
        files = [Path(word) for word in answer["argv"] if word.endswith(".gguf")]
        magics = [path.read_bytes()[:4] for path in files]
        running = threads.submit(post, url, {"model": "a", "prompt": f"{HELD}{held}"})
        wait_until((tmp_path / "held.begun").exists)
        process.terminate()
        wait_until(lambda: post(url, {"model": "a", "prompt": "x"})[0] == 503)
        held.touch()
        finished = running.result()
        said = process.communicate(timeout=60)[1]

    assert (status, [one["scale"] for one in answer["lora"]]) == (200, [0.0, 1.0])
    assert (files[0], len(files), set(magics)) == (base, 3, {b"GGUF"})
    assert (finished[0], finished[1]["model"]) == (200, "a")
    assert (process.returncode, said.count("warning"), said.count("/home/ann/base")) == (0, 1, 1), said
    assert "finishing the requests that run" in said
    assert not files[1].exists()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_llama_cpp_cannot_carry_is_refused_before_anything_starts(tmp_path: Path) -> None:
    adapt = Adapt(make_library(tmp_path))
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    options = ["--base", "base-7b", "--engine", "llama.cpp", "--gguf", "base.gguf", "--llama-server", sys.executable]

    assert "DoRA" in adapt.fails(11, "serve", "dora", *options)
    assert "`--cpu-slots` is for vLLM" in adapt.fails(2, "serve", "a", *options, "--cpu-slots", "3")
    assert "needs `--gguf`" in adapt.fails(2, "serve", "a", "--base", "base-7b", "--engine", "llama.cpp")


def test_a_machine_without_the_server_is_told_how_to_get_it() -> None:
    with pytest.raises(NotFound, match="`/nowhere/llama-server` was not found"):
        find_llama_server("/nowhere/llama-server")


# ---------------------------------------------------------------- aliases
def test_an_alias_shares_its_requests_among_its_targets_and_means_nothing_where_none_is_loaded(
    library: Library, add: Callable[..., Added]
) -> None:
    one, two, late = (add("legal-qa", version=f"1.{number}", seed=number).build for number in (1, 2, 3))
    point(library, "prod", [(one, 0.5), (two, 0.5)])
    point(library, "next", [(late, 1.0)])
    builds = [(f"legal-qa=={b.manifest.version}", b.manifest.digest) for b in (one, two)]
    served = [
        Served(name=name, label=label, digest=digest)
        for name, (label, digest) in zip(("first", "second"), builds, strict=True)
    ]
    aliases = ServedAliases(library, ttl_s=3600)
    names = Names("base-7b", served, moving=["legal-qa@prod"], aliases=aliases)

    async def found(alias: str, key: str | None = None) -> str:
        one = names.find(await names.exact(alias, key))
        return "" if one is None else one.name

    async def run() -> list[set[str]]:
        shared = {await found("legal-qa@prod", f"user-{number}") for number in range(50)}
        point(library, "prod", [(two, 1.0)])
        kept = {await found("legal-qa@prod", f"user-{number}") for number in range(50)}
        aliases.forget()
        aliases.look_up("legal-qa@prod")
        return [shared, kept, {await found("legal-qa@prod", f"user-{number}") for number in range(50)}]

    assert asyncio.run(run()) == [{"first", "second"}, {"first", "second"}, {"second"}]
    for alias in ("legal-qa@nothing", "legal-qa@next"):
        with pytest.raises(AdapterNotFound):
            asyncio.run(found(alias))
    assert [row["id"] for row in names.listing()["data"]] == ["base-7b", "first", "second", "legal-qa@prod"]


# ---------------------------------------------------------------- tenants
@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A front with two tenants, and its audit log."""
    folder = tmp_path_factory.mktemp("gated")
    (folder / "tenants.toml").write_text(
        f'[tenants.one]\nkeys = ["{digest_of(b"key-one")}"]\nadapters = ["legal-qa"]\nrequests-per-minute = 1000\n'
        f'[tenants.two]\nkeys = ["{digest_of(b"key-two")}"]\nadapters = ["summarize"]\nbase = false\n'
    )
    port = free_port("127.0.0.1")
    gate = Gate(folder / "tenants.toml", str(folder / "audit"))
    with started() as engine, Front("127.0.0.1", port, [engine], NAMES, gate):
        yield f"http://127.0.0.1:{port}", folder / "audit"


def status_of(url: str, method: str, path: str, value: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
    connection.request(method, path, None if value is None else json.dumps(value), sent)
    answer = connection.getresponse()
    return answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read()


@pytest.mark.parametrize(
    ("key", "model", "status"),
    [
        ("one", "legal-qa", 200), ("one", "legal-qa>=1.1", 200), ("one", "base-7b", 200), ("one", "summarize", 403),
        ("one", "summarize#sha256:bbbbbbbb", 403), ("two", "summarize", 200), ("two", "base-7b", 403),
        ("two", "legal-qa", 403), ("three", "legal-qa", 401), ("one", "legal-qa>=9", 404), ("two", None, 403),
    ],
)  # fmt: skip
def test_a_tenant_uses_what_its_list_allows(gated: tuple[str, Path], key: str, model: str | None, status: int) -> None:
    body = {"prompt": "a"} | ({"model": model} if model else {})

    found, headers, data = status_of(gated[0], "POST", "/v1/completions", body, Authorization=f"Bearer key-{key}")

    assert found == status
    if status == 200 and model != "base-7b":
        assert headers["x-adapter-digest"].startswith("sha256:")
    if status != 200:
        assert set(json.loads(data)["error"]) == {"message", "type", "param", "code"}


def test_a_tenant_of_the_front_sees_its_own_models_and_no_other_route(gated: tuple[str, Path]) -> None:
    url, key = gated[0], {"Authorization": "Bearer key-two"}

    listed = json.loads(status_of(url, "GET", "/v1/models", **key)[2])
    closed = [
        status_of(url, method, path, **key)[0]
        for method, path in (("GET", "/props"), ("GET", "/slots"), ("GET", "/lora-adapters"))
    ]
    form = status_of(url, "POST", "/v1/completions", {"model": "summarize"}, **key | {"Content_Type": "text/plain"})

    assert [row["id"] for row in listed["data"]] == ["summarize==1.0"]
    assert (closed, form[0], status_of(url, "GET", "/health")[0]) == ([404, 404, 404], 415, 200)


def test_each_request_to_the_front_has_a_line(gated: tuple[str, Path]) -> None:
    url, audit = gated
    body = {"model": "legal-qa", "prompt": "a secret", "stream": True}
    _, headers, data = status_of(url, "POST", "/v1/completions", body, Authorization="Bearer key-one")

    first = json.loads(data.decode().split("\n\n")[0].removeprefix("data: "))
    found: list[dict[str, Any]] = []
    wait_until(lambda: bool(found.extend(lines_of(audit, headers["x-request-id"])) or found))
    assert first["adapter"] == {"name": "legal-qa==1.2.0", "digest": "sha256:" + 64 * "a", "base": ""}
    assert (found[0]["tenant"], found[0]["model"], found[0]["adapter"], found[0]["status"]) == (
        "one", "legal-qa", "legal-qa==1.2.0", 200
    )  # fmt: skip
    assert (found[0]["prompt_tokens"], found[0]["completion_tokens"]) == (5, 3)
    assert b'"usage"' not in data  # which the client did not ask for
    assert "secret" not in audit.read_text()


def lines_of(audit: Path, request_id: str) -> list[dict[str, Any]]:
    told = [json.loads(line) for line in audit.read_text().splitlines()]
    return [one for one in told if one["request_id"] == request_id]
