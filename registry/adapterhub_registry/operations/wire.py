"""HTTP/1.1 below the application: heads that end in time, and requests that every server reads alike.

uvicorn with h11 leaves four gaps, which only a protocol class can close. It waits for ever for the first byte of a
connection and for the end of a head. It accepts a request whose end two servers see at different places (Content-Length
beside Transfer-Encoding, a length twice, a folded field), which is how one request smuggles another past a proxy. Once
it has answered, it reads the rest of a body for as long as the client sends. It waits for ever for a client that reads
nothing.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from adapterhub_registry.errors import Refusal, too_slow
from adapterhub_registry.settings import Limits

MAX_HEAD_BYTES = 1 << 16
TOO_LARGE = 431
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_FOLD = re.compile(rb"\n[ \t]")
_FRAMING = re.compile(rb"(?im)^(content-length|transfer-encoding)[ \t]*:[ \t]*(.*?)[ \t]*\r?$")


class StrictConnection(h11.Connection):
    """h11 that refuses a request whose framing can be read in two ways, where RFC 9112 lets a server choose."""

    problem: h11.RemoteProtocolError | None = None
    """Why the last event was refused."""

    def next_event(self) -> Any:  # noqa: ANN401 - as h11 has it
        """The next event; a head is looked at before h11 makes one field of several."""
        head = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                refuse_ambiguity(head, event.http_version)
        except h11.RemoteProtocolError as problem:
            self.problem = problem
            raise
        return event


def refuse_ambiguity(buffered: bytes, http_version: bytes) -> None:
    """Refuse a request whose head, at the beginning of `buffered`, does not say in one way where it ends.

    Raises:
        h11.RemoteProtocolError: with the rule that is broken.
    """
    end = _END_OF_HEAD.search(buffered)
    head = buffered[: end.start()] if end else buffered
    if len(head) > MAX_HEAD_BYTES:  # h11 counts only what is not whole yet, which hangs on how it arrives
        raise h11.RemoteProtocolError("too long", error_status_hint=TOO_LARGE)
    if http_version not in {b"1.0", b"1.1"}:
        raise h11.RemoteProtocolError("expected HTTP/1.1 or HTTP/1.0")
    if _FOLD.search(head):
        raise h11.RemoteProtocolError("a header field goes on in a second line")
    framing = _FRAMING.findall(head)
    if len(framing) > 1:
        raise h11.RemoteProtocolError("Content-Length and Transfer-Encoding: expected one of the two, once")
    for name, value in framing:
        if name.lower() == b"content-length" and not value.isdigit():
            raise h11.RemoteProtocolError("Content-Length: expected one whole number")
        if name.lower() == b"transfer-encoding" and http_version != b"1.1":
            raise h11.RemoteProtocolError("Transfer-Encoding in a request of HTTP/1.0")


class Protocol(H11Protocol):
    """uvicorn's protocol over h11 with the limits of a registry."""

    limits: ClassVar[Limits] = Limits()

    conn: StrictConnection

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - as uvicorn has it
        super().__init__(*args, **options)
        self.conn = StrictConnection(h11.SERVER, MAX_HEAD_BYTES)
        self._waits_for: str | None = None
        self._timer: Any = None
        self._writing: Any = None

    # ------------------------------------------------------------ what a client must do in time
    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - as uvicorn has it
        """Wait for a first request."""
        super().connection_made(transport)
        self._wait("head", self.limits.head_s)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and wait for the rest of a head that they began."""
        super().data_received(data)
        self._watch(began=True)

    def on_response_complete(self) -> None:
        """Wait for what of a request is on its way still."""
        super().on_response_complete()
        self._watch(began=bool(self.conn.trailing_data[0]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
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
        """Wait for `what` from now on; a time that runs for it goes on."""
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
            self._refuse(too_slow("the head of a request", self.limits.head_s))
        self.transport.close()

    # ------------------------------------------------------------ what a client must take in time
    def pause_writing(self) -> None:
        """Give up a client that takes nothing for long."""
        super().pause_writing()
        self._writing = self.loop.call_later(self.limits.answer_stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client took something."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        if self.flow is not None:
            super().resume_writing()

    # ------------------------------------------------------------ what is no request
    def send_400_response(self, msg: str) -> None:
        """Refuse what h11 could not read, and close: where the next request would begin is not known."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            if self.conn.problem is not None and self.conn.problem.error_status_hint == TOO_LARGE:
                refusal = Refusal(431, "TooLarge", f"the head of a request has at most {MAX_HEAD_BYTES} bytes")
            else:
                refusal = Refusal(400, "BadRequest", f"the request cannot be read: {self.conn.problem or msg}")
            self._refuse(refusal)
        self.transport.close()

    def _refuse(self, refusal: Refusal) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True  # what the application still says goes nowhere
        answer = refusal.response()
        fields = b"".join(b"%s: %s\r\n" % field for field in answer.raw_headers if field[0] != b"connection")
        line = f"HTTP/1.1 {answer.status_code} {HTTPStatus(answer.status_code).phrase}\r\n".encode("ascii")
        self.transport.write(line + fields + b"connection: close\r\n\r\n" + bytes(answer.body))


def protocol_of(bounds: Limits) -> type[Protocol]:
    """The protocol class of a server with these limits, as uvicorn wants it."""

    class Bounded(Protocol):
        limits = bounds

    return Bounded
