"""Counts what a server does with adapters, in Prometheus' form, beside the engine's own metrics.

In vLLM, the counters join vLLM's registry, so that its `/metrics` shows them, also with several processes. The front of
llama.cpp shows them at its own `/metrics`, and so does `adapt serve --sync`. The names are the same.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

from adapterhub.inference.serving.answers import Usage, usage_in

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

LookUp = Literal["hit", "installed", "fetched", "refused"]
"""How a request found its adapter: in memory, in the library, at a source, or not."""

MOST_ADAPTERS: Final = 200
"""How many adapters have series of their own; later ones share `other`."""

BASE: Final = "base"
OTHER: Final = "other"
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class ServingMetrics:
    """The counters of one server. Cheap and thread-safe: each call is one increment.

    `registry` None means the one that the engine's process shows. Without the package `prometheus-client`, which vLLM
    always has, nothing is counted.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, most_adapters: int = MOST_ADAPTERS) -> None:
        self._most = most_adapters
        self._labels: dict[str, str] = {}
        made = _counters(registry)
        self._look_ups, self._refusals, self._fetched, self._first, self._requests, self._tokens, self._probes = made

    def looked_up(self, result: LookUp) -> None:
        """Count a request that named an adapter."""
        self._look_ups.labels(result).inc()

    def refused(self, status: int) -> None:
        """Count a request that this server refused itself, with its HTTP status."""
        self._refusals.labels(str(int(status))).inc()

    def probed(self, result: str) -> None:
        """Count an adapter that the engine was asked about: it `changes` an answer, `nothing`, or that is `unknown`."""
        self._probes.labels(result).inc()

    def fetched(self, size_bytes: int) -> None:
        """Count bytes of adapters that were received from a source."""
        self._fetched.inc(size_bytes)

    def answered(self, adapter: str | None, found: LookUp | None, seconds: float) -> None:
        """Count a request that is answered, `seconds` after it came; `adapter` None is the base."""
        self._series(self._requests, adapter)(1)
        self._first.labels(found or BASE).observe(seconds)

    def used_tokens(self, adapter: str | None, prompt: int, generated: int) -> None:
        """Count the tokens of an answer."""
        self._series(self._tokens, adapter, "prompt")(prompt)
        self._series(self._tokens, adapter, "generated")(generated)

    def _series(self, counter: Any, adapter: str | None, *more: str) -> Callable[[float], None]:
        name = BASE if adapter is None else self._labels.get(adapter)
        if name is None:
            assert adapter is not None
            if len(self._labels) >= self._most:
                return counter.labels(OTHER, *more).inc  # type: ignore[no-any-return]
            name = self._labels[adapter] = adapter
        return counter.labels(name, *more).inc  # type: ignore[no-any-return]


@functools.cache
def metrics_of_process() -> ServingMetrics:
    """Return the counters in the registry that this process shows, such as vLLM's."""
    return ServingMetrics()


def own_metrics() -> tuple[CollectorRegistry | None, ServingMetrics]:
    """Counters in a registry of their own, which `exposition` shows; no registry where the package is missing."""
    try:
        from prometheus_client import CollectorRegistry
    except ImportError:
        return None, ServingMetrics()
    registry = CollectorRegistry()
    return registry, ServingMetrics(registry)


class SyncMetrics:
    """What is counted of an engine whose adapters follow a file, in the same registry; see `ServingMetrics`."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self._adapters, self._changes = _sync_counters(registry)

    def has(self, name: str, *, is_loaded: bool) -> None:
        """Note whether the engine has the adapter that the file wants under `name`."""
        self._adapters.labels(name).set(int(is_loaded))

    def forget(self, name: str) -> None:
        """End the series of a name that left the file."""
        with contextlib.suppress(KeyError):
            self._adapters.remove(name)

    def changed(self, action: str) -> None:
        """Count a `load`, an `unload` or a `refuse`."""
        self._changes.labels(action).inc()


class MeasuredRequest:
    """One request: made when it comes, given each part of its answer, and ended.

    `adapter` is the name under which it counts, None for the base. `usage` is what the answer has said of its tokens.
    """

    __slots__ = ("_began", "_has_answered", "_metrics", "adapter", "found", "usage")

    def __init__(self, metrics: ServingMetrics) -> None:
        self._metrics = metrics
        self._began = time.perf_counter()
        self._has_answered = False
        self.adapter: str | None = None
        self.found: LookUp | None = None
        self.usage: Usage | None = None

    def take(self, piece: bytes) -> None:
        """Count a part of the answer, of any size."""
        if not piece:
            return
        if not self._has_answered:
            self._has_answered = True
            self._metrics.answered(self.adapter, self.found, time.perf_counter() - self._began)
        usage = usage_in(piece)
        if usage is not None:
            before = self.usage or usage
            self.usage = Usage(max(before.prompt, usage.prompt), max(before.generated, usage.generated))

    def end(self) -> None:
        """Note that the answer is whole, or that the client has left."""
        if self.usage is not None:
            self._metrics.used_tokens(self.adapter, self.usage.prompt, self.usage.generated)


def exposition(registry: CollectorRegistry) -> tuple[bytes, str]:
    """All metrics of a registry in Prometheus' text format, and its media type."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    return generate_latest(registry), CONTENT_TYPE_LATEST


def _counters(registry: CollectorRegistry | None) -> tuple[Any, ...]:
    try:
        from prometheus_client import REGISTRY, Counter, Histogram
    except ImportError:
        return (_Nothing(),) * 7
    into: dict[str, Any] = {"registry": REGISTRY if registry is None else registry}
    return (
        Counter("adapterhub_lookups", "Requests that named an adapter, by how it was found", ("result",), **into),
        Counter("adapterhub_refusals", "Requests that the server refused, by HTTP status", ("code",), **into),
        Counter("adapterhub_fetched_bytes", "Bytes of adapters received from sources", **into),
        Histogram(
            "adapterhub_first_answer_seconds",
            "Time from a request to the first byte of its answer, by how the adapter was found",
            ("result",),
            buckets=_SECONDS,
            **into,
        ),
        Counter("adapterhub_adapter_requests", "Requests answered, by adapter", ("adapter",), **into),
        Counter("adapterhub_adapter_tokens", "Tokens of answers, by adapter and kind", ("adapter", "kind"), **into),
        Counter("adapterhub_probes", "Adapters tried before their first answer, by effect", ("result",), **into),
    )


def _sync_counters(registry: CollectorRegistry | None) -> tuple[Any, Any]:
    if registry is None:
        return _Nothing(), _Nothing()
    from prometheus_client import Counter, Gauge

    names = "Adapters that the file wants, by whether the engine has them", "Changes of the engine, by action"
    return (
        Gauge("adapterhub_synced_adapters", names[0], ("name",), registry=registry),
        Counter("adapterhub_sync_changes", names[1], ("action",), registry=registry),
    )


class _Nothing:
    """A counter that counts nothing."""

    def labels(self, *_: str) -> _Nothing:
        return self

    def inc(self, _amount: float = 1) -> None:
        pass

    def observe(self, _amount: float) -> None:
        pass

    set = observe

    def remove(self, *_: str) -> None:
        pass
