"""Ports and requests for the servers that `adapt serve` starts on this machine."""

from __future__ import annotations

import errno
import http.client
import json
import socket
import urllib.error
import urllib.request
from typing import Any, Final

from adapterhub.core.errors import Conflict, EngineFailed, UsageProblem, shown

_ANSWER_S: Final = 300.0


def free_port(host: str, port: int = 0) -> int:
    """`port` if it is free; any free port for 0.

    Check early: an engine that cannot listen fails late, and until then the other server on the port answers.

    Raises:
        Conflict: the port is taken.
        UsageProblem: this machine has no such address.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            found: int = probe.getsockname()[1]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(f"port {port} of `{host}` is taken", hint="`--port 0` takes a free one") from None
        raise UsageProblem(f"cannot listen on `{shown(host)}`, port {port}: {error.strerror}") from None
    return found


def reachable(host: str) -> str:
    """The address at which this machine reaches a server that listens on `host`."""
    if host in {"", "0.0.0.0"}:  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def post(url: str, value: object, *, key: str | None = None) -> tuple[int, Any]:
    """The status and the JSON answer of a POST; the text of an answer that is not JSON.

    Raises:
        EngineFailed: the server does not answer.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, json.dumps(value).encode(), headers)  # noqa: S310 - our own URL
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:  # noqa: S310 - as above
            return answer.status, _read(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, _read(error.read())
    except (OSError, http.client.HTTPException) as error:
        raise EngineFailed(f"`{url}` does not answer: {shown(str(error), 200)}") from None


def _read(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")
