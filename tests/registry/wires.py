"""What stands between the servers of a registry and a part of it (PostgreSQL, S3): a wire that can be cut or held still.

A cut wire refuses connections, and ends those that it has. A held one takes connections and lets no byte through, as a
program does that was stopped; what was sent meanwhile arrives as soon as it goes on.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class Wire:
    """A port of loopback that leads to another address: a host and port, or the path of a socket."""

    def __init__(self, target: tuple[str, int] | str) -> None:
        self._target = target
        self._going = threading.Event()
        self._going.set()
        self._ends: set[socket.socket] = set()
        self.taken = 0
        """How many connections it took."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        self._listen()

    def cut(self) -> None:
        """Refuse and end every connection."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in list(self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Take connections again."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        self._listen()

    def hold(self) -> None:
        """Let nothing through."""
        self._going.clear()

    def release(self) -> None:
        """Let everything through that came meanwhile."""
        self._going.set()

    def close(self) -> None:
        """End it for good."""
        self.release()
        self.cut()

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            self.taken += 1
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        self._going.wait()
        far = socket.socket(socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET)
        with contextlib.suppress(OSError):
            far.connect(self._target)
        self._ends |= {near, far}
        for source, target in ((near, far), (far, near)):
            with contextlib.suppress(OSError):
                target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._going.wait()
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            self._ends.discard(end)
            end.close()


@contextlib.contextmanager
def wired(url: str) -> Iterator[tuple[Wire, str]]:
    """A wire to the part at `url`, and the URL of the same part through it. PostgreSQL may listen at a socket alone."""
    place = urlsplit(url)
    folder = parse_qs(place.query).get("host", [""])[0]
    if folder.startswith("/"):
        (path,) = Path(folder).glob(".s.PGSQL.*[0-9]")
        wire = Wire(str(path))
        through = f"{place.scheme}://postgres@127.0.0.1:{wire.port}{place.path}"
    else:
        wire = Wire((str(place.hostname), int(place.port or 0)))
        through = f"{place.scheme}://127.0.0.1:{wire.port}"
    try:
        yield wire, through
    finally:
        wire.close()
