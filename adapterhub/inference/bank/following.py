"""A bank follows an alias: a thread loads each version that the alias comes to mean, and the next request gets it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol

from adapterhub.core.arguments import Seconds, parsed
from adapterhub.core.errors import NotAllowed, StoreLocked, reason_of
from adapterhub.library.following import Gate, Published, objection
from adapterhub.library.store.catalog import Installed

if TYPE_CHECKING:
    from typing_extensions import Self

RETRY_S: Final = 1.0
"""How long to wait after an alias could not be read."""

_log = logging.getLogger("adapterhub.bank")


class Builds(Protocol):
    """The builds that an alias comes to mean; see `adapterhub.library.following.followed`."""

    def __call__(
        self, *, since: str | None = None, timeout_s: float | None = None, stopped: threading.Event | None = None
    ) -> Iterator[Published]:
        """Each build, leased until the next one comes or the iterator is closed."""
        ...


class Bring(Protocol):
    """Puts a build into a bank under a name; `ask` is called while the model answers with it, and may raise."""

    def __call__(self, name: str, build: Installed, *, ask: Callable[[], None] | None, check_effect: bool) -> None:
        """Put it there, or raise and change nothing."""
        ...


class FollowedAlias:
    """An alias that a bank follows, in a thread; a context manager that stops at the end of its block.

    `name` is the name in the bank, such as `agent@live`. Thread-safe.
    """

    def __init__(
        self,
        name: str,
        builds: Builds,
        bring: Bring,
        lease: Callable[[Installed], AbstractContextManager[object]],
        *,
        gate: Gate | None,
        check_effect: bool,
    ) -> None:
        """Prepare it; `bring` is a method, kept by a weak reference, and `lease` keeps the files of a build."""
        self.name = name
        self._builds, self._bring, self._lease = builds, weakref.WeakMethod(bring), lease
        self._gate, self._check_effect = gate, check_effect
        self._leased = contextlib.ExitStack()
        self._stopped = threading.Event()
        self._changed = threading.Condition()
        self._current: Published | None = None
        self._refused: Published | None = None
        self._known: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"adapterhub-follow {name}", daemon=True)

    def continues(self, before: FollowedAlias) -> None:
        """Take over what one that was stopped has: the version in the bank, and its lease."""
        self._leased, before._leased = before._leased, contextlib.ExitStack()
        self._current, self._refused = before._current, before._refused

    def start(self) -> None:
        """Take what is current now, and then follow; raises as `Builds` does."""
        for current in self._builds(timeout_s=0):
            self._take(current)
        self._thread.start()

    @property
    def current(self) -> Published | None:
        """The version that requests get now; None before the first one."""
        return self._current

    @property
    def refused(self) -> Published | None:
        """The version that was refused last, with the reason; None once a later one is used."""
        return self._refused

    @property
    def is_running(self) -> bool:
        """Whether the bank still follows the alias."""
        return not self._stopped.is_set()

    @parsed
    def wait(self, *, other_than: str | None = None, timeout_s: Seconds | None = None) -> Published | None:
        """Return the version that requests get, once it is another one than this version or digest.

        None after `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while True:
                found = self._current
                if found is not None and other_than not in {found.version, found.digest}:
                    return found
                left_s = None if deadline is None else deadline - time.monotonic()
                if not self.is_running or (left_s is not None and left_s <= 0):
                    return None
                self._changed.wait(left_s)

    def stop(self) -> None:
        """Follow the alias no more; returns once no other version can come. The bank keeps the one that it has."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():  # a gate may stop
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def end(self) -> None:
        """Stop without waiting, and end the lease: the bank has no use for the files any more."""
        self._stopped.set()
        self._leased.close()

    # ------------------------------------------------------------ inside
    def _run(self) -> None:
        has_failed = False
        while not self._stopped.is_set():
            try:
                for current in self._builds(since=self._known, stopped=self._stopped):
                    self._take(current)
                    has_failed = False
            except Exception as error:  # noqa: BLE001 - requests go on under the version that is there
                if not has_failed:
                    _log.warning("%s stays %s for now: %s", self.name, self._now(), reason_of(error))
                has_failed = True
                self._stopped.wait(RETRY_S)

    def _take(self, version: Published) -> None:
        """Bring a version into the bank, or note why not.

        Raises:
            StoreLocked, OSError: it is worth another try.
        """
        bring = self._bring()
        if bring is None:  # the bank is gone
            self._stopped.set()
            return
        ask = partial(pass_gate, self._gate, version) if self._gate else None
        try:
            with contextlib.ExitStack() as lease:
                lease.enter_context(self._lease(version.build))
                bring(self.name, version.build, ask=ask, check_effect=self._check_effect)
                before, self._leased = self._leased, lease.pop_all()
            before.close()
        except (StoreLocked, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the bank does not use it
            self._refused = replace(version, refused=reason_of(error))
            _log.warning("%s stays %s: %s is refused: %s", self.name, self._now(), version.label, self._refused.refused)
        else:
            self._current, self._refused = version, None
        self._known = version.digest
        with self._changed:
            self._changed.notify_all()

    def _now(self) -> str:
        return self._current.label if self._current else "without a version"


def pass_gate(gate: Gate, version: Published) -> None:
    """Ask a gate about a version.

    Raises:
        NotAllowed: the gate does not let it through.
    """
    why = objection(gate, version)
    if why is not None:
        raise NotAllowed(f"`{version.label}` does not pass: {why}", hint="publish a version that passes the gate")
