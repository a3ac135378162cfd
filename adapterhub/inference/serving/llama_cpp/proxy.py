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
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import AdapterDenied, NotFound, shown
from adapterhub.formats.route import AUTO
from adapterhub.inference.serving.access.gate import OPEN_ROUTES, Asked, Gate, ensure_for_tenants, request_id
from adapterhub.inference.serving.access.refused import RequestRefused
from adapterhub.inference.serving.aliases import KEY_HEADER, request_key
from adapterhub.inference.serving.answers import asking_for_usage, described, refusal_body, says_only_usage, with_field
from adapterhub.inference.serving.auto import HEADER, Auto, label_of
from adapterhub.inference.serving.control import REFUSED_WHILE_DRAINING
from adapterhub.inference.serving.llama_cpp.names import Names
from adapterhub.inference.serving.metrics import Measured, exposition, own_metrics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

MOST_BYTES: Final = 64 << 20
"""The front refuses a longer request."""

_CHUNK_BYTES: Final = 1 << 16
_ANSWER_S: Final = 3600.0
_METRICS_S: Final = 5.0
_OWN_HEADERS: Final = frozenset({"connection", "transfer-encoding", "keep-alive", "content-length", "host"})
_CLOSED: Final = ("/lora-adapters", "/models/load", "/models/unload")
"""Routes of the engine that change the answers to all clients, or show paths."""

_SHOWS_PATHS: Final = "this route shows paths of the server; GET /v1/models lists the adapters"
_IS_CLOSED: Final = "the `model` of each request selects the adapter; this route is closed"
_NO_HEADERS: Final[Mapping[str, str]] = {}


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


