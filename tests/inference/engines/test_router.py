"""What the router of docs/how-to/serve-in-production.md repeats, and what it counts against a replica, with servers that do nothing."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adapterhub.inference.serving.chain.bodies import parsed
from adapterhub.vllm_plugin.routes import ROUTES
from tests.inference.engines.fleet import router
from tests.inference.engines.servers import Server, completion_of

pytestmark = pytest.mark.engine

GOOD = b"{}"


@dataclass
class Replicas:
    """Two servers. `first`, the port of the one that was asked first, answers with `fault`; `asked` lists ports, `bodies` what came."""

    fault: int | str = 200
    first: int = 0
    asked: list[int] = field(default_factory=list)
    bodies: list[tuple[str, bytes]] = field(default_factory=list)

    def ask(self, front: Server, *, stream: bool = False) -> tuple[int, list[bool]]:
        """The status, 0 where no whole answer came, and of each try whether it reached the first replica."""
        self.asked.clear()
        try:
            status = front.post("/v1/completions", {"model": "m", "prompt": "a", "stream": stream}).status
        except (OSError, http.client.HTTPException):
            status = 0
        self.first = self.first or self.asked[0]
        return status, [port == self.first for port in self.asked]


@pytest.fixture
def replicas() -> Replicas:
    return Replicas()


@pytest.fixture
def front(replicas: Replicas, tmp_path: Path) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(200)

        def do_POST(self) -> None:
            replicas.bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            port = self.server.server_address[1]
            replicas.asked.append(port)
            fault = replicas.fault if port == replicas.first else 200
            if isinstance(fault, int):
                self.answer(fault)
                return
            if fault == "cut a stream":
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"9\r\ndata: {}\n\r\n")
            elif fault == "cut an answer":
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"{")
            self.close_connection = True

        def answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(GOOD)))
            self.end_headers()
            self.wfile.write(GOOD)

    with contextlib.ExitStack() as stack:
        urls = []
        for _ in range(2):
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            urls.append(f"http://127.0.0.1:{server.server_address[1]}")
        running = stack.enter_context(router(urls, tmp_path / "router.log"))
        assert replicas.ask(running) == (200, [True])
        yield running


def test_neither_a_refusal_nor_a_stream_that_has_begun_is_repeated_or_counted(
    replicas: Replicas, front: Server
) -> None:
    for fault in (400, 403, 404, 409, 422, 424, "cut a stream"):
        replicas.fault = fault
        status = fault if isinstance(fault, int) else 0
        assert [replicas.ask(front, stream=not status) for _ in range(6)] == [(status, [True])] * 6

    replicas.fault = 200
    assert replicas.ask(front) == (200, [True])


@pytest.mark.parametrize("fault", [503, "lose the request", "cut an answer"])
def test_what_a_replica_does_not_answer_the_other_answers(replicas: Replicas, front: Server, fault: int | str) -> None:
    replicas.fault = fault

    assert replicas.ask(front) == (200, [True, True, True, False])
    assert replicas.ask(front) == (200, [False])


def test_a_replica_takes_each_body_as_the_router_writes_it(replicas: Replicas, front: Server) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
    sent: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", completion_of("m", "a", 3)),
        ("/v1/completions", completion_of("m", "a", 3) | {"stream": True, "logprobs": 2, "seed": 1, "stop": ["a"]}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/embeddings", {"model": "m", "input": "a"}),
        ("/v1/responses", {"model": "m", "input": "a"}),
        ("/v1/messages", chat),
        ("/rerank", {"model": "m", "query": "a", "documents": ["b"]}),  # its /v1/rerank drops the name of the model
    ]
    for path, body in sent:
        replicas.bodies.clear()
        front.post(path, body)

        [(reached, written)] = replicas.bodies
        taken = parsed(ROUTES[reached], written)
        assert {key: taken.get(key) for key in body} == body, (path, written)
