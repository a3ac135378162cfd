"""Ports and addresses of the servers that `adapt serve` starts on this machine."""

from __future__ import annotations

import errno
import socket
import sys
from typing import Final

from adapterhub.core.errors import Conflict, UsageProblem, shown

_kept: Final[list[socket.socket]] = []
"""Sockets that hold the free ports: the system gives none of these to a program that asks for any, and the engine that
names its port may listen there."""


def free_port(host: str, port: int = 0) -> int:
    """`port` if it is free; any free port for 0, which on Linux no other program gets until this process ends.

    Check early: an engine that cannot listen fails late, and until then the other server on the port answers.

    Raises:
        Conflict: the port is taken.
        UsageProblem: this machine has no such address.
    """
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_kept := port == 0 and sys.platform == "linux":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # engines set one of the two, or both
        probe.bind((host, port))
    except OSError as error:
        probe.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(f"port {port} of `{host}` is taken", hint="`--port 0` takes a free one") from None
        raise UsageProblem(f"cannot listen on `{shown(host)}`, port {port}: {error.strerror}") from None
    found: int = probe.getsockname()[1]
    if is_kept:
        _kept.append(probe)
    else:
        probe.close()
    return found


def reachable(host: str) -> str:
    """The address at which this machine reaches a server that listens on `host`."""
    if host in {"", "0.0.0.0"}:  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
