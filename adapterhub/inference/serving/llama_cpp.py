"""llama.cpp's server behind a front that selects adapters by name.

`llama-server` gets its adapters at the start, numbers them, and applies all of them to a request without scales. The
front translates the `model` of each request into the full list of numbers and scales. So each answer uses exactly the
adapter that the request names, or none.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from adapterhub.core.errors import NotFound, shown

MOST_BYTES: Final = 64 << 20
"""The front refuses a longer request."""

_CHUNK_BYTES: Final = 1 << 16
_ANSWER_S: Final = 3600.0
_OWN_HEADERS: Final = frozenset({"connection", "transfer-encoding", "keep-alive", "content-length", "host"})
_CLOSED: Final = ("/lora-adapters", "/models/load", "/models/unload")
"""Routes of the engine that change the answers to all clients."""


def find_llama_server(program: str | None) -> str:
    """The path of the server's program.

    Raises:
        NotFound: there is no such program.
    """
    found = shutil.which(program or "llama-server")
    if found is None:
        raise NotFound(
            f"`{shown(program or 'llama-server', 200)}` was not found",
            hint="download it from llama.cpp's releases or build it, then pass `--llama-server FILE`",
        )
    return found


def command_of(program: str, base: Path, adapters: Sequence[Path], port: int, extra: Sequence[str]) -> list[str]:
    """The command that starts the server; it listens on loopback only, for the front."""
    loras = [word for path in adapters for word in ("--lora", str(path))]
    return [program, "--model", str(base), *loras, "--host", "127.0.0.1", "--port", str(port), *extra]


class Names:
    """Translates names for the engine. `adapters` are in the order in which the engine loaded them."""

    def __init__(self, base: str, adapters: Sequence[str]) -> None:
        self.base = base
        self.adapters = tuple(adapters)

    def scales(self, name: str) -> list[dict[str, float]] | None:
        """The number and scale of each adapter for requests that name `name`; None for an unknown name."""
        if name != self.base and name not in self.adapters:
            return None
        return [{"id": at, "scale": 1.0 if one == name else 0.0} for at, one in enumerate(self.adapters)]

    def listing(self) -> dict[str, Any]:
        """The answer to GET /v1/models."""
        rows = [{"id": name, "object": "model", "owned_by": "adapterhub"} for name in (self.base, *self.adapters)]
        return {"object": "list", "data": rows}


@contextlib.contextmanager
def front(host: str, port: int, engine_port: int, names: Names) -> Iterator[None]:
    """Answer requests on `host` and `port` while the block runs.

    Raises:
        OSError: the port is taken.
    """

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

    handler = type("Handler", (_Handler,), {"engine_port": engine_port, "names": names})
    with Server((host, port), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    """Forwards requests to the engine; adds the scales for their `model` to those with a JSON body."""

    engine_port: int
    names: Names
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - as in http.server
        """Log nothing: the engine has its own log."""

    def do_GET(self) -> None:
        """List the models; forward everything else to the engine."""
        if self.path.partition("?")[0].rstrip("/") in {"/v1/models", "/models"}:
            self._answer(HTTPStatus.OK, self.names.listing())
            return
        self._pass_on(None)

    def do_POST(self) -> None:
        """Add the scales and forward the request, or refuse it."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > MOST_BYTES:
            self.close_connection = True
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected a body of at most {MOST_BYTES} bytes")
            return
        raw = self.rfile.read(int(length))
        if self.path.partition("?")[0].rstrip("/").endswith(_CLOSED):
            self._refuse(HTTPStatus.FORBIDDEN, "the `model` of each request selects the adapter; this route is closed")
            return
        try:
            body = json.loads(raw)
        except ValueError:
            self._refuse(HTTPStatus.BAD_REQUEST, "the body is not JSON")
            return
        if not isinstance(body, dict):
            self._refuse(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
            return
        name = body.get("model", self.names.base)
        scales = self.names.scales(name) if isinstance(name, str) else None
        if scales is None:
            self._refuse(HTTPStatus.NOT_FOUND, f"no adapter `{shown(name)}` is served; GET /v1/models lists them")
            return
        self._pass_on(json.dumps(body | {"lora": scales}).encode())

    def _pass_on(self, body: bytes | None) -> None:
        """Forward the request to the engine, and stream its answer back."""
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN_HEADERS}
        connection = http.client.HTTPConnection("127.0.0.1", self.engine_port, timeout=_ANSWER_S)
        with contextlib.closing(connection):
            try:
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException):
                self._refuse(HTTPStatus.BAD_GATEWAY, "the engine does not answer")
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _OWN_HEADERS:
                    self.send_header(name, value)
            self.send_header("Connection", "close")  # the end of the stream is the end of the answer
            self.end_headers()
            self.close_connection = True
            with contextlib.suppress(OSError, http.client.HTTPException):  # one side closed the connection
                while piece := answer.read1(_CHUNK_BYTES):
                    self.wfile.write(piece)
                    self.wfile.flush()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._answer(status, {"error": {"message": message, "type": status.phrase, "code": int(status)}})

    def _answer(self, status: HTTPStatus, value: Mapping[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
