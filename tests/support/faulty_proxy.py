"""A proxy on loopback that passes requests on to a server and breaks the answers in the ways networks do.

A fault is told of each request and its true answer; it gives back what goes onto the wire: bytes, seconds to wait,
`RESET`. When it ends, so does the connection.
"""

from __future__ import annotations

import functools
import gzip
import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
RESET = object()  # tears the connection down, as a firewall does


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def head(self, **changed: object) -> bytes:
        """Status line and headers; a keyword replaces or, with None, removes one (`content_length=5`)."""
        fields = {name.lower(): value for name, value in self.headers} | {"content-length": str(len(self.body))}
        fields |= {name.replace("_", "-"): value for name, value in changed.items()}  # type: ignore[misc]
        lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
        return "\r\n".join([f"HTTP/1.1 {self.status} Told", "connection: close", *lines, "", ""]).encode()


Steps = Iterable[Any]
Fault = Callable[[Request, Answer], Steps]


@dataclass
class Proxy:
    """`faults`: for each part of a path, what is done to answers whose path holds it. `seen`: every request."""

    url: str
    faults: dict[str, Fault] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)
    sent_bytes: int = 0


def whole(_request: Request, answer: Answer) -> Steps:
    return [answer.head(), answer.body]


def once(fault: Fault) -> Fault:
    """The fault for the first request, and none for later ones."""
    left = [fault]
    return lambda request, answer: left.pop()(request, answer) if left else whole(request, answer)


def cut(after: int) -> Fault:
    return lambda _request, answer: [answer.head(), answer.body[:after]]


def reset(after: int | None = None) -> Fault:
    """Torn down after so many bytes of the body, None: before a word of the answer."""
    return lambda _request, answer: [RESET] if after is None else [answer.head(), answer.body[:after], 0.02, RESET]


def silent(_request: Request, answer: Answer) -> Steps:
    return [answer.head(), 1.5]


def slow(_request: Request, answer: Answer) -> Steps:
    yield answer.head()
    for byte in answer.body[:150]:
        yield bytes([byte])
        yield 0.02


def miscounted(by: int) -> Fault:
    return lambda _request, answer: [answer.head(content_length=len(answer.body) + by), answer.body]


def wrong_bytes(_request: Request, answer: Answer) -> Steps:
    body = bytearray(answer.body)
    body[-3] ^= 1
    return [answer.head(), bytes(body)]


def endless(_request: Request, answer: Answer) -> Steps:
    yield replace(answer, status=200).head(content_length=None, content_range=None, transfer_encoding="chunked")
    piece = b"x" * (1 << 16)
    while True:
        yield b"%x\r\n" % len(piece) + piece + b"\r\n"


def endless_error(request: Request, answer: Answer) -> Steps:
    for step in endless(request, answer):
        yield step.replace(b"HTTP/1.1 200", b"HTTP/1.1 500", 1)


@functools.cache
def packed_zeros() -> bytes:
    """A gigabyte of zeros in a megabyte of gzip."""
    return gzip.compress(b"\0" * (16 << 20)) * 64


def bomb(_request: Request, answer: Answer) -> Steps:
    packed = packed_zeros()
    return [answer.head(content_length=len(packed), content_encoding="gzip"), packed]


def redirect(target: str) -> Fault:
    return lambda _request, answer: [replace(answer, status=302, body=b"").head(location=target)]


def status(code: int, **headers: str) -> Fault:
    body = json.dumps({"error": f"told\x1b[31m {code}"}).encode()
    return lambda _request, answer: [
        replace(answer, status=code, body=body).head(content_type="application/json", **headers),
        body,
    ]


def changed_json(change: Callable[[Any], Any]) -> Fault:
    """The answer's JSON, changed."""

    def fault(_: Request, answer: Answer) -> Steps:
        body = json.dumps(change(json.loads(answer.body))).encode() if answer.status < 300 else answer.body
        return [replace(answer, body=body).head(etag=None), body]

    return fault


@contextmanager
def faulty(upstream: str) -> Iterator[Proxy]:
    place = urlsplit(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
            proxy.seen.append(request)
            away = http.client.HTTPConnection(place.hostname or "", place.port)
            away.request(self.command, self.path, body, {k: v for k, v in request.headers.items() if k not in HOP})
            told = away.getresponse()
            kept = tuple((k, v) for k, v in told.getheaders() if k.lower() not in HOP)
            answer = Answer(told.status, kept, told.read())
            away.close()
            fault = next((f for part, f in proxy.faults.items() if part in self.path), whole)
            self.close_connection = True
            with suppress(OSError):
                self.put(fault(request, answer))

        def put(self, steps: Steps) -> None:
            for step in steps:
                if step is RESET:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    return
                if isinstance(step, float):
                    time.sleep(step)
                    continue
                self.connection.sendall(step)
                proxy.sent_bytes += len(step)

        do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - http.server's names

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that hangs up is what is tested."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
