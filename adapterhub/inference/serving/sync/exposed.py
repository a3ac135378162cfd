"""What a program beside an engine shows of itself: `/metrics`, and `/health`."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from adapterhub.core.errors import NotAllowed
from adapterhub.inference.serving.metrics import exposition

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_WAIT_S = 10.0


@contextlib.contextmanager
def exposed(
    host: str, port: int, registry: CollectorRegistry | None, health: Callable[[], dict[str, Any]]
) -> Iterator[None]:
    """Answer GETs while the block runs. `/health` has the JSON of `health`, and is 503 unless its `ok` is true.

    Raises:
        NotAllowed: the address cannot be listened on.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _WAIT_S

        def do_GET(self) -> None:
            if self.path == "/health":
                told = health()
                status = HTTPStatus.OK if told["ok"] else HTTPStatus.SERVICE_UNAVAILABLE
                self._send(status, json.dumps(told).encode(), "application/json")
            elif self.path == "/metrics" and registry is not None:
                self._send(HTTPStatus.OK, *exposition(registry))
            else:
                self._send(HTTPStatus.NOT_FOUND, b"", "text/plain")

        def _send(self, status: HTTPStatus, body: bytes, media_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        server = Server((host, port), Handler)
    except OSError as error:
        raise NotAllowed(f"cannot listen on `{host}:{port}`: {error.strerror}", hint="choose another port") from None
    with server:
        threading.Thread(target=server.serve_forever, name="adapterhub-exposed", daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