class Front(ThreadingHTTPServer):
    """The front's server. It counts the requests that run, so that it can drain."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self, address: tuple[str, int], engine_port: int, names: Names, gate: Gate, auto: Auto | None = None
    ) -> None:
        super().__init__(address, _Handler)
        self.gate = gate
        self.auto = auto
        self.engine_port = engine_port
        self.names = names
        self.counted_in, self.metrics = own_metrics()
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
def front(
    host: str, port: int, engine_port: int, names: Names, gate: Gate | None = None, auto: Auto | None = None
) -> Iterator[Front]:
    """Answer requests on `host` and `port` while the block runs; `auto` answers the model name `auto`.

    Raises:
        OSError: the port is taken.
    """
    gate = gate or Gate()
    with gate.open(), Front((host, port), engine_port, names, gate, auto) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    """Forwards requests to the engine; adds the scales for their `model` to those with a JSON body."""

    server: Front
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the body of an answer waits 40 ms for its head
    _asked = Asked(route="", request_id="")
    _raw = b""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - as in http.server
        """Log nothing: the engine has its own log."""

    def do_GET(self) -> None:
        """List the models; forward everything else to the engine."""
        with self.server.counted():
            self._gated(self._get)

    def do_POST(self) -> None:
        """Add the scales and forward the request, or refuse it."""
        with self.server.counted():
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit()) or int(length) > MOST_BYTES:
                self.close_connection = True
                self._answer_refusal(RequestRefused(413, f"expected a body of at most {MOST_BYTES} bytes"))
                return
            self._raw = self.rfile.read(int(length))
            self._gated(self._post)

    def _gated(self, handle: Callable[[], None]) -> None:
        """Handle a request whose key and quota let it in; answer with the refusal otherwise."""
        gate, route = self.server.gate, self._route()
        self._asked = asked = Asked(route=route, request_id=request_id(self.headers.get("X-Request-Id", "")))
        try:
            if route in OPEN_ROUTES:
                handle()
                return
            with gate.passing(asked, self.headers.get("Authorization", "").encode("latin-1")):
                if asked.tenant is not None:
                    kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
                    ensure_for_tenants(self.command, route, is_json=kind == "application/json")
                handle()
        except RequestRefused as refusal:
            self._answer_refusal(refusal)

    def _get(self) -> None:
        self._ensure_open(_SHOWS_PATHS)
        if self._route() in {"/v1/models", "/models"}:
            routed = (AUTO,) if self.server.auto is not None else ()
            self._answer(HTTPStatus.OK, self.server.names.listing(self._asked.tenant, routed))
            return
        if self._route() == "/metrics" and self.server.counted_in is not None:
            self._show_metrics(self.server.counted_in)
            return
        self._pass_on(None)

    def _show_metrics(self, registry: CollectorRegistry) -> None:
        """Our counters, and those of the engine where it was started with `--metrics`."""
        data, kind = exposition(registry)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.engine_port, timeout=_METRICS_S)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            data += answer.read() if answer.status == HTTPStatus.OK and "text/plain" in str(answer.headers) else b""
        self._send(HTTPStatus.OK, kind, data)

    def _post(self) -> None:
        self._ensure_open(_IS_CLOSED)
        try:
            body = json.loads(self._raw)
        except ValueError:
            raise RequestRefused(400, "the body is not JSON") from None
        if not isinstance(body, dict):
            raise RequestRefused(400, "the body is not a JSON object")
        measured = Measured(self.server.metrics)
        name = self._named(body, measured)
        self._asked.begins(len(self._raw))
        added = asking_for_usage(self._route(), body)
        body |= {"lora": self.server.names.scales(name), **added}
        try:
            self._pass_on(json.dumps(body).encode(), name, measured, hides_usage=bool(added))
        finally:
            measured.end()

    def _named(self, body: dict[str, Any], measured: Measured) -> str:
        """The served name for a request, which is counted."""
        metrics = self.server.metrics
        try:
            name = self._admitted(body)
        except RequestRefused:
            metrics.looked_up("refused")
            raise
        measured.adapter = self.server.names.label(name)
        if measured.adapter is not None:
            measured.found = "hit"
            metrics.looked_up("hit")
        return name

    def _admitted(self, body: Mapping[str, Any]) -> str:
        """The served name that the `model` of a request means, for this client."""
        names, asked = self.server.names, self._asked
        model = body.get("model", names.base)
        tenant = asked.tenant
        name: str | None = None
        if isinstance(model, str):
            asked.model = shown(model, 300)
            if model == AUTO and self.server.auto is not None:
                return self._routed(self.server.auto, body)
            if tenant is not None and model == names.base:
                tenant.ensure_may_use_base()
            spelled = tenant.name_for(model) if tenant is not None and model != names.base else model
            try:
                name = names.find(spelled, request_key(self.headers.get(KEY_HEADER, ""), body))
            except AdapterDenied as error:
                raise RequestRefused.of(error) from None
        if name is None or (tenant is not None and not names.may_use(tenant, name)):
            raise RequestRefused(404, f"no adapter `{shown(model)}` is served; GET /v1/models lists them")
        if name in names.builds:
            asked.is_for(*names.builds[name], names.base_digest)
        return name

    def _routed(self, auto: Auto, body: Mapping[str, Any]) -> str:
        """The served name of the adapter that the text of a request is for, or of the base."""
        names, asked = self.server.names, self._asked
        tenant = asked.tenant
        asked.is_routed = True
        chosen = auto.model_for(
            self._route(),
            body,
            lambda one: (
                (tenant is None or tenant.allows(one.name)) and names.denied.reason(one.label, one.digest) is None
            ),
        )
        name = names.find(chosen.model) if chosen is not None else None
        if name is None:
            if tenant is not None:
                tenant.ensure_may_use_base()
            return names.base
        asked.is_for(*names.builds[name], names.base_digest)
        return name

    def _route(self) -> str:
        return self.path.partition("?")[0].rstrip("/")

    def _ensure_open(self, closed: str) -> None:
        """Refuse every request while the server drains, and routes that are closed, which `closed` explains."""
        if self.server.drains:
            self.close_connection = True
            raise RequestRefused(503, REFUSED_WHILE_DRAINING)
        if self._route().endswith(_CLOSED):
            raise RequestRefused(403, closed)

    def _pass_on(
        self, body: bytes | None, name: str = "", measured: Measured | None = None, *, hides_usage: bool = False
    ) -> None:
        """Forward the request to the engine, and stream its answer back with `name` as the model, or the base's."""
        name = name or self.server.names.base
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN_HEADERS}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.engine_port, timeout=_ANSWER_S)
        with contextlib.closing(connection):
            try:
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException):
                raise RequestRefused(502, "the engine does not answer") from None
            self._asked.status = answer.status
            self.send_response(answer.status)
            for header, value in answer.getheaders():
                if header.lower() not in _OWN_HEADERS:
                    self.send_header(header, value)
            for header, value in self._who():
                self.send_header(header, value)
            self.send_header("Connection", "close")  # the end of the stream is the end of the answer
            self.end_headers()
            self.close_connection = True
            with contextlib.suppress(OSError, http.client.HTTPException):  # one side closed the connection
                self._copy(answer, name, measured, hides_usage=hides_usage)

    def _who(self) -> Iterator[tuple[str, str]]:
        """The headers that say who answers."""
        asked = self._asked
        if asked.is_routed:
            yield HEADER, label_of(asked.adapter)
        if asked.adapter is not None:
            yield from (("x-adapter-name", asked.adapter), ("x-adapter-digest", asked.digest or ""))
            yield "x-base-digest", asked.base or ""
        yield "x-request-id", asked.request_id.encode("latin-1", "replace").decode("latin-1")

    def _copy(
        self, answer: http.client.HTTPResponse, name: str, measured: Measured | None, *, hides_usage: bool
    ) -> None:
        """Send the body of the engine's answer on, and note its tokens."""
        asked = self._asked
        counts = measured if answer.status == HTTPStatus.OK else None
        kind = (answer.getheader("Content-Type") or "").partition(";")[0].strip()
        field = described(asked.adapter, asked.digest or "", asked.base or "") if asked.adapter else b""
        for piece in _pieces(answer, kind):
            if counts is not None:
                counts.take(piece)
                asked.usage = counts.usage
            if kind == "application/json":
                if answer.status >= HTTPStatus.BAD_REQUEST:
                    asked.failed(piece)
                told = _named(piece, name)
            elif kind == "text/event-stream" and piece.startswith(b"data: "):
                asked.events += 1
                if hides_usage and says_only_usage(piece):
                    continue
                told = b"data: " + _named(piece[6:].rstrip(b"\n"), name) + b"\n\n"
                if field and (described_too := with_field(told, field)):
                    told, field = described_too, b""
            else:
                told = piece
            self.wfile.write(told)
            self.wfile.flush()

    def _answer_refusal(self, refusal: RequestRefused) -> None:
        self.server.metrics.refused(refusal.status)
        body = refusal_body(refusal.status, refusal.message, refusal.kind)
        self._answer(HTTPStatus(refusal.status), body, refusal.headers)

    def _answer(self, status: HTTPStatus, value: Mapping[str, Any], headers: Mapping[str, str] = _NO_HEADERS) -> None:
        self._asked.status = int(status)
        self._send(status, "application/json", json.dumps(value).encode(), headers)

    def _send(self, status: HTTPStatus, kind: str, data: bytes, headers: Mapping[str, str] = _NO_HEADERS) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for header, text in headers.items():
            self.send_header(header, text)
        self.end_headers()
        self.wfile.write(data)


def _pieces(answer: http.client.HTTPResponse, kind: str) -> Iterator[bytes]:
    """The parts of an answer: the whole of a JSON answer, each event of a stream, and other data as it comes."""
    if kind == "application/json":
        yield answer.read()
    elif kind == "text/event-stream":
        for line in answer:
            yield line + answer.readline() if line.startswith(b"data: ") else line  # an empty line ends an event
    else:
        while piece := answer.read1(_CHUNK_BYTES):
            yield piece


def _named(data: bytes, name: str) -> bytes:
    """A JSON answer with `name` where the engine names the file of its model; other data unchanged."""
    try:
        value = json.loads(data)
    except ValueError:
        return data
    paths = {"model", "model_path"} & value.keys() if isinstance(value, dict) else set()
    return json.dumps(value | dict.fromkeys(paths, name)).encode() if paths else data
