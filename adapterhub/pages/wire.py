"""Hardens HTTP/1.1 below an application: timeouts for slow clients, and no request that two servers parse differently.

uvicorn with h11 has four gaps, which only a protocol class can close. It waits forever for the first byte of a
connection and for the end of a head. It accepts a request whose end two servers see at different positions
(Content-Length with Transfer-Encoding, two lengths, a folded field), with which an attacker smuggles a second request
past a proxy. After its response, it reads the rest of a body as long as the client sends. It waits forever for a
client that reads nothing.

The registry, the front of an inference engine and `adapt ui` use it.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Final, Protocol

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

MAX_HEAD_BYTES: Final = 1 << 16
TOO_LARGE: Final = 431
_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")
_FOLD: Final = re.compile(rb"\n[ \t]")
_FRAMING: Final = re.compile(rb"(?im)^(content-length|transfer-encoding)[ \t]*:[ \t]*(.*?)[ \t]*\r?$")


class Patience(Protocol):
    """How many seconds a server waits for a client."""

    @property
    def head_s(self) -> float:
        """From the first byte of a request, or the start of the connection, to the end of the head."""

    @property
    def body_grace_s(self) -> float:
        """For the rest of a body, after the answer."""

    @property
    def answer_stall_s(self) -> float:
        """For a client that reads nothing of its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """The usual patience."""

    head_s: float = 10
    body_grace_s: float = 30
    answer_stall_s: float = 120


class StrictConnection(h11.Connection):
    """h11 that refuses requests with ambiguous framing, which RFC 9112 allows a server to do."""

    problem: h11.RemoteProtocolError | None = None
    """The reason why it refused the last event."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        """Return the next event. It checks a head before h11 joins repeated fields."""
        head = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                check_framing(head, event.http_version)
        except h11.RemoteProtocolError as problem:
            self.problem = problem
            raise
        return event


def check_framing(buffered: bytes, http_version: bytes) -> None:
    """Raise unless the head at the beginning of `buffered` defines the end of the request unambiguously.

    Raises:
        h11.RemoteProtocolError: with the rule that the head breaks.
    """
    end = _END_OF_HEAD.search(buffered)
    head = buffered[: end.start()] if end else buffered
    if len(head) > MAX_HEAD_BYTES:  # h11 counts only incomplete heads, so its limit depends on timing
        raise h11.RemoteProtocolError("too long", error_status_hint=TOO_LARGE)
    if http_version not in {b"1.0", b"1.1"}:
        raise h11.RemoteProtocolError("expected HTTP/1.1 or HTTP/1.0")
    if _FOLD.search(head):
        raise h11.RemoteProtocolError("a header field continues on a second line")
    framing = _FRAMING.findall(head)
    if len(framing) > 1:
        raise h11.RemoteProtocolError("Content-Length and Transfer-Encoding: expected at most one of them, once")
    for name, value in framing:
        if name.lower() == b"content-length" and not value.isdigit():
            raise h11.RemoteProtocolError("Content-Length: expected one whole number")
        if name.lower() == b"transfer-encoding" and http_version != b"1.1":
            raise h11.RemoteProtocolError("Transfer-Encoding in an HTTP/1.0 request")


class StrictProtocol(H11Protocol):
    """uvicorn's h11 protocol with limits; a subclass words its refusals."""

    limits: ClassVar[Patience] = Waits()

    conn: StrictConnection

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = StrictConnection(h11.SERVER, MAX_HEAD_BYTES)
        self._waits_for: str | None = None
        self._timer: Any = None
        self._writing: Any = None

    def refusal(self, status: int, message: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Word a refusal: the headers and the body of its answer."""
        body = json.dumps({"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        return headers, body.encode()

    # ------------------------------------------------------------ clients that send slowly
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait("head", self.limits.head_s)

    def data_received(self, data: bytes) -> None:
        """Receive bytes; after an incomplete head, wait for its rest."""
        super().data_received(data)
        self._watch(began=True)

    def on_response_complete(self) -> None:
        """Wait for the rest of a request that is still arriving."""
        super().on_response_complete()
        self._watch(began=bool(self.conn.trailing_data[0]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._wait(None, 0)
        self.resume_writing()
        super().connection_lost(exc)

    def _watch(self, *, began: bool) -> None:
        if self.transport.is_closing():
            self._wait(None, 0)
        elif self.conn.their_state is h11.IDLE and began:
            self._wait("head", self.limits.head_s)
        elif self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            self._wait("rest", self.limits.body_grace_s)
        else:
            self._wait(None, 0)

    def _wait(self, what: str | None, seconds: float) -> None:
        """Start the timeout for `what`, unless it is running already."""
        if what == self._waits_for:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._waits_for = what
        self._timer = self.loop.call_later(seconds, self._give_up) if what else None

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        if self._waits_for == "head" and self.conn.trailing_data[0]:
            self._reject(408, f"the head of a request did not arrive within {self.limits.head_s:g} s")
        self.transport.close()

    # ------------------------------------------------------------ clients that read slowly
    def pause_writing(self) -> None:
        """Disconnect a client that reads nothing for too long."""
        super().pause_writing()
        self._writing = self.loop.call_later(self.limits.answer_stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that the client has read something."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        if self.flow is not None:
            super().resume_writing()

    # ------------------------------------------------------------ malformed requests
    def send_400_response(self, msg: str) -> None:
        """Refuse a malformed request and close the connection, as the start of the next request is unknown."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            if self.conn.problem is not None and self.conn.problem.error_status_hint == TOO_LARGE:
                self._reject(TOO_LARGE, f"the head of a request may have at most {MAX_HEAD_BYTES} bytes")
            else:
                self._reject(400, f"malformed request: {self.conn.problem or msg}")
        self.transport.close()

    def _reject(self, status: int, message: str) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True  # discards what the application still sends
        headers, body = self.refusal(status, message)
        fields = b"".join(b"%s: %s\r\n" % field for field in headers if field[0] != b"connection")
        line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode("ascii")
        self.transport.write(line + fields + b"connection: close\r\n\r\n" + body)
