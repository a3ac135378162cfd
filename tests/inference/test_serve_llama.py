"""Names in front of llama.cpp's server, with a stand-in for it that says what it was sent."""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.digests import parse_digest
from adapterhub.core.errors import NotFound
from adapterhub.inference.serving.front import free_port, post
from adapterhub.inference.serving.llama_cpp import Names, find_llama_server, front
from adapterhub.inference.serving.process import EngineProcess
from tests.cli.test_serve_command import serving
from tests.support.command_line import Adapt
from tests.support.run_library import make_library

ECHO = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Type", "application/json"); self.end_headers()
        self.wfile.write(json.dumps({"path": self.path, "model_path": "/srv/base.gguf"}).encode())
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if body.get("stream") else "application/json")
        self.end_headers()
        if body.get("stream"):
            for at in range(3):
                self.wfile.write(b'data: {"at": %d, "model": "/srv/base.gguf"}\\n\\n' % at); self.wfile.flush()
            self.wfile.write(b"data: [DONE]\\n\\n")
        else:
            if body.get("wait"):
                open(body["wait"] + ".begun", "w").close()
                while not os.path.exists(body["wait"]): time.sleep(0.01)
            told = {"argv": sys.argv[1:], "path": self.path, **body, "model": "/srv/base.gguf"}
            self.wfile.write(json.dumps(told).encode())

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


