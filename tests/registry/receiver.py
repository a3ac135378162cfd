"""A receiver of webhooks on loopback: it keeps what it gets, and answers as a test says."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Respond = Callable[[BaseHTTPRequestHandler, int], None]


@dataclass
class Message:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        return json.loads(self.body)

    def is_signed_with(self, secret: str) -> bool:
        """By the text of Standard Webhooks, without this project's code."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        content = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        expected = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
        return f"v1,{expected}" in self.headers["webhook-signature"].split(" ")


@dataclass
class Receiver:
    url: str
    respond: Respond | None = None
    """Answers the message with this number, from 0; None answers 204."""
    messages: list[Message] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, count: int, within_s: float = 60) -> list[Message]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.messages) >= count, within_s), self.messages
            return list(self.messages)


@contextlib.contextmanager
def receiver(respond: Respond | None = None) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with kept.changed:
                number = len(kept.messages)
                headers = {name.lower(): value for name, value in self.headers.items()}
                kept.messages.append(Message(self.path, headers, body))
                kept.changed.notify_all()
            if kept.respond is None:
                status(204)(self, number)
            else:
                kept.respond(self, number)

        def do_GET(self) -> None:
            with kept.changed:
                kept.messages.append(Message(self.path, {}, b"{}"))
            status(200)(self, 0)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        kept = Receiver(f"http://127.0.0.1:{server.server_address[1]}/hook", respond)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield kept
        finally:
            server.shutdown()


def status(code: int, **headers: str) -> Respond:
    def respond(handler: BaseHTTPRequestHandler, _number: int) -> None:
        handler.send_response(code)
        for name, value in {"Content-Length": "0", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()

    return respond
