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

from packaging.version import Version

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterDenied, NotFound, SpecError, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.inference.serving.access.denied import Denied
from adapterhub.inference.serving.control import REFUSED_WHILE_DRAINING
from adapterhub.inference.serving.refusal import refusal_of

MOST_BYTES: Final = 64 << 20
"""The front refuses a longer request."""

_CHUNK_BYTES: Final = 1 << 16
_ANSWER_S: Final = 3600.0
_OWN_HEADERS: Final = frozenset({"connection", "transfer-encoding", "keep-alive", "content-length", "host"})
_CLOSED: Final = ("/lora-adapters", "/models/load", "/models/unload")
"""Routes of the engine that change the answers to all clients, or show paths."""


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
    """Translates names for the engine.

    `adapters` are in the order in which the engine loaded them; `builds` has the full name with version and the digest
    of each, such as `("acme/legal-qa==1.2.0", "sha256:…")`, so that other spellings find them, too. `callings` say how
    to ask each, for the list of models.
    """

    def __init__(
        self,
        base: str,
        adapters: Sequence[str],
        builds: Sequence[tuple[str, Digest]] = (),
        callings: Sequence[Mapping[str, Any]] = (),
        denied: Denied | None = None,
    ) -> None:
        self.base = base
        self._callings = dict(zip(adapters, callings, strict=False))
        self.adapters = tuple(adapters)
        self.builds = dict(zip(adapters, builds, strict=False))
        self.denied = denied or Denied()

    def find(self, name: str) -> str | None:
        """The served name that `name` means: itself, or the newest adapter that fits it as a spec; None for neither.

        Raises:
            AdapterDenied: it means an adapter that is not served any more.
        """
        fitting = [name] if name == self.base or name in self.adapters else self._fitting(name)
        allowed = [one for one in fitting if one not in self.builds or self.denied.reason(*self.builds[one]) is None]
        if fitting and not allowed:
            self.denied.ensure_allowed(*self.builds[fitting[0]])
        return allowed[0] if allowed else None

    def _fitting(self, name: str) -> list[str]:
        """The served names of the adapters that fit `name` as a spec, the newest first."""
        try:
            spec = AdapterSpec.parse(name)
        except SpecError:
            return []
        if spec.base is not None and spec.base.text != self.base:
            return []
        fitting = []
        for at, (served, (label, digest)) in enumerate(self.builds.items()):
            full_name, version = label.rsplit("==", 1)
            if full_name == spec.full_name and spec.matches(version) and digest.startswith(spec.digest_prefix or ""):
                fitting.append((Version(version), at, served))
        return [served for *_, served in sorted(fitting, reverse=True)]

    def scales(self, name: str) -> list[dict[str, float]]:
        """The number and scale of each adapter for requests that mean `name`, which `find` returned."""
        return [{"id": at, "scale": 1.0 if one == name else 0.0} for at, one in enumerate(self.adapters)]

    def listing(self) -> dict[str, Any]:
        """The answer to GET /v1/models."""
        rows: list[dict[str, Any]] = [
            {"id": name, "object": "model", "owned_by": "adapterhub"} for name in (self.base, *self.adapters)
        ]
        for row in rows:
            if row["id"] in self._callings:
                row["calling"] = self._callings[row["id"]]
        return {"object": "list", "data": rows}


class Front(ThreadingHTTPServer):
    """The front's server. It counts the requests that run, so that it can drain."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], engine_port: int, names: Names) -> None:
        super().__init__(address, _Handler)
        self.engine_port = engine_port
        self.names = names
        self.drains = False
        self._running = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count one request while the block runs."""
        with self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def drain(self, within_s: float) -> bool:
        """Refuse new requests and wait for those that run; False if some still run after `within_s` seconds."""
        self.drains = True
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, within_s)


@contextlib.contextmanager
def front(host: str, port: int, engine_port: int, names: Names) -> Iterator[Front]:
    """Answer requests on `host` and `port` while the block runs.

    Raises:
        OSError: the port is taken.
    """
    with Front((host, port), engine_port, names) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    """Forwards requests to the engine; adds the scales for their `model` to those with a JSON body."""

    server: Front
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - as in http.server
        """Log nothing: the engine has its own log."""

    def do_GET(self) -> None:
        """List the models; forward everything else to the engine."""
        with self.server.counted():
            self._get()

    def do_POST(self) -> None:
        """Add the scales and forward the request, or refuse it."""
        with self.server.counted():
            self._post()

    def _get(self) -> None:
        if self._refuses_all():
            return
        if self._route().endswith(_CLOSED):
            self._refuse(
                HTTPStatus.FORBIDDEN, "this route shows paths of the server; GET /v1/models lists the adapters"
            )
            return
        if self._route() in {"/v1/models", "/models"}:
            self._answer(HTTPStatus.OK, self.server.names.listing())
            return
        self._pass_on(None, self.server.names.base)

    def _post(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > MOST_BYTES:
            self.close_connection = True
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected a body of at most {MOST_BYTES} bytes")
            return
        raw = self.rfile.read(int(length))
        if self._refuses_all():
            return
        if self._route().endswith(_CLOSED):
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
        asked = body.get("model", self.server.names.base)
        try:
            name = self.server.names.find(asked) if isinstance(asked, str) else None
        except AdapterDenied as error:
            told = refusal_of(error)
            self._refuse(told.status, told.message)
            return
        if name is None:
            self._refuse(HTTPStatus.NOT_FOUND, f"no adapter `{shown(asked)}` is served; GET /v1/models lists them")
            return
        self._pass_on(json.dumps(body | {"lora": self.server.names.scales(name)}).encode(), name)

    def _route(self) -> str:
        return self.path.partition("?")[0].rstrip("/")

    def _refuses_all(self) -> bool:
        """Refuse the request if the server drains; whether it did."""
        if self.server.drains:
            self.close_connection = True
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, REFUSED_WHILE_DRAINING)
        return self.server.drains

    def _pass_on(self, body: bytes | None, name: str) -> None:
        """Forward the request to the engine, and stream its answer back with `name` as the model."""
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN_HEADERS}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.engine_port, timeout=_ANSWER_S)
        with contextlib.closing(connection):
            try:
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException):
                self._refuse(HTTPStatus.BAD_GATEWAY, "the engine does not answer")
                return
            self.send_response(answer.status)
            for header, value in answer.getheaders():
                if header.lower() not in _OWN_HEADERS:
                    self.send_header(header, value)
            self.send_header("Connection", "close")  # the end of the stream is the end of the answer
            self.end_headers()
            self.close_connection = True
            with contextlib.suppress(OSError, http.client.HTTPException):  # one side closed the connection
                kind = (answer.getheader("Content-Type") or "").partition(";")[0].strip()
                if kind == "application/json":
                    self.wfile.write(_named(answer.read(), name))
                elif kind == "text/event-stream":
                    for line in answer:
                        start, data, rest = line.partition(b"data: ")
                        self.wfile.write(line if start or not data else data + _named(rest.rstrip(b"\n"), name) + b"\n")
                        self.wfile.flush()
                else:
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


def _named(data: bytes, name: str) -> bytes:
    """A JSON answer with `name` where the engine names the file of its model; other data unchanged."""
    try:
        value = json.loads(data)
    except ValueError:
        return data
    paths = {"model", "model_path"} & value.keys() if isinstance(value, dict) else set()
    return json.dumps(value | dict.fromkeys(paths, name)).encode() if paths else data
