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
from typing import Any, Final

from packaging.version import Version

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterDenied, NotFound, SpecError, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.inference.serving.access.denied import Denied
from adapterhub.inference.serving.access.gate import OPEN_ROUTES, Asked, Gate, ensure_for_tenants, request_id
from adapterhub.inference.serving.access.refused import RequestRefused
from adapterhub.inference.serving.access.tenants import Tenant
from adapterhub.inference.serving.answers import described, refusal_body, with_field
from adapterhub.inference.serving.control import REFUSED_WHILE_DRAINING

MOST_BYTES: Final = 64 << 20
"""The front refuses a longer request."""

_CHUNK_BYTES: Final = 1 << 16
_ANSWER_S: Final = 3600.0
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
        base_digest: str = "",
    ) -> None:
        self.base = base
        self.base_digest = base_digest
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

    def may_use(self, tenant: Tenant, name: str) -> bool:
        """Whether a tenant may use the adapter, or the base, of that served name."""
        label, _ = self.builds.get(name, (name, ""))
        return tenant.base if name == self.base else tenant.allows(label.partition("==")[0])

    def listing(self, tenant: Tenant | None = None) -> dict[str, Any]:
        """The answer to GET /v1/models."""
        names = [n for n in (self.base, *self.adapters) if tenant is None or self.may_use(tenant, n)]
        rows: list[dict[str, Any]] = [{"id": name, "object": "model", "owned_by": "adapterhub"} for name in names]
        for row in rows:
            if row["id"] in self._callings:
                row["calling"] = self._callings[row["id"]]
        return {"object": "list", "data": rows}


class Front(ThreadingHTTPServer):
    """The front's server. It counts the requests that run, so that it can drain."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], engine_port: int, names: Names, gate: Gate) -> None:
        super().__init__(address, _Handler)
        self.gate = gate
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
def front(host: str, port: int, engine_port: int, names: Names, gate: Gate | None = None) -> Iterator[Front]:
    """Answer requests on `host` and `port` while the block runs.

    Raises:
        OSError: the port is taken.
    """
    gate = gate or Gate()
    with gate.open(), Front((host, port), engine_port, names, gate) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    """Forwards requests to the engine; adds the scales for their `model` to those with a JSON body."""

    server: Front
    protocol_version = "HTTP/1.1"
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
            self._answer(HTTPStatus.OK, self.server.names.listing(self._asked.tenant))
            return
        self._pass_on(None, self.server.names.base)

    def _post(self) -> None:
        self._ensure_open(_IS_CLOSED)
        try:
            body = json.loads(self._raw)
        except ValueError:
            raise RequestRefused(400, "the body is not JSON") from None
        if not isinstance(body, dict):
            raise RequestRefused(400, "the body is not a JSON object")
        name = self._admitted(body.get("model", self.server.names.base))
        self._asked.begins(len(self._raw))
        body |= self._asked.wanting_usage(body) if self.server.gate.is_needed else {}
        self._pass_on(json.dumps(body | {"lora": self.server.names.scales(name)}).encode(), name)

    def _admitted(self, model: object) -> str:
        """The served name that `model` means, for this client."""
        names, asked = self.server.names, self._asked
        tenant = asked.tenant
        name: str | None = None
        if isinstance(model, str):
            asked.model = shown(model, 300)
            if tenant is not None and model == names.base:
                tenant.ensure_may_use_base()
            spelled = tenant.name_for(model) if tenant is not None and model != names.base else model
            try:
                name = names.find(spelled)
            except AdapterDenied as error:
                raise RequestRefused.of(error) from None
        if name is None or (tenant is not None and not names.may_use(tenant, name)):
            raise RequestRefused(404, f"no adapter `{shown(model)}` is served; GET /v1/models lists them")
        if name in names.builds:
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

    def _pass_on(self, body: bytes | None, name: str) -> None:
        """Forward the request to the engine, and stream its answer back with `name` as the model."""
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
                self._copy(answer, name)

    def _who(self) -> Iterator[tuple[str, str]]:
        """The headers that say who answers."""
        asked = self._asked
        if asked.adapter is not None:
            yield from (("x-adapter-name", asked.adapter), ("x-adapter-digest", asked.digest or ""))
            yield "x-base-digest", asked.base or ""
        yield "x-request-id", asked.request_id.encode("latin-1", "replace").decode("latin-1")

    def _copy(self, answer: http.client.HTTPResponse, name: str) -> None:
        """Send the body of the engine's answer on, and note its tokens."""
        asked = self._asked
        kind = (answer.getheader("Content-Type") or "").partition(";")[0].strip()
        if kind == "application/json":
            data = answer.read()
            if answer.status >= HTTPStatus.BAD_REQUEST:
                asked.failed(data)
            asked.saw(data, is_stream=False)
            self.wfile.write(_named(data, name))
        elif kind == "text/event-stream":
            field = described(asked.adapter, asked.digest or "", asked.base or "") if asked.adapter else b""
            for line in answer:
                start, mark, rest = line.partition(b"data: ")
                if start or not mark:
                    self.wfile.write(line)
                elif asked.saw(rest, is_stream=True):
                    event = mark + _named(rest.rstrip(b"\n"), name) + b"\n"
                    if field and (told := with_field(event, field)):
                        event, field = told, b""
                    self.wfile.write(event)
                self.wfile.flush()
        else:
            while piece := answer.read1(_CHUNK_BYTES):
                self.wfile.write(piece)
                self.wfile.flush()

    def _answer_refusal(self, refusal: RequestRefused) -> None:
        body = refusal_body(refusal.status, refusal.message, refusal.kind)
        self._answer(HTTPStatus(refusal.status), body, refusal.headers)

    def _answer(self, status: HTTPStatus, value: Mapping[str, Any], headers: Mapping[str, str] = _NO_HEADERS) -> None:
        self._asked.status = int(status)
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for header, text in headers.items():
            self.send_header(header, text)
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
