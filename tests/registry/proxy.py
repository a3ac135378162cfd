"""A reverse proxy on loopback that notes every request and breaks the answers it is told to."""

from __future__ import annotations

import http.client
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Proxy:
    """`fault(request)` says what is done to the answer: a function that changes its body, ("cut", bytes), ("redirect",
    url), "drop" (the request never arrives), "lose" (its answer never does), or nothing."""

    url: str
    fault: Callable[[Request], Any] = lambda _request: None
    seen: list[Request] = field(default_factory=list)

    def paths(self, *parts: str, method: str = "GET") -> list[str]:
        return [r.path for r in self.seen if r.method == method and all(p in r.path for p in parts)]


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that left, nor of a server behind it that is down: the client sees a lost connection."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def proxy_of(upstream: str) -> Iterator[Proxy]:  # noqa: C901 - one handler, told straight through
    place = urlsplit(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or a body waits 40 ms for its head

        def log_message(self, *_: object) -> None:
            pass

        def body(self) -> bytes:
            if "chunked" not in self.headers.get("transfer-encoding", ""):
                return self.rfile.read(int(self.headers.get("content-length", 0)))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def answer(self) -> None:
            request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
            body = self.body()
            proxy.seen.append(request)
            fault = proxy.fault(request)
            if fault == "drop":
                self.close_connection = True
                return
            if isinstance(fault, tuple) and fault[0] == "redirect":
                self.send_response(302)
                self.send_header("Location", fault[1])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            away = http.client.HTTPConnection(place.hostname or "", place.port)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
            away.request(self.command, self.path, body, headers)
            response = away.getresponse()
            data = response.read()
            if fault == "lose":
                self.close_connection = True
                return
            length = len(data) if self.command != "HEAD" else response.getheader("content-length") or 0
            if callable(fault):
                data = fault(data)
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if isinstance(fault, tuple) and fault[0] == "cut":
                data = data[: fault[1]]
                self.close_connection = True
            if self.command != "HEAD":
                self.wfile.write(data)
            away.close()

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - http.server's names

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


def flip_a_byte(data: bytes) -> bytes:
    """Wrong bytes of the right length."""
    changed = bytearray(data)
    changed[-3] ^= 1
    return bytes(changed)
