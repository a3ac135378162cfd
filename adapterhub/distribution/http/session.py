"""Bounds the session of the Hub's own client, which otherwise waits forever and reads responses of any size.

The session is shared by the whole process, so only our own programs, such as the command line, bound it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

from huggingface_hub import set_client_factory

from adapterhub.core.errors import RemoteUnreachable, shown
from adapterhub.distribution.http.wire import (
    CONNECT_S,
    MAX_ERROR_BYTES,
    MAX_SMALL_BYTES,
    HttpError,
    HttpObject,
    unencrypted,
    unusable_proxy,
)

VERIFYING_S = 300.0
"""How long to wait for the next byte: a server reads a whole push before it responds."""

_MOST: Final = "adapterhub.most_bytes"
_HTTP: Any = sys.modules[HttpError.__module__.partition(".")[0]]
_WAIT_S: list[float] = []


def bound_client(silence_s: float | None = None) -> None:
    """Make the Hub's client give up on a silent server [default: after 300 s] and on an endless response."""
    wait_s = silence_s or VERIFYING_S
    if [wait_s] == _WAIT_S:
        return
    set_client_factory(lambda: bounded_client(wait_s))
    _WAIT_S[:] = [wait_s]


def bounded_client(wait_s: float) -> HttpObject:
    """A client that gives up after `wait_s` silent seconds, and on an endless response.

    Raises:
        RemoteUnreachable: a proxy of the environment is invalid.
    """
    from huggingface_hub.utils._http import default_client_factory  # keeps the user's proxies and certificates

    try:
        client = default_client_factory()
    except Exception as error:  # noqa: BLE001 - httpx raises ImportError, ValueError, and an InvalidURL of its own
        raise unusable_proxy(error) from None
    client.timeout = (CONNECT_S, wait_s, wait_s, wait_s)  # connect, read, write, pool
    _Bounds(client)
    return client


class _Bounds:
    """Bounds how much of each response `client` reads.

    Documents are read whole and are small. A file is streamed and has the size of the response to HEAD, which the
    client always requests first. A stream without that size is bounded by its reader (`Wire`).
    """

    def __init__(self, client: HttpObject) -> None:
        self._send = client.send
        self._announced: dict[str, int] = {}
        client.send = self.send
        client.headers["accept-encoding"] = "identity"  # the size of a compressed response cannot be bounded
        client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks["response"], self._bound]}

    def send(self, request: HttpObject, *, stream: bool = False, **more: HttpObject) -> HttpObject:
        """Replaces the client's `send`, which all its calls use; the hook reads the bound from the request."""
        request.extensions[_MOST] = self._announced.get(str(request.url)) if stream else MAX_SMALL_BYTES
        response = self._send(request, stream=stream, **more)
        if request.method == "HEAD" and response.status_code < HTTPStatus.BAD_REQUEST:
            self._note(response)
        return response

    def _note(self, response: HttpObject) -> None:
        size = response.headers.get("x-linked-size") or response.headers.get("content-length", "")
        if size.isascii() and size.isdigit():
            # the client fetches the file from this URL, or directly from the redirect's target
            for one in filter(None, (response.request, response.next_request)):
                self._announced[str(one.url)] = int(size)

    @staticmethod
    def _bound(response: HttpObject) -> None:
        if response.has_redirect_location and response.url.scheme == "https":
            target = response.url.join(response.headers["location"])
            if target.scheme == "http":
                raise unencrypted(f"{response.url.scheme}://{response.url.netloc.decode()}", str(target))
        most = response.request.extensions.get(_MOST)
        if most is None or response.request.method == "HEAD":
            return
        where = shown(str(response.url).partition("?")[0])  # the query may hold a signature
        packing = response.headers.get("content-encoding", "identity").strip().lower()
        if response.has_redirect_location or response.status_code >= HTTPStatus.BAD_REQUEST:
            response.headers.pop("content-encoding", None)
            response.stream = _Body(response.stream, MAX_ERROR_BYTES if packing == "identity" else 0, None)
            return
        if packing != "identity":
            raise RemoteUnreachable(f"{where}: sent compressed bytes (`{shown(packing, 40)}`), expected plain ones")
        refusal = RemoteUnreachable(f"{where}: sent more than {most:,} bytes, more than such a response may have")
        response.stream = _Body(response.stream, most, refusal)


class _Body(_HTTP.SyncByteStream):  # type: ignore[misc]  # of whichever HTTP library
    """A body that ends after `most` bytes: with `refusal`, or silently."""

    def __init__(self, stream: HttpObject, most: int, refusal: RemoteUnreachable | None) -> None:
        self._stream, self._most, self._refusal = stream, most, refusal

    def __iter__(self) -> Iterator[bytes]:
        came = 0
        for piece in self._stream:
            came += len(piece)
            if came <= self._most:
                yield piece
            elif self._refusal is not None:
                raise self._refusal
            else:
                return

    def close(self) -> None:
        """Give the connection back."""
        self._stream.close()
