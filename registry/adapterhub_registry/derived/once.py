"""Keeps the results of computations that a request waits for: each is made once, and few at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final

from adapterhub_registry.errors import busy

KEPT: Final = 64
AT_ONCE: Final = 2


class Once:
    """Results by key, the latest `KEPT` of them. `subject` is what only one computation at a time may be about."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._running: set[Hashable] = set()

    def result(self, subject: Hashable, key: Hashable, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - of any type
        """The result kept under `(subject, key)`, or a new one of `make`.

        Raises:
            Refusal: 503 with Retry-After while another computation about the subject runs, or many others.
        """
        with self._lock:
            if (subject, key) in self._kept:
                self._kept.move_to_end((subject, key))
                return self._kept[subject, key]
            if subject in self._running or len(self._running) >= AT_ONCE:
                raise busy("other weights are being compared; try again")
            self._running.add(subject)
        try:
            made = make()
        finally:
            with self._lock:
                self._running.discard(subject)
        with self._lock:
            self._kept[subject, key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made
