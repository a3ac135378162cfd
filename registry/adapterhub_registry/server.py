"""Running a registry: `serve` binds, says where, and answers until it is told to stop."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from adapterhub.errors import NotAllowed, shown
from adapterhub_registry.app import create_app, open_registry
from adapterhub_registry.context import Registry
from adapterhub_registry.settings import Settings

KEEP_ALIVE_S = 75
BACKLOG = 512


def first_token(registry: Registry) -> str | None:
    """An administrator's token when the registry has no token yet, else None: it is shown once."""
    if registry.tokens.records():
        return None
    return registry.tokens.create("admin", "admin", label="first start")


def serve(settings: Settings, *, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until interrupted. `announce` gets the URL and, on the first start, the administrator's token.

    Port 0 takes a free one.

    Raises:
        NotAllowed: the address cannot be used.
    """
    registry = open_registry(settings)
    listener = _bind(host, port)
    token = first_token(registry)
    shown_host = f"[{host}]" if ":" in host else host
    announce(f"url: {settings.public_url or f'http://{shown_host}:{listener.getsockname()[1]}'}")
    if token is not None:
        announce(f"admin token (shown this once): {token}")
    config = uvicorn.Config(
        create_app(settings, registry),
        timeout_keep_alive=KEEP_ALIVE_S,
        access_log=False,  # signed links carry their rights in the path
        log_level="error",  # not a line for each request that is no HTTP: strangers would fill the disk
        proxy_headers=False,  # a forwarded host is believed only as `public_url`
        server_header=False,
        lifespan="on",
    )
    uvicorn.Server(config).run(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named as TCP: asyncio turns Nagle's delay off only for such sockets, and every answer would take 40 ms longer
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise NotAllowed(
            f"cannot listen on {shown(host)}:{port}: {getattr(error, 'strerror', None) or error}",
            hint="`--port 0` takes a free port",
        ) from None
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener
