"""How much a tenant uses now, and whether it may use more. Thread-safe; figures are of this process alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Final, NamedTuple

from adapterhub.inference.serving.access.refused import RequestRefused
from adapterhub.inference.serving.access.tenants import Tenant

_MINUTE_S: Final = 60.0


class Demand(NamedTuple):
    """What a request may cost: how many answers it has, and an estimate of its tokens."""

    answers: int
    tokens: int


class _Allowance:
    """What is left of a number a minute; it fills evenly, up to that number, and may be overdrawn."""

    def __init__(self) -> None:
        self._left: float | None = None
        self._at = 0.0

    def wait_s(self, a_minute: int, now: float, least: float) -> float:
        """The seconds until at least `least` is left; 0 if it is."""
        rate = a_minute / _MINUTE_S
        left = a_minute if self._left is None else min(a_minute, self._left + (now - self._at) * rate)
        self._left, self._at = left, now
        return max(0.0, (least - left) / rate)

    def take(self, amount: float) -> None:
        if self._left is not None:
            self._left -= amount


class _Use:
    """The use of one tenant."""

    def __init__(self) -> None:
        self.running = 0
        self.requests = _Allowance()
        self.tokens = _Allowance()


class Quotas:
    """The use of all tenants. `clock` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, _Use] = {}
        self._lock = Lock()

    def enter(self, tenant: Tenant) -> None:
        """Count a request that begins.

        Raises:
            RequestRefused: 429, with the seconds after which the quota allows one.
        """
        with self._lock:
            use, now = self._uses.setdefault(tenant.name, _Use()), self._clock()
            if tenant.max_requests is not None and use.running >= tenant.max_requests:
                raise RequestRefused(429, f"{tenant.max_requests} requests of this key run already", 1)
            if tenant.tokens_per_minute is not None:
                wait = use.tokens.wait_s(tenant.tokens_per_minute, now, 1)
                if wait:
                    raise RequestRefused(429, f"this key has used its {tenant.tokens_per_minute} tokens a minute", wait)
            if tenant.requests_per_minute is not None:
                wait = use.requests.wait_s(tenant.requests_per_minute, now, 1)
                if wait:
                    words = f"this key has sent its {tenant.requests_per_minute} requests a minute"
                    raise RequestRefused(429, words, wait)
                use.requests.take(1)
            use.running += 1

    def reserve(self, tenant: Tenant, demand: Demand) -> None:
        """Count what a request that `enter` counted may use: each further answer as a request, and its tokens.

        A request that needs more than a whole minute's number waits for that number and overdraws it.

        Raises:
            RequestRefused: 429, with the seconds after which the quota allows it.
        """
        with self._lock:
            use, now, more = self._uses[tenant.name], self._clock(), demand.answers - 1
            tokens, requests = tenant.tokens_per_minute, tenant.requests_per_minute
            for allowance, a_minute, least, most, what in (
                (use.tokens, tokens, demand.tokens, tokens or 0, "tokens"),
                (use.requests, requests, more, (requests or 1) - 1, "requests"),  # `enter` took one
            ):
                wait = 0.0 if a_minute is None else allowance.wait_s(a_minute, now, min(least, most))
                if wait:
                    words = f"this request may need {least} {what}, and this key has {a_minute} a minute"
                    raise RequestRefused(429, words, wait)
            use.tokens.take(demand.tokens)
            use.requests.take(more)

    def leave(self, tenant: Tenant, tokens: int, reserved: int = 0) -> None:
        """Count the end of a request that `enter` counted, and what it used of what it had reserved."""
        with self._lock:
            use = self._uses[tenant.name]
            use.running -= 1
            use.tokens.take(tokens - reserved)
