"""Sends one message to an address that a user gave, without giving that user the server's place in the network.

The server resolves the host name once, refuses every address that is not public, and connects to the address that it
checked: a name that changes its address meanwhile gains nothing. It follows no redirect, uses no proxy, reads a few
kilobytes of the answer, and gives up after ten seconds, however slowly the receiver sends.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

import h11

from adapterhub.core.errors import NotAllowed, UsageProblem, shown
from adapterhub_registry.settings import Network

TIMEOUT_S: Final = 10.0
MOST_ANSWER_BYTES: Final = 1 << 16
MOST_URL_CHARACTERS: Final = 2000
_PORT: Final = r":([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
URL: Final = re.compile(rf"https?://([A-Za-z0-9.-]{{1,253}}|\[[0-9A-Fa-f:.]{{2,45}}\])({_PORT})?([/?][!\"$-~]*)?")
_BLOCK_BYTES: Final = 1 << 14
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
# slow name servers hold up nothing else: a look-up lasts up to three times as long as the attempt that it is for
_DNS = ThreadPoolExecutor(64, thread_name_prefix="webhook-dns")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The status of an answer, or None; `problem` says in a few words why the message did not arrive."""

    status: int | None
    problem: str | None


class _NotSent(Exception):
    """The message cannot be sent; the text says why, and never more than its sender may know."""


def check_url(url: str, allowed: tuple[Network, ...]) -> None:
    """Check the address of a receiver as far as that goes without a connection.

    Raises:
        UsageProblem: it is not a URL of a web server.
        NotAllowed: it is not https (http, where some networks are `allowed`), or names an address that is refused.
    """
    if len(url) > MOST_URL_CHARACTERS or not URL.fullmatch(url):
        raise UsageProblem(f"webhook URL `{shown(url)}`: expected one such as https://hooks.example.org/adapters")
    try:
        place = urlsplit(url)
    except ValueError:  # brackets around what is no address
        raise NotAllowed(f"webhook URL `{shown(url)}`: the host is not an address; nothing was changed") from None
    host = place.hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if place.scheme == "http" and not allowed:
            raise NotAllowed(f"webhook URL `{shown(url)}`: expected https; nothing was changed") from None
        return
    if not _may_reach(address, allowed, scheme=place.scheme):
        raise NotAllowed(
            f"webhook URL `{shown(url)}`: the server sends to public addresses by https only",
            hint="the operator allows others: `adapt registry serve --webhook-network 10.0.0.0/8`",
        )


async def post(url: str, body: bytes, headers: Mapping[str, str], *, allowed: tuple[Network, ...]) -> Outcome:
    """Send a JSON body. Hosts in the networks `allowed` may be private, and may use http."""
    try:
        return await asyncio.wait_for(_post(urlsplit(url), body, headers, allowed), TIMEOUT_S)
    except (asyncio.TimeoutError, TimeoutError):
        return Outcome(status=None, problem=f"no answer within {TIMEOUT_S:.0f} s")
    except _NotSent as error:
        return Outcome(status=None, problem=str(error))
    except ssl.SSLError as error:
        return Outcome(status=None, problem=f"TLS: {shown(error.reason or 'failed', 100)}")
    except OSError:
        return Outcome(status=None, problem="could not connect")
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return Outcome(status=None, problem="the answer is not HTTP")


async def _post(place: SplitResult, body: bytes, headers: Mapping[str, str], allowed: tuple[Network, ...]) -> Outcome:
    host = place.hostname or ""
    port = place.port or (443 if place.scheme == "https" else 80)
    address = await _resolved(host, port, allowed, scheme=place.scheme)
    secured = {"ssl": ssl.create_default_context(), "server_hostname": host} if place.scheme == "https" else {}
    reader, writer = await asyncio.open_connection(str(address), port, **secured)  # type: ignore[arg-type]
    try:
        target = (place.path or "/") + (f"?{place.query}" if place.query else "")
        sent = {"Host": place.netloc, "Content-Type": "application/json", "User-Agent": "adapterhub-registry"}
        sent |= {"Content-Length": str(len(body)), "Connection": "close", **headers}
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_ANSWER_BYTES)
        request = h11.Request(method="POST", target=target, headers=list(sent.items()))
        for event in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(connection.send(event) or b"")
        await writer.drain()
        return await _answer(connection, reader)
    finally:
        writer.transport.abort()


async def _answer(connection: h11.Connection, reader: asyncio.StreamReader) -> Outcome:
    read = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(_BLOCK_BYTES)
            read += len(data)
            if read > MOST_ANSWER_BYTES:
                return Outcome(status=None, problem="the head of the answer is too long")
            connection.receive_data(data)
        elif isinstance(event, h11.Response):
            return Outcome(status=event.status_code, problem=_problem(event.status_code))
        elif not isinstance(event, h11.InformationalResponse):
            return Outcome(status=None, problem="no answer")


def _problem(status: int) -> str | None:
    if 200 <= status < 300:  # noqa: PLR2004 - every success
        return None
    if 300 <= status < 400:  # noqa: PLR2004 - every redirect
        return f"status {status}: redirects are not followed"
    return f"status {status}"


async def _resolved(host: str, port: int, allowed: tuple[Network, ...], *, scheme: str) -> Address:
    """The address to connect to, checked.

    Raises:
        _NotSent: the name has no address, or one that is refused.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.run_in_executor(_DNS, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):
        raise _NotSent("the host name has no address") from None
    addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
    if not addresses or not all(_may_reach(address, allowed, scheme=scheme) for address in addresses):
        raise _NotSent("the host name leads to an address that this server does not send to")
    return addresses[0]


def _may_reach(address: Address, allowed: tuple[Network, ...], *, scheme: str) -> bool:
    inner = _inside(address)
    if any(inner in network for network in allowed if network.version == inner.version):
        return True
    return scheme == "https" and is_public(inner)


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet, also one that is written inside another."""
    address = _inside(address)
    if isinstance(address, ipaddress.IPv6Address) and (address.teredo or address.is_site_local):
        return False
    special = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    return address.is_global and not special and not address.is_link_local


def _inside(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it stands for one."""
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    if address in _NAT64 or 1 < int(address) < 1 << 32:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
