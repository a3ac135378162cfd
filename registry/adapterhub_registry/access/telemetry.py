"""Reports on a server: metrics for Prometheus, and one JSON line in the log for each request.

Neither contains tokens, signed links or file names. Metrics name routes, not paths; a log line names the path without
its query, and only the beginning of a path that grants access (`/_lfs/…`, `/_xet/…`).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector
from starlette.types import Scope

from adapterhub.core.errors import shown
from adapterhub.core.redaction import without_secrets

BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


@dataclass(slots=True)
class RequestRecord:
    """The facts about one request that the layers collect for its log line."""

    user: str | None = None
    token_id: int | None = None
    address: str | None = None
    route: str = "none"
    status: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    began: float = field(default_factory=time.perf_counter)


class Telemetry:
    """The metrics of one server; writes the request lines to `log`, if any."""

    def __init__(self, log: TextIO | None = None) -> None:
        self._log = log
        self.collected = CollectorRegistry()
        names = ("method", "route", "status")
        self._requests = Counter("adapterhub_requests", "Requests answered", names, registry=self.collected)
        self._seconds = Histogram(
            "adapterhub_request_seconds",
            "Time to the last byte of a response",
            ("method", "route"),
            buckets=BUCKETS,
            registry=self.collected,
        )
        self._running = Gauge("adapterhub_requests_running", "Requests being answered", registry=self.collected)
        self._received = Counter("adapterhub_received_bytes", "Bytes of bodies received", registry=self.collected)
        self._sent = Counter("adapterhub_sent_bytes", "Bytes of bodies sent", registry=self.collected)
        self.refused = Counter("adapterhub_refused", "Requests over a rate", ("kind",), registry=self.collected)

    def add(self, collector: Collector) -> None:
        """Include the metrics of `collector`."""
        self.collected.register(collector)

    def began(self) -> None:
        """Count a request that starts."""
        self._running.inc()

    def ended(self, scope: Scope, record: RequestRecord, number: str) -> None:
        """Count and log a request that was answered, or aborted (status 0)."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        spent_s = time.perf_counter() - record.began
        self._running.dec()
        self._requests.labels(method, record.route, str(record.status)).inc()
        self._seconds.labels(method, record.route).observe(spent_s)
        self._received.inc(record.received_bytes)
        self._sent.inc(record.sent_bytes)
        if self._log is None:
            return
        line = {
            "time": _now(),
            "level": "info",
            "request": number,
            "method": method,
            "path": logged_path(str(scope["path"])),
            "status": record.status,
            "ms": round(spent_s * 1000, 1),
            "received_bytes": record.received_bytes,
            "sent_bytes": record.sent_bytes,
            "address": record.address,
            "user": record.user,
            "token": record.token_id,
        }
        self._log.write(without_secrets(json.dumps(line)) + "\n")

    def exposition(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.collected)


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def logged_path(path: str) -> str:
    """A path in the form that is safe to log."""
    parts = path.split("/")
    if parts[1:2] in (["_lfs"], ["_xet"]):
        return "/".join(parts[:3])
    return shown(path, 300)


class JsonLines(logging.Formatter):
    """Formats log records as JSON lines without secrets; a member holds the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The JSON line of a record."""
        line: dict[str, Any] = {"time": _now(), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return without_secrets(json.dumps(line))


def log_as_json(stream: TextIO = sys.stderr) -> None:
    """Write every log record of this process as a JSON line."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
