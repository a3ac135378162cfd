"""Followers of a stream: each version that becomes current, in this process, in another, or on another machine.

The truth is the alias in the library. On another machine, a thread copies new versions from a registry into the
library there: first the whole version, and then the alias. So the alias never means a version without its files.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adapterhub.core.errors import AdapterHubError, reason_of
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.events import ALIAS, EventFeed, follow_events
from adapterhub.library.following import Published, followed

if TYPE_CHECKING:
    from typing_extensions import Self

    from adapterhub.distribution.hub import Event
    from adapterhub.library.library import Library

POLL_S: Final = 10.0
"""How often to ask a registry that sends no events."""

_log = logging.getLogger("adapterhub.live")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """A registry that a stream is followed from: `alias` is its spec there, such as `acme/agent@live`.

    `bring` installs what the alias means there, and then moves the alias here; `open_feed` gives its events.
    """

    alias: AdapterSpec
    bring: Callable[[], object]
    open_feed: Callable[[], EventFeed | None]

    @contextlib.contextmanager
    def mirrored(self) -> Iterator[None]:
        """Keep the library equal to the registry while the block runs, which begins when it was asked once."""
        ends, asked = threading.Event(), threading.Event()
        thread = threading.Thread(
            target=self._mirror, args=(ends, asked), name=f"adapterhub-follow {self.alias}", daemon=True
        )
        thread.start()
        try:
            asked.wait()
            yield
        finally:
            ends.set()

    def _mirror(self, ends: threading.Event, asked: threading.Event) -> None:
        def heard(events: Sequence[Event] | None) -> None:
            if events is None or any(one.type == ALIAS and one.repo == self.alias.full_name for one in events):
                self.bring()
            asked.set()

        def failed(error: Exception) -> None:
            reason = reason_of(error)
            if reason not in told:
                _log.warning("%s stays unchanged here for now: %s", self.alias, reason)
            told[:] = [reason]
            asked.set()

        told = list[str]()
        while not follow_events(self.open_feed, heard, ends, failed=failed):  # it sends none
            try:
                heard(None)
                told.clear()
            except AdapterHubError as error:
                failed(error)
            if ends.wait(POLL_S):
                return


class Follower:
    """The versions of a stream that become current, one after the other; an iterator, and a context manager.

    The version that it gave last is leased until it gives the next one, or is closed, so its folder stays.
    """

    def __init__(self, versions: Generator[Published, None, None]) -> None:
        """Follow `versions`."""
        self._versions = versions

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Published:
        return next(self._versions)

    def close(self) -> None:
        """End the lease; no further version comes."""
        self._versions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def builds_of(
    library: Library,
    alias: AdapterSpec,
    registry: Registry | None,
    *,
    since: str | None = None,
    timeout_s: float | None = None,
    stopped: threading.Event | None = None,
) -> Generator[Published, None, None]:
    """As `followed`, of the library or of a registry that it mirrors meanwhile."""
    with registry.mirrored() if registry else contextlib.nullcontext():
        yield from followed(library, alias, since=since, timeout_s=timeout_s, stopped=stopped)
