"""An encrypted address that leads to one that is not: refused, and nothing is sent there."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import get_session, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from adapterhub.core.errors import RemoteUnreachable
from adapterhub.distribution.http.wire import _WAIT_S, Wire
from adapterhub.distribution.hub import bound_client
from tests.support.certificates import certificate

OURS = "hf_of_the_encrypted_server"


class Server(ThreadingHTTPServer):
    """Answers every request with what `answer` holds, and keeps the paths and tokens that came."""

    answer: tuple[int, str] = (200, "")

    def __init__(self) -> None:
        self.came: list[tuple[str, str]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.came.append((self.path, self.headers.get("authorization", "")))
        status, location = server.answer
        self.send_response(status)
        if location:
            self.send_header("location", location)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_arguments: object) -> None:
        """Nothing on stderr."""


@contextmanager
def serving(pem: Path | None = None) -> Iterator[Server]:
    server = Server()
    if pem is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that speaks HTTPS, whose certificate the client trusts."""
    pem = certificate(tmp_path / "server.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    set_client_factory(default_client_factory)  # as in a program that does not bound it; closes the old one
    with serving(pem) as server:
        yield server
    set_client_factory(default_client_factory)
    _WAIT_S.clear()  # so that the next command bounds its client again


def test_a_redirect_from_https_to_http_is_refused_before_anything_is_sent(encrypted: Server) -> None:
    with serving() as plain:
        encrypted.answer = 302, f"http://127.0.0.1:{plain.port}/stolen"
        wire = Wire(f"https://127.0.0.1:{encrypted.port}", OURS, version=None, silence_s=60)

        with pytest.raises(RemoteUnreachable, match="redirected from https"):
            wire.json("api/models/a/b")

        assert (len(encrypted.came), plain.came) == (1, [])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_hubs_own_client_does_not_follow_one_either(method: str, encrypted: Server) -> None:
    bound_client(60)
    with serving() as plain:
        encrypted.answer = 307, f"http://127.0.0.1:{plain.port}/stolen"
        url = f"https://127.0.0.1:{encrypted.port}/api/models"

        with pytest.raises(RemoteUnreachable, match="redirected from https"):
            get_session().request(method, url, headers={"authorization": f"Bearer {OURS}"})

        assert plain.came == []


def test_a_redirect_from_https_to_https_is_followed_without_the_token(encrypted: Server, tmp_path: Path) -> None:
    with serving(tmp_path / "server.pem") as other:
        encrypted.answer = 302, f"https://127.0.0.1:{other.port}/file"
        wire = Wire(f"https://127.0.0.1:{encrypted.port}", OURS, version=None, silence_s=60)

        assert wire.json("api/models/a/b") == {}

        assert [token for _, token in encrypted.came] == [f"Bearer {OURS}"]
        assert other.came == [("/file", "")]
