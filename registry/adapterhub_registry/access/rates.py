"""Limits how many requests one caller may send: a token bucket for each, refilled at an even rate.

Each server counts for itself: behind a load balancer with N servers, a caller gets up to N times the rate.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import ceil

from adapterhub_registry.settings import Network

MINUTE_S = 60.0
MOST_CALLERS = 20_000


class Rates:
    """The rate of each caller, in requests a minute. A quiet caller may send a minute's share at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = (
            OrderedDict()
        )  # requests left, and the time of that count

    def wait_s(self, caller: str, per_minute: int) -> int:
        """0 when one more request is within the rate, and count it; else the seconds until it would be."""
        if per_minute == 0:
            return 0
        now = self._clock()
        with self._lock:
            left, then = self._buckets.pop(caller, (float(per_minute), now))
            left = min(float(per_minute), left + (now - then) * per_minute / MINUTE_S)
            allowed = left >= 1
            self._buckets[caller] = (left - 1 if allowed else left, now)
            if len(self._buckets) > MOST_CALLERS:
                self._buckets.popitem(last=False)  # the caller that was quiet for longest
        return 0 if allowed else ceil(round((1 - left) * MINUTE_S / per_minute, 6))


def address_of(peer: str | None, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """The address that sent a request. For IPv6 it is the network of 64 bits, which has one owner.

    `forwarded` holds the X-Forwarded-For headers. They count only when `peer` is a trusted proxy, and are read from the
    end: the first address that is not a trusted proxy is the one that a trusted proxy saw.
    """
    hops = [hop.strip() for line in forwarded for hop in line.split(",")]
    address = _address(peer or "")
    while hops and address is not None and any(address in network for network in trusted):
        before = _address(hops.pop())
        if before is None:
            break
        address = before
    if address is None:
        return "unknown"
    is_v6 = isinstance(address, ipaddress.IPv6Address)
    return str(ipaddress.ip_network((address, 64), strict=False) if is_v6 else address)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return mapped or found