NAMES = Names(
    "base-7b",
    ["legal-qa", "summarize==1.0"],
    [("legal-qa==1.2.0", parse_digest("sha256:" + 64 * "a")), ("summarize==1.0", parse_digest("sha256:" + 64 * "b"))],
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    script = tmp_path_factory.mktemp("echo") / "echo.py"
    script.write_text(ECHO)
    engine, port = free_port("127.0.0.1"), free_port("127.0.0.1")
    with EngineProcess([sys.executable, str(script), "--port", str(engine)], {}, output=None) as process:
        process.wait_until_ready(f"http://127.0.0.1:{engine}/health", within_s=30)
        with front("127.0.0.1", port, engine, NAMES):
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
    body = {"prompt": "a", "lora": [{"id": 1, "scale": 9}]} | ({"model": model} if model else {})

    status, answer = post(f"{url}/v1/completions", body)

    assert (status, answer["prompt"], answer["path"]) == (200, "a", "/v1/completions")
    assert answer["model"] == ("base-7b" if not any(scales) else ["legal-qa", "summarize==1.0"][scales.index(1)])
    assert answer["lora"] == [{"id": at, "scale": float(scale)} for at, scale in enumerate(scales)]


@pytest.mark.parametrize(
    "model", ["nothing", 7, ["legal-qa"], "legal-qa>=2", "legal-qa@other", "../x", "legal-qa#sha256:bbbbbbbb"]
)
def test_a_name_that_is_not_served_is_refused(url: str, model: Any) -> None:
    status, answer = post(f"{url}/v1/chat/completions", {"model": model})

    assert (status, "no adapter" in answer["error"]["message"]) == (404, True)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/lora-adapters", b"[]", 403), ("/v1/completions", b"{", 400), ("/v1/completions", b"[1]", 400)],
)
def test_what_would_change_the_answers_of_others_or_says_nothing_is_refused(
    url: str, path: str, body: bytes, status: int
) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", path, body, {"Content-Type": "application/json"})

    assert connection.getresponse().status == status


def test_a_denied_adapter_is_refused_and_the_base_is_not(url: str) -> None:
    NAMES.denied.deny(parse_digest("sha256:" + 64 * "a"), "leaks names")
    refused = [post(f"{url}/v1/completions", {"model": name}) for name in ("legal-qa", "legal-qa>=1.1")]
    others = [post(f"{url}/v1/completions", {"model": name})[0] for name in ("base-7b", "summarize")]
    NAMES.denied.allow(parse_digest("sha256:" + 64 * "a"))

    assert [status for status, _ in refused] == [410, 410]
    assert refused[0][1]["error"]["message"] == "`legal-qa==1.2.0` is not served any more: leaks names"
    assert (others, post(f"{url}/v1/completions", {"model": "legal-qa"})[0]) == ([200, 200], 200)


def test_a_body_without_a_length_or_beyond_the_limit_is_refused(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()

    assert connection.getresponse().status == 413


def test_models_are_listed_and_streams_pass_through(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("GET", "/v1/models")
    listed = json.loads(connection.getresponse().read())
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", "/v1/completions", json.dumps({"model": "legal-qa", "stream": True}))
    answer = connection.getresponse()

    assert [row["id"] for row in listed["data"]] == ["base-7b", "legal-qa", "summarize==1.0"]
    assert answer.getheader("Content-Type") == "text/event-stream"
    *events, end = answer.read().decode().split("\n\n")[:-1]
    assert [json.loads(event.removeprefix("data: ")) for event in events] == [
        {"at": at, "model": "legal-qa"} for at in range(3)
    ]
    assert end == "data: [DONE]"


def test_no_path_of_the_server_is_shown(url: str) -> None:
    host = url.removeprefix("http://")
    answers = []
    for path in ("/props", "/lora-adapters"):
        connection = http.client.HTTPConnection(host)
        connection.request("GET", path)
        answer = connection.getresponse()
        answers.append((answer.status, b"/srv" in answer.read()))

    assert answers == [(200, False), (403, False)]


def test_adapters_become_gguf_files_that_the_server_is_started_with(tmp_path: Path) -> None:
    adapt = Adapt(make_library(tmp_path))
    config = tmp_path / "b" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/home/ann/base"}))
    adapt.ok("add", tmp_path / "b", "--name", "c", "--base", "base-7b")
    base = tmp_path / "base.gguf"
    base.write_bytes(b"GGUF")
    program = tmp_path / "llama-server"
    program.write_text(f"#!{sys.executable}\n{ECHO}")
    program.chmod(0o755)
    options = ["--engine", "llama.cpp", "--gguf", str(base), "--llama-server", str(program)]

    with serving(adapt, Path(sys.executable), "a", "c", *options) as (document, process):
        status, answer = post(f"{document['url']}/v1/completions", {"model": "c", "prompt": "x"})
        files = [Path(word) for word in answer["argv"] if word.endswith(".gguf")]
        magics = [path.read_bytes()[:4] for path in files]
        process.terminate()
        said = process.communicate(timeout=60)[1]

    assert (status, [one["scale"] for one in answer["lora"]]) == (200, [0.0, 1.0])
    assert (files[0], len(files), set(magics)) == (base, 3, {b"GGUF"})
    assert (process.returncode, said.count("warning"), said.count("/home/ann/base")) == (0, 1, 1), said
    assert not files[1].exists()


def test_a_stopped_server_finishes_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    adapt = Adapt(make_library(tmp_path))
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    program = tmp_path / "llama-server"
    program.write_text(f"#!{sys.executable}\n{ECHO}")
    program.chmod(0o755)
    options = ["--engine", "llama.cpp", "--gguf", str(tmp_path / "base.gguf"), "--llama-server", str(program)]
    held = tmp_path / "held"

    with serving(adapt, Path(sys.executable), "a", *options) as (document, process), ThreadPoolExecutor() as threads:
        url = f"{document['url']}/v1/completions"
        running = threads.submit(post, url, {"model": "a", "wait": str(held)})
        wait_until((tmp_path / "held.begun").exists)
        process.terminate()
        wait_until(lambda: post(url, {"model": "a"})[0] == 503)
        held.touch()
        status, answer = running.result()
        said = process.communicate(timeout=60)[1]

    assert (status, answer["model"]) == (200, "a")
    assert process.returncode == 0
    assert "finishing the requests that run" in said


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
