"""Requests byte by byte, as no client library sends them."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

WAIT_S = 60  # for what must come; a test that needs it all has failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of a server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return self.headers.get("x-error-code", "")

    def json(self) -> Any:
        return json.loads(self.body)


class Line:
    """One connection to a server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=WAIT_S)
        self._read = b""

    def send(self, data: bytes) -> None:
        """Send bytes; a server that has closed already takes none."""
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(data)

    def close(self) -> None:
        self._socket.close()

    def until(self, mark: bytes) -> bytes:
        """What came up to `mark`, or up to the end of the connection."""
        while mark not in self._read and self._more():
            pass
        found, separator, self._read = self._read.partition(mark)
        return found + separator

    def rest(self) -> bytes:
        """Everything up to the end of the connection, for which it waits."""
        while self._more():
            pass
        return self._read

    def is_open_after(self, seconds: float) -> bool:
        """Whether the server still holds the connection when it has said nothing for so long."""
        self._socket.settimeout(seconds)
        try:
            return bool(self._more())
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(WAIT_S)

    def answer(self, *, has_body: bool = True) -> Answer:
        """The next answer; the connection stays."""
        head = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        assert head[0].startswith("HTTP/1."), f"no answer: {head[0]!r}"
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        length = int(fields.get("content-length", "0")) if has_body else 0
        while len(self._read) < length and self._more():
            pass
        body, self._read = self._read[:length], self._read[length:]
        return Answer(status=int(head[0].split()[1]), headers=fields, body=body)

    def _more(self) -> bytes:
        try:
            piece = self._socket.recv(1 << 16)
        except ConnectionError:
            return b""
        self._read += piece
        return piece


@contextlib.contextmanager
def line_to(url: str) -> Iterator[Line]:
    """A connection that is closed at the end."""
    line = Line(url)
    try:
        yield line
    finally:
        line.close()


def head_of(method: str, target: str, *fields: str) -> bytes:
    """The head of a request, its fields as given after a Host."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: x", *fields, "", ""]).encode("latin-1")
