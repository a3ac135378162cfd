"""Follows an alias of a library: each build that it comes to mean, leased, once it can be read.

Processes on other machines also move the alias, so its file is looked at again and again: opened, because a network
file system asks its server at an open, and read if it is another file than before.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError, AdapterNotFound, SpecError, StoreLocked, reason_of, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.documented import Documented
from adapterhub.library.aliasing import alias_of, build_under
from adapterhub.library.store.catalog import Installed

if TYPE_CHECKING:
    from adapterhub.formats.alias import Alias
    from adapterhub.library.library import Library

LOOK_S: Final = 0.025
"""How often to look at the file of an alias."""

READ_S: Final = 1.0
"""How often to read it, even if it seems to be the same: two moves in a tick of the clock can look alike."""

ANNOTATION: Final = "live"
"""The annotation of a manifest in which a stream notes alias and step."""

_log = logging.getLogger("adapterhub.live")


@dataclass(frozen=True, kw_only=True)
class Published(
    Documented,
    keys="adapter=build.full_name alias version digest step base=build.base_name path=build.folder refused? unsent?",
):
    """A version that an alias came to mean, or that a stream published for it.

    `moved_at` is the Unix time of the alias's move. `refused` is the reason why the alias did not move to it, or why a
    bank does not use it; None without one. `unsent` is the reason why a registry did not get it, which the next version
    makes good.
    """

    build: Installed
    alias: str
    moved_at: float | None = None
    refused: Annotated[str | None, "why the alias stays where it was"] = None
    unsent: Annotated[str | None, "why the registry did not get it"] = None
    durable: Future[None] | None = field(default=None, repr=False, compare=False)

    @property
    def version(self) -> str:
        """`0.0.N` in a stream."""
        return self.build.manifest.version

    @property
    def digest(self) -> Digest:
        """Of the manifest."""
        return self.build.manifest.digest

    @property
    def step(self) -> int:
        """Of the training; 0 where no stream published it."""
        noted = live_notes(self.build).get("step")
        return noted if isinstance(noted, int) else 0

    @property
    def folder(self) -> Path:
        """The folder with its files."""
        return self.build.folder

    @property
    def label(self) -> str:
        """Its name and version, such as `agent==0.0.12`."""
        return f"{self.build.full_name}=={self.version}"

    @property
    def spec(self) -> str:
        """A spec that selects exactly this version."""
        return self.build.spec

    @property
    def is_current(self) -> bool:
        """Whether the alias moved to it when it was published, or a bank took it."""
        return self.refused is None

    @property
    def is_durable(self) -> bool:
        """Whether it stays the current version after a power cut."""
        return self.durable is None or (self.durable.done() and self.durable.exception() is None)

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when it is durable.

        Raises:
            TimeoutError: it is not within `timeout_s` seconds.
            NotAllowed: the disk failed.
        """
        if self.durable is not None:
            self.durable.result(timeout_s)


Gate = Callable[[Published], object]
"""Called with a version before an alias moves to it, or before a bank uses it; see `objection`."""


def objection(gate: Gate, version: Published) -> str | None:
    """Return why a gate does not let a version through; None if it returned True or None, the only ways through.

    A text is the reason. Whatever else it returns refuses the version, and so does an exception. A scalar of numpy or
    torch counts as the value in it.
    """
    try:
        answer = gate(version)
        if hasattr(answer, "item"):
            answer = answer.item()
    except Exception as error:  # noqa: BLE001 - what is wrong with a gate lets nothing through
        if not isinstance(error, AdapterHubError):
            _log.warning("the gate of %s raised an error", version.label, exc_info=True)
        return f"the gate could not tell: {reason_of(error)}"
    if answer is None or answer is True:
        return None
    if answer is False:
        return "the gate refused it"
    if isinstance(answer, str) and answer:
        return shown(answer, 500)
    return f"the gate returned {shown(repr(answer), 100)}, expected True, None or a text that says why not"


def live_notes(build: Installed) -> Mapping[str, object]:
    """Return a stream's notes in the manifest of a version: its `alias` and `step`; nothing for other versions."""
    noted = build.manifest.annotations.get(ANNOTATION)
    return noted if isinstance(noted, Mapping) else {}


class AliasWatch:
    """One alias, looked up again where its file changed. `spec` is such as `agent@live`.

    Raises:
        SpecError: `spec` names no alias.
    """

    def __init__(self, library: Library, spec: AdapterSpec) -> None:
        if spec.base is None or spec.base.kind != "alias":
            raise SpecError(str(spec), "it names no alias to follow", hint=f"write `{spec.full_name}@live`")
        self._library, self._spec = library, spec
        self._adapter, self._name = spec.full_name, spec.base.text
        self._alias: Alias | None = None
        self._seen: object = None
        self._read_at = float("-inf")

    def look(self) -> Alias | None:
        """Return the alias's target now; None without one. Costs an open of one file.

        Raises:
            AmbiguousSpec, Conflict, Malformed: as `alias_of`.
        """
        stamp, now = self._library.aliases.stamp(self._adapter, self._name), time.monotonic()
        if stamp != self._seen or now - self._read_at >= READ_S:
            self._alias = alias_of(self._library, self._spec)
            self._adapter = self._alias.adapter if self._alias else self._spec.full_name
            self._seen, self._read_at = stamp, now
        return self._alias


def followed(
    library: Library,
    spec: AdapterSpec,
    *,
    since: str | None = None,
    timeout_s: float | None = None,
    stopped: threading.Event | None = None,
) -> Generator[Published, None, None]:
    """Yield the build that an alias means, and then each that it comes to mean, in the order of the moves.

    Also those back.

    Of moves between two looks only the last counts. The same build never comes twice in a row, and one that is not
    installed, or not any more, is passed over until it is. A build is leased until the next one comes or the iterator
    is closed. It ends where none came in `timeout_s`, and when `stopped` is set. `since` is the version or the digest
    that the caller has.

    Raises:
        SpecError: `spec` names no alias.
        AmbiguousSpec, Conflict, Malformed: as `alias_of`.
        NotAllowed: the library cannot be written, so nothing can be leased.
    """
    watch, ends = AliasWatch(library, spec), stopped or threading.Event()
    known = since
    with contextlib.ExitStack() as lease:
        while True:
            deadline = None if timeout_s is None else time.monotonic() + timeout_s
            while (found := _newer(library, watch, known)) is None:
                left_s = LOOK_S if deadline is None else min(LOOK_S, deadline - time.monotonic())
                if left_s <= 0 or ends.wait(left_s):
                    return
            current, held = found
            lease.close()
            lease.push(held)
            known = current.digest
            yield current
            if ends.is_set():
                return


def _newer(library: Library, watch: AliasWatch, known: str | None) -> tuple[Published, contextlib.ExitStack] | None:
    """Return the build that the alias means now, leased, if it is another one than `known` and is installed."""
    alias = watch.look()
    if alias is None or known in {alias.main.digest, alias.main.version}:
        return None
    with contextlib.ExitStack() as undo, contextlib.suppress(AdapterNotFound, StoreLocked):
        build = build_under(library, alias, alias.main)
        undo.enter_context(library.lease(build))
        return Published(alias=alias.name, build=build, moved_at=alias.last.at), undo.pop_all()
    return None
