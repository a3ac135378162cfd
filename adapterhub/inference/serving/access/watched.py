"""A file that a running server reads again when it changes, and a thread that does such work again and again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from adapterhub.core.disk.files import read_typed
from adapterhub.core.errors import AdapterHubError, Malformed, shown

if TYPE_CHECKING:
    from typing_extensions import Self

LIMIT_BYTES: Final = 1 << 20
"""No file that a server watches may be larger."""

LOOK_S: Final = 1.0
"""How often a server looks whether a file changed."""

_log = logging.getLogger("vllm.adapterhub")
_T = TypeVar("_T")


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """Return the stamp that differs once a file changes or is replaced; None for a missing one."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


class WatchedFile(Generic[_T]):
    """What `parse` makes of the bytes of a file. A file that was replaced by a bad one keeps its last good value.

    Links are followed, so that a mounted ConfigMap, whose links are swapped, counts as changed.

    Raises:
        NotFound: the file cannot be read.
        Malformed: it is too large, or `parse` refuses it.
    """

    def __init__(self, path: Path, parse: Callable[[bytes, Path], _T]) -> None:
        self.path = path
        self._parse = parse
        self.rule: Callable[[_T], None] = lambda _: None
        """Refuses, by an `AdapterHubError`, a value that this server cannot use."""
        self._seen = stamp_of(path)
        self.value = self._read()

    def refresh(self) -> bool:
        """Read the file again if it changed; whether there is a new value. Logs why a changed file is not used."""
        stamp = stamp_of(self.path)
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            self.value = self._read()
        except AdapterHubError as error:
            _log.error("%s; what it said before still holds", error.message)
            return False
        _log.info("read %s again", shown(str(self.path), 200))
        return True

    def _read(self) -> _T:
        data = read_typed(self.path, LIMIT_BYTES)
        if len(data) > LIMIT_BYTES:
            raise Malformed(
                f"`{shown(str(self.path), 200)}` is larger than {LIMIT_BYTES:,} bytes",
                hint="split it, or remove unused entries",
            )
        value = self._parse(data, self.path)
        self.rule(value)
        return value


class Repeating:
    """Runs tasks again and again in a thread of its own while a block runs. A failure is logged.

    Each task comes with its number of seconds, which also pass before its first run.
    """

    def __init__(self, tasks: Sequence[tuple[float, Callable[[], object]]]) -> None:
        self._tasks = tasks
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adapterhub-upkeep", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()

    def _run(self) -> None:
        due = [time.monotonic() + every for every, _ in self._tasks]
        while due and not self._ends.wait(max(0.0, min(due) - time.monotonic())):
            for at, (every, task) in enumerate(self._tasks):
                if due[at] > time.monotonic():
                    continue
                try:
                    task()
                except Exception:  # noqa: BLE001 - the next turn may succeed, and the server goes on
                    _log.exception("a task of the server's upkeep failed")
                due[at] = time.monotonic() + every
